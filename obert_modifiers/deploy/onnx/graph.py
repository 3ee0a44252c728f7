"""An ONNX graph by names: its constants, who writes a value and who reads it."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
TURN = [1, 0]


class Graph:
    """A graph that passes rewrite; :meth:`write` puts what is in use back.

    Attributes:
        constants: Initializers, and the values of Constant nodes, by name.
        nodes: All other nodes, in an order in which they can be computed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Read a graph.

        Args:
            model: The model; changed by :meth:`write` alone, nodes excepted.
        """
        self._graph = model.graph
        self.constants = {one.name: one for one in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = _named(node)
            else:
                self.nodes.append(node)
        # torch keeps one of several equal constants and copies of its name.
        for node in list(self.nodes):
            if node.op_type == "Identity" and node.input[0] in self.constants:
                self.rename(node.output[0], node.input[0])
                self.nodes.remove(node)

    def of_kind(self, *kinds: str) -> Iterator[NodeProto]:
        """Go through the nodes of some kinds; the graph may change meanwhile.

        Args:
            kinds: Names of operators.

        Yields:
            Nodes.
        """
        yield from [node for node in self.nodes if node.op_type in kinds]

    def array(self, name: str) -> np.ndarray:
        """Return the values of a constant.

        Args:
            name: Its name.

        Returns:
            A new array.
        """
        return numpy_helper.to_array(self.constants[name])

    def store(self, name: str, array: np.ndarray) -> str:
        """Add a constant, or replace it.

        Args:
            name: Its name.
            array: Its values.

        Returns:
            The name.
        """
        # No ascontiguousarray: it makes vectors of scalars.
        array = np.asarray(array, order="C")
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def free_name(self, name: str) -> str:
        """Find a name that nothing has yet.

        Args:
            name: What it should be like.

        Returns:
            The name, with underscores where it was taken.
        """
        taken = {out for node in self.nodes for out in node.output} | {*self.constants}
        while name in taken:
            name += "_"
        return name

    def writer(self, name: str) -> NodeProto | None:
        """Return the node that computes a value.

        Args:
            name: The value.

        Returns:
            The node; None for inputs and constants.
        """
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> Sequence[NodeProto]:
        """Return the nodes that read a value.

        Args:
            name: The value.

        Returns:
            Nodes in order.
        """
        return [node for node in self.nodes if name in node.input]

    def is_output(self, name: str) -> bool:
        """Tell whether a value is an output of the model.

        Args:
            name: The value.

        Returns:
            True for one.
        """
        return any(one.name == name for one in self._graph.output)

    def rename(self, old: str, new: str) -> None:
        """Let all that read one value read another.

        Args:
            old: The value that is read.
            new: The value that takes its place.
        """
        for node in self.readers(old):
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def replace(self, node: NodeProto, *new: NodeProto) -> None:
        """Put nodes into the place of one.

        Args:
            node: The node that goes.
            new: Those that come, in order; none drops the node.
        """
        place = next(i for i, one in enumerate(self.nodes) if one is node)
        self.nodes[place : place + 1] = new

    def insert_after(self, name: str, *new: NodeProto) -> None:
        """Put nodes where a value is known.

        Args:
            name: The value.
            new: The nodes, in order.
        """
        writers = [i for i, one in enumerate(self.nodes) if name in one.output]
        place = writers[0] + 1 if writers else 0  # inputs are there from the start
        self.nodes[place:place] = new

    def write(self) -> None:
        """Write the constants and nodes that an output needs back into the model."""
        nodes = self.nodes
        while True:
            used = {name for node in nodes for name in node.input}
            used |= {one.name for one in self._graph.output}
            needed = [node for node in nodes if not used.isdisjoint(node.output)]
            if len(needed) == len(nodes):
                break
            nodes = needed
        self.nodes = nodes
        kept = [one for name, one in self.constants.items() if name in used]
        copies = [helper.make_node("x", [], []) for _ in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)  # the list below may own the originals
        self.nodes = copies
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(copies)
        self._graph.initializer.extend(kept)


def axis_of(node: NodeProto) -> int | None:
    """Return a node's axis.

    Args:
        node: Any node.

    Returns:
        The attribute, or None without one.
    """
    return next((one.i for one in node.attribute if one.name == "axis"), None)


def dequantizer_of(graph: Graph, name: str) -> NodeProto | None:
    """Find what dequantizes a value, or the value that it is the transposition of.

    Args:
        graph: The graph.
        name: The value.

    Returns:
        The DequantizeLinear node, or None.
    """
    node = graph.writer(name)
    if node is not None and permutation_of(node) == TURN:
        node = graph.writer(node.input[0])
    return node if node is not None and node.op_type == DEQUANTIZE else None


def is_turned(graph: Graph, name: str) -> bool:
    """Tell whether a value is the transposition of a matrix.

    Args:
        graph: The graph.
        name: The value.

    Returns:
        True after such a node.
    """
    node = graph.writer(name)
    return node is not None and permutation_of(node) == TURN


def permutation_of(node: NodeProto) -> list[int] | None:
    """Return what a Transpose does.

    Args:
        node: Any node.

    Returns:
        Its permutation; None for another node, or one that has no permutation.
    """
    found = [list(one.ints) for one in node.attribute if one.name == "perm"]
    return found[0] if node.op_type == "Transpose" and found else None


def _named(node: NodeProto) -> onnx.TensorProto:
    tensor = onnx.TensorProto()
    tensor.CopyFrom(node.attribute[0].t)
    tensor.name = node.output[0]
    return tensor
