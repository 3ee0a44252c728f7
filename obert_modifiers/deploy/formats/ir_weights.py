"""The weights of an OpenVINO IR, read without OpenVINO."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class _Layer:
    kind: str
    name: str
    data: dict[str, str]
    inputs: dict[int, "_Layer"] = field(default_factory=dict)  # by port
    readers: list[tuple["_Layer", int]] = field(default_factory=list)  # and their port

    @property
    def is_integer(self) -> bool:
        return self.data.get("element_type") in _INTEGERS

    def product(self) -> str | None:
        """Return the name of the MatMul that it goes into."""
        for reader, _ in self.readers:
            if reader.kind == "MatMul":
                return reader.name
            if reader.kind in _PASSING and (found := reader.product()) is not None:
                return found
        return None

    def is_grid(self) -> bool:
        """Tell scales and zero points, and the bounds of a FakeQuantize."""
        return any(reader._is_grid_at(port) for reader, port in self.readers)

    def _is_grid_at(self, port: int) -> bool:
        # Scale and zero point: what an integer constant is multiplied with, or what is
        # subtracted from it.
        if self.kind == "FakeQuantize":
            return port > 0
        if self.kind in ("Convert", "Reshape") and port == 0:
            return self.is_grid()
        if self.kind not in ("Subtract", "Multiply") or port != 1:
            return False
        source = self.inputs.get(0)
        while source is not None and source.kind in ("Convert", "Subtract"):
            source = source.inputs.get(0)
        return source is not None and source.is_integer

    def zero_point(self) -> "_Layer | None":
        """Return the constant that stands for zero, None for floating point."""
        after = [pair for reader, _ in self.readers for pair in reader.readers]
        for layer, port in after if self.is_integer else ():
            if layer.kind == "Subtract" and port == 0:
                source = layer.inputs[1]
                while source.kind in _PASSING:
                    source = source.inputs[0]
                return source if source.data.get("element_type") in _TYPES else None
        return None


def ir_weights(xml: Path, weights: Path) -> list[Weight]:
    """Count the constants of an IR that are numbers of the model."""
    data = np.memmap(weights, np.uint8, "r") if weights.stat().st_size else np.zeros(0)

    def numbers(layer: _Layer) -> np.ndarray:
        start, size = int(layer.data["offset"]), int(layer.data["size"])
        if start + size > data.size:
            raise ValueError(
                f"model={xml} needs {start + size} bytes of {weights.name}, which has "
                f"{data.size}; expected both files of one export; copy them again"
            )
        return data[start : start + size].view(_TYPES[layer.data["element_type"]])

    found = []
    for layer in _layers(ElementTree.parse(xml).getroot()):
        if layer.kind != "Const" or layer.data.get("element_type") not in _TYPES:
            continue
        shape = [int(n) for n in layer.data["shape"].split(",") if n.strip()]
        if math.prod(shape) <= 1 or layer.is_grid():
            continue
        zero, product = layer.zero_point(), layer.product()
        array = numbers(layer).reshape(shape)
        nonzero = count_nonzero(array, None if zero is None else numbers(zero))
        prunable = product is not None and array.ndim == 2 and in_a_layer(product)
        found.append(Weight(layer.name, array.size, nonzero, prunable))
    return found


def _layers(root: ElementTree.Element) -> list[_Layer]:
    layers = {}
    for one in root.iter("layer"):
        data = one.find("data")
        values = {} if data is None else dict(data.attrib)
        layers[one.get("id")] = _Layer(one.get("type", ""), one.get("name", ""), values)
    for edge in root.iter("edge"):
        source, reader = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        port = int(edge.get("to-port", "0"))
        source.readers.append((reader, port))
        reader.inputs[port] = source
    return list(layers.values())
