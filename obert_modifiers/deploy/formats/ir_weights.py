"""The weights of an OpenVINO IR, read without OpenVINO."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from obert_modifiers.deploy.weight import Weight, count_nonzero, in_a_layer

_TYPES = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,  # its zeros are those of its bits but for -0.0
    "i8": np.int8,
    "u8": np.uint8,
}
_INTEGERS = ("i8", "u8")
_PASSING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeQuantize")


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    data: dict[str, str]


def ir_weights(xml: Path, weights: Path) -> list[Weight]:
    """Count the weights of an IR."""
    root = ElementTree.parse(xml).getroot()
    graph = _Graph(root)
    data = np.memmap(weights, np.uint8, "r") if weights.stat().st_size else np.zeros(0)
    found = []
    for number, layer, shape in graph.constants():
        start, size = int(layer.data["offset"]), int(layer.data["size"])
        if start + size > data.size:
            raise ValueError(
                f"model={xml} needs {start + size} bytes of {weights.name}, which has "
                f"{data.size}; expected both files of one export; copy them again"
            )
        array = data[start : start + size].view(_TYPES[layer.data["element_type"]])
        array = array.reshape(shape)
        product = graph.product(number)
        prunable = product is not None and array.ndim == 2 and in_a_layer(product)
        nonzero = count_nonzero(array, graph.zero_point(number, data))
        found.append(Weight(layer.name, array.size, nonzero, prunable))
    return found


class _Graph:
    """Layers by number, and which read the output of which."""

    def __init__(self, root: ElementTree.Element) -> None:
        self._layers = {}
        for one in root.iter("layer"):
            data = one.find("data")
            self._layers[one.get("id", "")] = _Layer(
                one.get("type", ""),
                one.get("name", ""),
                {} if data is None else dict(data.attrib),
            )
        self._readers: dict[str, list[tuple[str, int]]] = {}
        self._inputs: dict[tuple[str, int], str] = {}
        for edge in root.iter("edge"):
            source, to = edge.get("from-layer", ""), edge.get("to-layer", "")
            port = int(edge.get("to-port", "0"))
            self._readers.setdefault(source, []).append((to, port))
            self._inputs[to, port] = source

    def constants(self) -> Iterator[tuple[str, _Layer, list[int]]]:
        """Yield the constants that are weights, and their shapes."""
        for number, layer in self._layers.items():
            if layer.kind != "Const" or layer.data.get("element_type") not in _TYPES:
                continue
            shape = [int(n) for n in layer.data["shape"].split(",") if n.strip()]
            readers = self._readers.get(number, [])
            grid = any(self._is_grid(to, port) for to, port in readers)
            if shape and int(np.prod(shape)) > 1 and not grid:
                yield number, layer, shape

    def product(self, number: str) -> str | None:
        """Return the name of the MatMul that a constant goes into."""
        for to, _ in self._readers.get(number, ()):
            layer = self._layers[to]
            if layer.kind == "MatMul":
                return layer.name
            if layer.kind in _PASSING and (found := self.product(to)) is not None:
                return found
        return None

    def zero_point(self, number: str, data: np.ndarray) -> np.ndarray | None:
        """Return the integers that stand for zero, None for floating point."""
        if self._layers[number].data["element_type"] not in _INTEGERS:
            return None
        for to, _ in self._readers.get(number, ()):
            for after, port in self._readers.get(to, ()):
                if self._layers[after].kind == "Subtract" and port == 0:
                    return self._constant(self._inputs[after, 1], data)
        return None

    def _constant(self, number: str, data: np.ndarray) -> np.ndarray | None:
        layer = self._layers[number]
        while layer.kind in _PASSING:
            number = self._inputs[number, 0]
            layer = self._layers[number]
        if layer.data.get("element_type") not in _TYPES:
            return None
        start, size = int(layer.data["offset"]), int(layer.data["size"])
        kind = _TYPES[layer.data["element_type"]]
        return data[start : start + size].view(kind).reshape(-1)

    def _is_grid(self, number: str, port: int) -> bool:
        # A scale or zero point: what an integer constant is multiplied with, or what
        # is subtracted from it; the bounds of a FakeQuantize.
        layer = self._layers[number]
        if layer.kind == "FakeQuantize":
            return port > 0
        if layer.kind == "Convert":
            return any(
                self._is_grid(to, at) for to, at in self._readers.get(number, [])
            )
        if layer.kind not in ("Subtract", "Multiply") or port != 1:
            return False
        source = self._inputs.get((number, 0), "")
        while source and self._layers[source].kind in ("Convert", "Subtract"):
            source = self._inputs.get((source, 0), "")
        data = self._layers[source].data if source else {}
        return data.get("element_type") in _INTEGERS
