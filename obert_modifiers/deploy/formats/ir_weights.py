"""The weights of an OpenVINO IR, read without OpenVINO."""

import xml.etree.ElementTree as ElementTree
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


def ir_weights(xml: Path, weights: Path) -> list[Weight]:
    """Count the constants of an IR that are numbers of the model."""
    data = np.memmap(weights, np.uint8, "r") if weights.stat().st_size else np.zeros(0)
    graph = _Graph(ElementTree.parse(xml).getroot(), data)
    found = []
    for number, (kind, name, values) in graph.layers.items():
        if kind != "Const" or values.get("element_type") not in _TYPES:
            continue
        shape = [int(n) for n in values["shape"].split(",") if n.strip()]
        if not shape or int(np.prod(shape)) <= 1 or graph.is_grid(number):
            continue
        end = int(values["offset"]) + int(values["size"])
        if end > data.size:
            raise ValueError(
                f"model={xml} needs {end} bytes of {weights.name}, which has "
                f"{data.size}; expected both files of one export; copy them again"
            )
        array = graph.array(number).reshape(shape)
        product = graph.product(number)
        prunable = product is not None and array.ndim == 2 and in_a_layer(product)
        nonzero = count_nonzero(array, graph.zero_point(number))
        found.append(Weight(name, array.size, nonzero, prunable))
    return found


class _Graph:
    """Layers by number (type, name and data), and which read the output of which."""

    def __init__(self, root: ElementTree.Element, data: np.ndarray) -> None:
        self._data = data
        self.layers: dict[str, tuple[str, str, dict[str, str]]] = {}
        for one in root.iter("layer"):
            values = one.find("data")
            attributes = {} if values is None else dict(values.attrib)
            named = one.get("type", ""), one.get("name", "")
            self.layers[one.get("id", "")] = (*named, attributes)
        self._readers: dict[str, list[tuple[str, int]]] = {}
        self._inputs: dict[tuple[str, int], str] = {}
        for edge in root.iter("edge"):
            source, to = edge.get("from-layer", ""), edge.get("to-layer", "")
            port = int(edge.get("to-port", "0"))
            self._readers.setdefault(source, []).append((to, port))
            self._inputs[to, port] = source

    def array(self, number: str) -> np.ndarray:
        """Return the numbers of a constant, in one row."""
        values = self.layers[number][2]
        start, size = int(values["offset"]), int(values["size"])
        return self._data[start : start + size].view(_TYPES[values["element_type"]])

    def product(self, number: str) -> str | None:
        """Return the name of the MatMul that a constant goes into."""
        for to, _ in self._readers.get(number, ()):
            kind, name, _ = self.layers[to]
            if kind == "MatMul":
                return name
            if kind in _PASSING and (found := self.product(to)) is not None:
                return found
        return None

    def zero_point(self, number: str) -> np.ndarray | None:
        """Return the integers that stand for zero, None for floating point."""
        if not self._is_integer(number):
            return None
        for to, _ in self._readers.get(number, ()):
            for after, port in self._readers.get(to, ()):
                if self.layers[after][0] == "Subtract" and port == 0:
                    source = self._inputs[after, 1]
                    while self.layers[source][0] in _PASSING:
                        source = self._inputs[source, 0]
                    known = self.layers[source][2].get("element_type") in _TYPES
                    return self.array(source) if known else None
        return None

    def is_grid(self, number: str) -> bool:
        """Tell scales and zero points, and the bounds of a FakeQuantize."""
        return any(self._bounds(to, port) for to, port in self._readers.get(number, ()))

    def _bounds(self, number: str, port: int) -> bool:
        # Scale and zero point: what an integer constant is multiplied with, or what is
        # subtracted from it.
        kind = self.layers[number][0]
        if kind == "FakeQuantize":
            return port > 0
        if kind in ("Convert", "Reshape") and port == 0:
            return self.is_grid(number)
        if kind not in ("Subtract", "Multiply") or port != 1:
            return False
        source = self._inputs.get((number, 0), "")
        while source and self.layers[source][0] in ("Convert", "Subtract"):
            source = self._inputs.get((source, 0), "")
        return bool(source) and self._is_integer(source)

    def _is_integer(self, number: str) -> bool:
        return self.layers[number][2].get("element_type") in _INTEGERS
