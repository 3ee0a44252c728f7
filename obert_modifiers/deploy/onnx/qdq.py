"""Weights as INT8 in a graph of Q and DQ nodes, and no such node twice."""

import numpy as np
import onnx
from onnx import NodeProto

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    axis_of,
    dequantizer_of,
)


def store_int8_weights(model: onnx.ModelProto) -> int:
    """Replace what quantizes a constant by the INT8 constant; changes the graph.

    torch writes a quantized weight as floating point and a QuantizeLinear node. Here
    the node is computed, and scales of one element become scalars, as ONNX has them for
    whole tensors. The weight keeps its layout, ``(out, in)``, and is transposed after
    it is dequantized: all engines see through that, an embedding can share the weight,
    and blocks of zeros along the inputs stay in one piece, which gzip packs better.

    Args:
        model: The graph; changed in place.

    Returns:
        Weights that are INT8 now.
    """
    graph = Graph(model)
    count = 0
    for node in graph.of_kind(QUANTIZE, DEQUANTIZE):
        _make_scalars(graph, node)
    for node in graph.of_kind(QUANTIZE):
        if node.input[0] in graph.constants:
            _fold(graph, node)
            count += 1
    graph.write()
    return count


def merge_equal_quantizers(model: onnx.ModelProto) -> int:
    """Let all layers that read one value on one grid share its Q and DQ node.

    Query, key and value each quantize the same hidden state, in training with a
    quantizer of its own.

    Args:
        model: The graph; changed in place.

    Returns:
        Nodes that are gone.
    """
    graph = Graph(model)
    first: dict[tuple[object, ...], str] = {}
    count = 0
    for node in graph.of_kind(QUANTIZE, DEQUANTIZE):
        if any(name not in graph.constants for name in node.input[1:]):
            continue
        grid = [graph.array(name) for name in node.input[1:]]
        # A DequantizeLinear comes after its QuantizeLinear, which has been merged.
        key = (
            node.op_type,
            node.input[0],
            axis_of(node),
            *((one.tobytes(), one.dtype.str) for one in grid),
        )
        kept = first.setdefault(key, node.output[0])
        if kept != node.output[0] and not graph.is_output(node.output[0]):
            graph.rename(node.output[0], kept)
            graph.replace(node)
            count += 1
    graph.write()
    return count


def look_up_before_dequantizing(model: onnx.ModelProto) -> int:
    """Gather rows of INT8 embeddings and dequantize those alone.

    The other way round, an engine that does not see through it makes floating point of
    all rows, in every run or once in memory.

    Args:
        model: The graph; changed in place.

    Returns:
        Embeddings.
    """
    graph = Graph(model)
    count = 0
    for gather in graph.of_kind("Gather"):
        before = graph.writer(gather.input[0])
        if before is None or before.op_type != DEQUANTIZE:
            continue
        if axis_of(before) is not None or axis_of(gather) not in (None, 0):
            continue
        rows = graph.free_name(f"{gather.output[0]}_int8")
        after = onnx.helper.make_node(
            DEQUANTIZE,
            [rows, *before.input[1:]],
            [gather.output[0]],
            name=f"{gather.name}_dequantize",
        )
        gather.input[0] = before.input[0]
        gather.output[0] = rows
        graph.replace(gather, gather, after)
        count += 1
    graph.write()
    return count


def has_qdq_products(model: onnx.ModelProto) -> bool:
    """Tell whether products are written between Q and DQ nodes.

    Args:
        model: Any graph.

    Returns:
        True where a MatMul or Gemm reads two dequantized values.
    """
    graph = Graph(model)
    for product in graph.of_kind("MatMul", "Gemm"):
        sides = [dequantizer_of(graph, name) for name in product.input[:2]]
        if all(sides):
            return True
    return False


def _make_scalars(graph: Graph, node: NodeProto) -> None:
    """Give a Q or DQ node of a whole tensor a scalar scale and zero point."""
    if axis_of(node) is not None:
        return
    for name in node.input[1:]:
        if name in graph.constants and graph.array(name).size == 1:
            graph.store(name, graph.array(name).reshape(()))


def _fold(graph: Graph, node: NodeProto) -> None:
    """Compute a QuantizeLinear node of a constant, and drop it."""
    name = node.input[0]
    scale, zero_point = (graph.array(one) for one in node.input[1:])
    whole = _quantize(graph.array(name), scale, zero_point, axis_of(node))
    stored = graph.store(graph.free_name(f"{name}_int8"), whole)
    graph.rename(node.output[0], stored)
    graph.replace(node)


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
