"""The weights of an ONNX graph."""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.weight import Weight, count_nonzero, in_a_layer

_PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
# Operators that hand a weight on, by the input it comes in through.
_PASSING = ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
# Inputs that are scales and zero points.
_GRIDS = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}
_KINDS = ("f", "i1", "u1")  # floating point and 8-bit integers


def onnx_weights(path: Path) -> list[Weight]:
    """Count the weights of an ONNX file.

    Args:
        path: The file.

    Returns:
        Its constants that are numbers of the model.

    Raises:
        ValueError: If the file is damaged or no ONNX.
    """  # noqa: DOC502  raised by load_onnx
    graph = _Graph(load_onnx(path))
    multiplied = graph.multiplied()
    named = any(in_a_layer(node) for node in multiplied.values())
    found = []
    for name, array in graph.weights().items():
        node = multiplied.get(name)
        prunable = node is not None and array.ndim == 2
        if prunable and named:
            prunable = in_a_layer(node)
        nonzero = count_nonzero(array, graph.zero_point(name))
        found.append(Weight(name, array.size, nonzero, prunable))
    return found


class _Graph:
    """Constants, and the nodes that read and make each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = list(model.graph.node)
        self._tensors = {one.name: one for one in model.graph.initializer}
        self._inline = {
            node.output[0]: node.attribute[0].t
            for node in self._nodes
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        self._makers = {out: node for node in self._nodes for out in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def weights(self) -> dict[str, np.ndarray]:
        """Return the constants that are weights by name."""
        grids = {
            node.input[place]
            for node in self._nodes
            for place in _GRIDS.get(node.op_type, ())
            if place < len(node.input)
        }
        found = {}
        for name, tensor in (self._tensors | self._inline).items():
            dims = len(tensor.dims)
            least = 1 if name in self._tensors else 2
            if name in grids or not dims or np.prod(tensor.dims) < least:
                continue
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            named = f"{kind.kind}{kind.itemsize}"
            if named.startswith(_KINDS) or (named == "i4" and self._is_bias(name)):
                found[name] = numpy_helper.to_array(tensor)
        return found

    def _is_bias(self, name: str) -> bool:
        # Of a product of integers; other integers of 32 bits are shapes and places.
        return any(
            node.op_type == "Add"
            or (node.op_type == "DequantizeLinear" and node.input[0] == name)
            for node in self._readers.get(name, ())
        )

    def multiplied(self) -> dict[str, str]:
        """Return the name of the node that multiplies with a constant by its name."""
        found = {}
        for node in self._nodes:
            place = _PRODUCTS.get(node.op_type)
            if place is None:
                continue
            name = node.input[place]
            while (maker := self._makers.get(name)) is not None:
                if maker.op_type not in _PASSING:
                    break
                name = maker.input[0]
            if name in self._tensors or name in self._inline:
                found[name] = node.name
        return found

    def zero_point(self, name: str) -> np.ndarray | None:
        """Return the integers that stand for zero, None for floating point."""
        for node in self._readers.get(name, ()):
            if node.op_type in ("Gather", "Transpose", "Identity"):
                found = self.zero_point(node.output[0])
                if found is not None:
                    return found
            place = {"DequantizeLinear": 2, "MatMulInteger": 3, "QLinearMatMul": 5}
            at = place.get(node.op_type)
            if at is not None and at < len(node.input):
                tensor = (self._tensors | self._inline).get(node.input[at])
                if tensor is not None:
                    return numpy_helper.to_array(tensor).reshape(-1)
        return None
