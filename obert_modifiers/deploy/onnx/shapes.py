"""The sizes of a graph's values, and reshapes and constants that follow from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from obert_modifiers.deploy.onnx.graph import DEQUANTIZE, QUANTIZE, Graph

# A number (0 where it is not known), or what a free size is for few and many tokens.
Size = int | tuple[int, int]
_FEW, _MANY = (5, 3), (7, 4)  # rows and tokens, of many at least
_COPY, _REST = 0, -1  # what Reshape takes for "as it was" and "what is left"
_SMALL = 1 << 16  # values; indices and masks have fewer, embeddings more


def copy_sizes(graph: Graph, longest: int) -> None:
    """Let a Reshape copy the sizes that stay.

    torch writes ``view(batch, sequence, heads, width)`` of free sizes as seven nodes
    that compute a shape. Reshape knows a sign for a size that stays where it is, and
    another for one size of any kind.
    """
    sizes = sizes_of(graph, longest)
    for node in graph.of_kind("Reshape"):
        before, after = sizes.get(node.input[0]), sizes.get(node.output[0])
        if node.input[1] in graph.constants or before is None or after is None:
            continue
        wanted = []
        for place, size in enumerate(after):
            stays = isinstance(size, tuple) and before[place : place + 1] == [size]
            number = size if isinstance(size, int) and size else _REST
            wanted.append(_COPY if stays else number)
        if wanted.count(_REST) <= 1:
            shape = np.array(wanted, np.int64)
            node.input[1] = graph.add(f"{node.output[0]}_shape", shape)
    graph.write()


def sizes_of(graph: Graph, longest: int) -> dict[str, list[Size]]:
    """Tell the sizes of the values of a graph that was just written.

    Sizes that are the same for few tokens and for the `longest` that the graph was
    traced with are taken for the same at every length.
    """
    few = _sizes_at(graph, _FEW)
    many = _sizes_at(graph, (_MANY[0], max(_MANY[1], longest)))
    return {
        name: [_size(pair) for pair in zip(few[name], many[name], strict=True)]
        for name in few.keys() & many.keys()
    }


def _size(seen: tuple[int, int]) -> Size:
    if 0 in seen:
        return 0
    return seen[0] if seen[0] == seen[1] else seen


def _sizes_at(graph: Graph, shape: tuple[int, int]) -> dict[str, list[int]]:
    """Infer the sizes of all values where the free sizes are those of a shape.

    ONNX's inference of a whole graph stops where nodes compute a size. Here their
    numbers are computed, node by node.
    """
    model = onnx.ModelProto(graph=onnx.GraphProto(input=graph.model.graph.input))
    if not all(axis.dim_value for axis in _axes(model.graph.input[0])):
        fix_sizes(model, shape)
    types = {one.name: one for one in model.graph.input}
    vectors: dict[str, TensorProto] = {}  # and numbers: all that sizes are made of

    def know(tensor: TensorProto) -> None:
        name, kind, dims = tensor.name, tensor.data_type, tensor.dims
        types[name] = helper.make_tensor_value_info(name, kind, dims)
        if len(dims) <= 1:
            vectors[name] = tensor

    for tensor in graph.constants.values():
        know(tensor)
    for node in graph.nodes:
        out = node.output[0]
        if node.op_type == "Shape" and node.input[0] in types and not node.attribute:
            sizes = [axis.dim_value for axis in _axes(types[node.input[0]])]
            if all(sizes):
                know(numpy_helper.from_array(np.array(sizes, np.int64), out))
                continue
        if _can_compute(node, vectors):
            know(numpy_helper.from_array(_compute(graph, node, vectors), out))
            continue
        read = dict.fromkeys(node.input)
        given = [types[name] for name in read if name in types]
        constants = [vectors[name] for name in read if name in vectors]
        lone = helper.make_graph([node], "node", given, [], constants)
        inferred = shape_inference.infer_shapes(_model(graph, lone)).graph
        types |= {one.name: one for one in inferred.value_info}
    return {
        name: [axis.dim_value for axis in _axes(one)]
        for name, one in types.items()
        if one.type.tensor_type.HasField("shape")
    }


def _axes(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _can_compute(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    if node.op_type in (QUANTIZE, DEQUANTIZE) or len(node.output) > 1:
        return False
    return all(name in constants for name in node.input if name)


def _compute(
    graph: Graph, node: NodeProto, constants: Mapping[str, TensorProto]
) -> np.ndarray:
    """Compute a node that reads nothing but constants."""
    given = [constants[name] for name in dict.fromkeys(node.input) if name]
    out = helper.make_empty_tensor_value_info(node.output[0])
    lone = helper.make_graph([node], "node", [], [out], given)
    return np.asarray(ReferenceEvaluator(_model(graph, lone)).run(None, {})[0])


def _model(graph: Graph, lone: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(lone, opset_imports=list(graph.model.opset_import))


def fold_constants(graph: Graph) -> None:
    """Compute the indices and masks that no input changes; weights stay."""
    for node in list(graph.nodes):
        if graph.is_output(node.output[0]) or not _can_compute(node, graph.constants):
            continue
        kinds = [graph.constants[name].data_type for name in node.input if name]
        if TensorProto.INT8 in kinds:
            continue
        array = _compute(graph, node, graph.constants)
        if array.size <= _SMALL:
            graph.store(node.output[0], array)
            graph.replace(node)
    graph.write()


def fix_sizes(model: onnx.ModelProto, shape: tuple[int, int]) -> None:
    """Give all inputs one batch size and one sequence length; changes the graph."""
    for one in model.graph.input:
        for axis, size in zip(_axes(one), shape, strict=False):
            axis.dim_value = size
    # What was inferred of free sizes, and names for them, are no longer true.
    del model.graph.value_info[:]
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")
