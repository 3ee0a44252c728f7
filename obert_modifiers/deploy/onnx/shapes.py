"""Reshapes that copy sizes, in place of sizes computed by other nodes."""

import numpy as np
import onnx
from onnx import NodeProto, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    permutation_of,
)

Shape = list[int | str]  # numbers and names; 0 for what is not known
Sizes = dict[str, Shape]  # of each value
_COPY = 0  # what Reshape takes for "as it was"
_SUMS = ("Add", "Sub", "Mul", "Div", "Where", "LayerNormalization")
_SAME = (*_SUMS, "Softmax", "Cast", "Erf", "Tanh", QUANTIZE, DEQUANTIZE)
_SMALL = 1 << 16  # values; indices and masks have fewer, embeddings more


def copy_sizes(graph: Graph) -> None:
    """Let a Reshape copy the sizes that stay.

    torch writes ``view(batch, sequence, heads, width)`` of free sizes as seven nodes
    that compute a shape. Reshape knows a sign for a size that stays where it is.
    """
    sizes = _inferred(graph)
    for node in list(graph.nodes):
        _follow(graph, node, sizes)
        parts = graph.writer(node.input[1]) if node.op_type == "Reshape" else None
        before = sizes.get(node.input[0])
        if parts is None or parts.op_type != "Concat" or before is None:
            continue
        wanted = [
            _part(graph, name, place, before, sizes)
            for place, name in enumerate(parts.input)
        ]
        if None in wanted or wanted.count(-1) > 1:
            continue
        if -1 in wanted and all(one and isinstance(one, int) for one in before[2:]):
            # The only size that torch leaves open is a product of numbers.
            rest = int(np.prod(before[2:])) if wanted[:2] == [_COPY, _COPY] else 0
            fixed = int(np.prod([one for one in wanted[2:] if one > 0]))
            wanted = [rest // fixed if one == -1 and rest else one for one in wanted]
        shape = np.array(wanted, np.int64)
        node.input[1] = graph.add(f"{node.output[0]}_shape", shape)
        _follow(graph, node, sizes)
    graph.write()


def sizes_of(graph: Graph) -> Sizes:
    """Tell the sizes of all values of a graph that was just written.

    They are numbers, names of free sizes, and 0 for what is not known.
    """
    sizes = _inferred(graph)
    for node in graph.nodes:
        _follow(graph, node, sizes)
    return sizes


def _inferred(graph: Graph) -> Sizes:
    inferred = shape_inference.infer_shapes(graph.model, data_prop=True)
    # torch names sizes that it does not know after the values; they may be equal.
    free = {
        axis.dim_param
        for one in inferred.graph.input
        for axis in one.type.tensor_type.shape.dim
    }
    values = (*inferred.graph.value_info, *inferred.graph.input)
    sizes: Sizes = {
        one.name: [
            (axis.dim_param in free and axis.dim_param) or axis.dim_value
            for axis in one.type.tensor_type.shape.dim
        ]
        for one in values
    }
    return sizes | {name: list(one.dims) for name, one in graph.constants.items()}


def fold_constants(graph: Graph) -> None:
    """Compute what no input changes, as fixed sizes leave it.

    Those are indices and masks; what is larger, such as embeddings, stays.
    """
    for node in list(graph.nodes):
        known = all(name in graph.constants for name in node.input if name)
        if not known or node.op_type in (QUANTIZE, DEQUANTIZE) or len(node.output) > 1:
            continue
        given = [graph.constants[name] for name in dict.fromkeys(node.input) if name]
        int8 = any(one.data_type == onnx.TensorProto.INT8 for one in given)
        if graph.is_output(node.output[0]) or int8:  # INT8 weights stay what they are
            continue
        out = helper.make_empty_tensor_value_info(node.output[0])
        alone = helper.make_graph([node], "constant", [], [out], given)
        versions = list(graph.model.opset_import)
        made = helper.make_model(alone, opset_imports=versions)
        array = np.asarray(ReferenceEvaluator(made).run(None, {})[0])
        if array.size <= _SMALL:
            graph.store(node.output[0], array)
            graph.replace(node)
    graph.write()


def fix_sizes(model: onnx.ModelProto, shape: tuple[int, int]) -> None:
    """Give all inputs one batch size and one sequence length; changes the graph."""
    for one in model.graph.input:
        for axis, size in zip(one.type.tensor_type.shape.dim, shape, strict=False):
            axis.dim_value = size
    # What was inferred of free sizes, and names for them, are no longer true.
    del model.graph.value_info[:]
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")


def _follow(graph: Graph, node: NodeProto, sizes: Sizes) -> None:
    """Tell the sizes of what a node writes, where ONNX's own inference does not know.

    It does not where one side of a sum has sizes that were computed. A free size stays
    what it is in a sum: the other side has the same one, or is repeated.
    """
    known = [sizes.get(name) for name in node.input]
    first = known[0] if known else None
    found: Shape | None = None
    if node.op_type in (QUANTIZE, DEQUANTIZE, "LayerNormalization"):
        found = first
    elif node.op_type in _SAME:
        found = _broadcast(known)
    elif node.op_type == "MatMul" and first and known[1]:
        found = _product(first, known[1])
    elif node.op_type == "Transpose" and first:
        turned = permutation_of(node)
        fits = turned is not None and len(turned) == len(first)
        found = [first[axis] for axis in turned] if turned and fits else None
    elif node.op_type == "Reshape" and first and node.input[1] in graph.constants:
        wanted = graph.array(node.input[1]).tolist()
        if len(wanted) <= len(first) or 0 not in wanted[len(first) :]:
            found = [first[i] if one == _COPY else one for i, one in enumerate(wanted)]
            found = None if -1 in found else found
    there = sizes.get(node.output[0])
    if found and not (there and all(there)):
        sizes[node.output[0]] = found


def _broadcast(known: list[Shape | None]) -> Shape | None:
    """Tell the sizes of a sum, 0 where one side has a size that is not known."""
    if not known or any(one is None for one in known):
        return None
    sides = [one for one in known if one is not None]
    longest = max(map(len, sides))
    found: Shape = []
    for axis in range(-longest, 0):
        here = {one[axis] for one in sides if -axis <= len(one)}
        # Of 1 and 0 it is not known which one is repeated.
        numbers = [one for one in here if isinstance(one, int) and one > 1]
        names = [one for one in here if isinstance(one, str)]
        sure = numbers or names or (here & {0} and [0]) or [1]
        found.append(sure[0] if len(sure) == 1 else 0)
    return found


def _product(first: Shape, second: Shape) -> Shape | None:
    if min(len(first), len(second)) < 2:
        return None
    left, right = first[:-2], second[:-2]
    outer = _broadcast([left, right]) if left and right else left or right
    return [*(outer or []), first[-2], second[-1]]


def _part(
    graph: Graph,
    name: str,
    place: int,
    before: Shape,
    sizes: Sizes,
) -> int | None:
    # A number, or that it is copied; None if neither.
    if name in graph.constants:
        array = graph.array(name)
        # A zero among the sizes would be read as a copy.
        return int(array.item()) if array.size == 1 and array.item() else None
    size = _size_read(graph, graph.writer(name), sizes)
    same = place < len(before) and isinstance(size, str) and before[place] == size
    return _COPY if same else None


def _size_read(graph: Graph, node: NodeProto | None, sizes: Sizes) -> int | str | None:
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
