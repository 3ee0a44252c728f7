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
    readers: list["_Layer"] = field(default_factory=list)

    def source(self, *passing: str) -> "_Layer":
        """Go back over layers of some kinds."""
        layer = self
        while layer.kind in passing:
            layer = layer.inputs[0]
        return layer

    def product(self) -> str | None:
        """Return the name of the MatMul that it goes into."""
        for reader in self.readers:
            if reader.kind == "MatMul":
                return reader.name
            if reader.kind in _PASSING and (found := reader.product()) is not None:
                return found
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

    layers = _layers(ElementTree.parse(xml).getroot())
    grids, zeros = _grids(layers)
    found = []
    for layer in layers:
        if layer.kind != "Const" or layer.data.get("element_type") not in _TYPES:
            continue
        shape = [int(n) for n in layer.data["shape"].split(",") if n.strip()]
        if math.prod(shape) <= 1 or layer in grids:
            continue
        product, array = layer.product(), numbers(layer).reshape(shape)
        zero = numbers(zeros[layer]) if layer in zeros else None
        prunable = product is not None and array.ndim == 2 and in_a_layer(product)
        nonzero = count_nonzero(array, zero)
        found.append(Weight(layer.name, array.size, nonzero, prunable))
    return found


def _grids(layers: list[_Layer]) -> tuple[set[_Layer], dict[_Layer, _Layer]]:
    """Find the scales, zero points and bounds, and the zero point of each weight."""
    grids, zeros = set(), {}
    for layer in layers:
        if layer.kind == "FakeQuantize":
            bounds = [one for port, one in layer.inputs.items() if port > 0]
            grids |= {one.source("Convert", "Reshape") for one in bounds}
        elif layer.kind in ("Subtract", "Multiply"):
            weight = layer.inputs[0].source("Convert", "Subtract")
            if weight.data.get("element_type") in _INTEGERS:
                grid = layer.inputs[1].source("Convert", "Reshape")
                grids.add(grid)
                if layer.kind == "Subtract" and grid.data.get("element_type") in _TYPES:
                    zeros[weight] = grid
    return grids, zeros


def _layers(root: ElementTree.Element) -> list[_Layer]:
    layers = {}
    for one in root.iter("layer"):
        data = one.find("data")
        values = {} if data is None else dict(data.attrib)
        layers[one.get("id")] = _Layer(one.get("type", ""), one.get("name", ""), values)
    for edge in root.iter("edge"):
        source, reader = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        source.readers.append(reader)
        reader.inputs[int(edge.get("to-port", "0"))] = source
    return list(layers.values())
