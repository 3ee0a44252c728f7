"""Weights as INT8 in a graph of Q and DQ nodes."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def store_int8_weights(model: onnx.ModelProto) -> int:
    """Replace what quantizes a constant by the INT8 constant; changes the graph.

    torch writes a quantized weight as floating point and a QuantizeLinear node. Here
    the node is computed, a transposition after its DequantizeLinear too, and scales of
    one element become scalars, as ONNX has them for whole tensors.

    Args:
        model: The graph; changed in place.

    Returns:
        Weights that are INT8 now.
    """
    graph = _Graph(model)
    count = 0
    for node in list(model.graph.node):
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            graph.make_parameters_constant(node)
        if node.op_type == _QUANTIZE and node.input[0] in graph.values:
            graph.fold(node)
            count += 1
    graph.write()
    return count


class _Graph:
    """A graph's constants by name and its nodes by what they read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self.values = {one.name: one for one in model.graph.initializer}
        self._constants = {
            node.output[0]: node.attribute[0].t
            for node in model.graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        self._dropped: set[str] = set()  # first outputs of nodes that go
        # torch keeps one of several equal constants and copies of its name.
        for node in model.graph.node:
            if node.op_type == "Identity" and node.input[0] in self.values:
                self._rename(node.output[0], node.input[0])
                self._drop(node)

    def make_parameters_constant(self, node: NodeProto) -> None:
        """Give a Q or DQ node its scale and zero point as initializers."""
        whole = not node.attribute  # no axis
        for place in (1, 2):
            name = node.input[place]
            if name not in self._constants:
                continue
            array = numpy_helper.to_array(self._constants[name])
            if whole and array.size == 1:
                array = array.reshape(())
            self._store(name, array)

    def fold(self, node: NodeProto) -> None:
        """Compute a QuantizeLinear node of a constant, and drop it."""
        name, axis = node.input[0], _axis(node)
        scale, zero_point = (self.array(one) for one in node.input[1:])
        whole = _quantize(self.array(name), scale, zero_point, axis)
        for reader in self._readers(node.output[0]):
            after = self._readers(reader.output[0])
            turned = bool(after) and all(_is_turn(one) for one in after)
            stored = f"{name}_int8_t" if turned else f"{name}_int8"
            while stored in self.values:
                stored += "_"
            self._store(stored, np.ascontiguousarray(whole.T) if turned else whole)
            reader.input[0] = stored
            if turned:
                for one in after:
                    self._rename(one.output[0], reader.output[0])
                    self._drop(one)
                for attribute in reader.attribute:
                    attribute.i = 1 - attribute.i
        self._drop(node)

    def array(self, name: str) -> np.ndarray:
        """Return the values of a constant."""
        return numpy_helper.to_array(self.values[name])

    def write(self) -> None:
        """Write what is still in use back into the graph."""
        graph = self._graph
        nodes = [n for n in graph.node if n.output[0] not in self._dropped]
        used = {name for node in nodes for name in node.input}
        used |= {one.name for one in graph.output}
        nodes = [
            n for n in nodes if n.op_type != "Constant" or self._is_needed(n, used)
        ]
        kept = [one for name, one in self.values.items() if name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)

    def _is_needed(self, node: NodeProto, used: set[str]) -> bool:
        return node.output[0] in used and node.output[0] not in self.values

    def _store(self, name: str, array: np.ndarray) -> None:
        self.values[name] = numpy_helper.from_array(array, name)

    def _readers(self, name: str) -> Sequence[NodeProto]:
        return [node for node in self._graph.node if name in node.input]

    def _rename(self, old: str, new: str) -> None:
        for node in self._readers(old):
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def _drop(self, node: NodeProto) -> None:
        self._dropped.add(node.output[0])


def _axis(node: NodeProto) -> int | None:
    return next((one.i for one in node.attribute if one.name == "axis"), None)


def _is_turn(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and [
        list(one.ints) for one in node.attribute if one.name == "perm"
    ] == [[1, 0]]


def _quantize(
    values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None
) -> np.ndarray:
    if axis is not None:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    # torch multiplies with the inverse, in float32: ties fall as they do in training.
    steps = np.rint(values * (np.float32(1.0) / scale)) + zero_point
    limits = np.iinfo(zero_point.dtype)
    return np.clip(steps, limits.min, limits.max).astype(zero_point.dtype)
