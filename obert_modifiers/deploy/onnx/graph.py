"""An ONNX graph by names: its constants, who writes a value and who reads it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
TRANSPOSED = [1, 0]


class Graph:
    """A graph that passes rewrite; :meth:`write` puts what is in use back."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model  # which only `write` changes, but for its nodes
        # Initializers, and the values of Constant nodes.
        self.constants = {one.name: one for one in model.graph.initializer}
        self.nodes: list[NodeProto] = []  # the others, in an order to compute them in
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                self.constants[tensor.name] = tensor
            else:
                self.nodes.append(node)
        # torch keeps one of several equal constants and copies of its name.
        for node in list(self.nodes):
            if node.op_type == "Identity" and node.input[0] in self.constants:
                self.rename(node.output[0], node.input[0])
                self.nodes.remove(node)

    def of_kind(self, *kinds: str) -> Iterator[NodeProto]:
        """Iterate over the nodes of some kinds; the graph may change meanwhile."""
        yield from [node for node in self.nodes if node.op_type in kinds]

    def array(self, name: str) -> np.ndarray:
        """Return the values of a constant, in a new array."""
        return numpy_helper.to_array(self.constants[name])

    def store(self, name: str, array: np.ndarray) -> str:
        """Add a constant, or replace it; return its name."""
        # No ascontiguousarray: it makes vectors of scalars.
        array = np.asarray(array, order="C")
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, name: str, array: np.ndarray) -> str:
        """Add a constant; return its name, another one if this is taken."""
        return self.store(self.free_name(name), array)

    def free_name(self, name: str) -> str:
        """Append underscores to a name until nothing has it."""
        taken = {out for node in self.nodes for out in node.output} | {*self.constants}
        while name in taken:
            name += "_"
        return name

    def writer(self, name: str) -> NodeProto | None:
        """Return the node that computes a value; None for inputs and constants."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[NodeProto]:
        """Return the nodes that read a value, in order."""
        return [node for node in self.nodes if name in node.input]

    def is_output(self, name: str) -> bool:
        """Tell whether a value is an output of the model."""
        return any(one.name == name for one in self.model.graph.output)

    def rename(self, old: str, new: str) -> None:
        """Let all readers of one value read another."""
        for node in self.readers(old):
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def replace(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes into the place of one; none drops it."""
        place = next(i for i, one in enumerate(self.nodes) if one is node)
        self.nodes[place : place + 1] = new

    def insert_after(self, name: str, *new: NodeProto) -> None:
        """Put nodes where a value is known."""
        writers = [i for i, one in enumerate(self.nodes) if name in one.output]
        place = writers[0] + 1 if writers else 0  # inputs are there from the start
        self.nodes[place:place] = new

    def write(self) -> None:
        """Write the constants and nodes that an output needs back into the model."""
        nodes = self.nodes
        while True:
            used = {name for node in nodes for name in node.input}
            used |= {one.name for one in self.model.graph.output}
            needed = [node for node in nodes if not used.isdisjoint(node.output)]
            if len(needed) == len(nodes):
                break
            nodes = needed
        self.constants = {n: one for n, one in self.constants.items() if n in used}
        copies = [helper.make_node("x", [], []) for _ in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)  # the list below may own the originals
        self.nodes = copies
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(copies)
        graph.initializer.extend(self.constants.values())


@dataclass(frozen=True)
class Product:
    """A product of two values that are dequantized."""

    node: NodeProto
    left: NodeProto  # what dequantizes the first factor
    right: NodeProto  # what dequantizes the second, or the matrix it is transposed from
    transposed: bool  # whether the second is a transpose

    def scale(self, graph: Graph) -> np.ndarray:
        """Return the step of its sums."""
        return graph.array(self.left.input[1]) * graph.array(self.right.input[1])


def products_of(graph: Graph, *kinds: str) -> Iterator[Product]:
    """Iterate over the products between Q and DQ nodes; the graph may change."""
    for node in graph.of_kind(*kinds):
        left, right = graph.writer(node.input[0]), dequantizer_of(graph, node.input[1])
        if left is not None and left.op_type == DEQUANTIZE and right is not None:
            flag = bool(attribute_of(node, "transB"))
            turned = is_transposed(graph, node.input[1])
            yield Product(node, left, right, turned != flag)


def dequantizer_of(graph: Graph, name: str) -> NodeProto | None:
    """Find what dequantizes a value, or the matrix that it is the transpose of."""
    node = graph.writer(name)
    if is_transposed(graph, name):
        node = graph.writer(node.input[0])
    return node if node is not None and node.op_type == DEQUANTIZE else None


def is_transposed(graph: Graph, name: str) -> bool:
    """Tell whether a value is the transpose of a matrix."""
    node = graph.writer(name)
    if node is None or node.op_type != "Transpose":
        return False
    return attribute_of(node, "perm") == TRANSPOSED


def make(
    kind: str, inputs: Iterable[str], output: str, name: str = "", **attributes: Any
) -> NodeProto:
    """Make a node with one output."""
    return helper.make_node(kind, [*inputs], [output], name=name or None, **attributes)


def attribute_of(node: NodeProto, name: str) -> Any:
    """Return a node's attribute, None without it."""
    found = [one for one in node.attribute if one.name == name]
    return helper.get_attribute_value(found[0]) if found else None


def axis_of(node: NodeProto) -> int | None:
    """Return the axis of a node, None where it has none."""
    return attribute_of(node, "axis")


def along(axis: int | None, like: np.ndarray, *grid: np.ndarray) -> list[np.ndarray]:
    """Shape scales and zero points so that they broadcast along an axis of an array."""
    if axis is None:
        return [*grid]
    shape = [1] * like.ndim
    shape[axis] = -1
    return [one.reshape(shape) for one in grid]
