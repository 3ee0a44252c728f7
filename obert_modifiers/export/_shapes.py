"""Reshapes that copy sizes, in place of sizes computed by other nodes."""

import numpy as np
import onnx
from onnx import NodeProto, shape_inference

from obert_modifiers.export._graph import Graph

_COPY = 0  # what Reshape takes for "as it was"


def copy_sizes(model: onnx.ModelProto) -> int:
    """Let a Reshape copy the sizes that stay; changes the graph.

    torch writes ``view(batch, sequence, heads, width)`` of free sizes as seven nodes
    that compute a shape. Reshape knows a sign for a size that stays where it is.

    Args:
        model: The graph, with names for its free sizes; changed in place.

    Returns:
        Reshapes whose shape is a constant now.
    """
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    sizes = {one.name: _sizes(one) for one in inferred.graph.value_info}
    sizes |= {one.name: _sizes(one) for one in inferred.graph.input}
    graph = Graph(model)
    count = 0
    for node in graph.of_kind("Reshape"):
        parts = graph.writer(node.input[1])
        before = sizes.get(node.input[0])
        if parts is None or parts.op_type != "Concat" or before is None:
            continue
        wanted = [
            _part(graph, name, place, before, sizes)
            for place, name in enumerate(parts.input)
        ]
        if None in wanted or wanted.count(-1) > 1:
            continue
        name = graph.free_name(f"{node.output[0]}_shape")
        node.input[1] = graph.store(name, np.array(wanted, np.int64))
        count += 1
    graph.write()
    return count


def fix_sizes(model: onnx.ModelProto, shape: tuple[int, int]) -> None:
    """Give all inputs one batch size and one sequence length; changes the graph.

    Args:
        model: A graph whose inputs are ``(batch, sequence)``; changed in place.
        shape: Both sizes.
    """
    for one in model.graph.input:
        for axis, size in zip(one.type.tensor_type.shape.dim, shape, strict=False):
            axis.dim_value = size
    # What was inferred of free sizes, and names for them, are no longer true.
    del model.graph.value_info[:]
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")


def _part(
    graph: Graph,
    name: str,
    place: int,
    before: list[int | str],
    sizes: dict[str, list[int | str]],
) -> int | None:
    # A number, or that it is copied; None if neither.
    if name in graph.constants:
        array = graph.array(name)
        # A zero among the sizes would be read as a copy.
        return int(array.item()) if array.size == 1 and array.item() else None
    size = _size_read(graph, graph.writer(name), sizes)
    same = place < len(before) and isinstance(size, str) and before[place] == size
    return _COPY if same else None


def _size_read(
    graph: Graph, node: NodeProto | None, sizes: dict[str, list[int | str]]
) -> int | str | None:
    # Back over Unsqueeze, Gather and Shape to what they read.
    if node is None or node.op_type != "Unsqueeze":
        return None
    gather = graph.writer(node.input[0])
    if gather is None or gather.op_type != "Gather":
        return None
    shape = graph.writer(gather.input[0])
    if shape is None or shape.op_type != "Shape" or shape.attribute:
        return None
    known = sizes.get(shape.input[0])
    if known is None or gather.input[1] not in graph.constants:
        return None
    place = int(graph.array(gather.input[1]).item())
    return known[place] if place < len(known) else None


def _sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
    ]
