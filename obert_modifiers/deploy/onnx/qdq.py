"""Weights as INT8 in a graph of Q and DQ nodes, and no such node twice."""

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    along,
    axis_of,
    make,
    products_of,
)


def store_int8_weights(graph: Graph) -> int:
    """Replace what quantizes a constant by the INT8 constant.

    torch writes a quantized weight as floating point and a QuantizeLinear node. Here
    the node is computed, and scales of one element become scalars, as ONNX has them for
    whole tensors. The weight keeps its layout, ``(out, in)``, and is transposed after
    it is dequantized: all engines see through that, an embedding can share the weight,
    and blocks of zeros along the inputs stay in one piece, which gzip packs better.
    Returns how many there are.
    """
    for node in graph.of_kind(QUANTIZE, DEQUANTIZE):
        if axis_of(node) is None:
            _make_scalars(graph, node.input[1:])
    weights = [n for n in graph.of_kind(QUANTIZE) if n.input[0] in graph.constants]
    for node in weights:
        _fold(graph, node)
    graph.write()
    return len(weights)


def merge_equal_quantizers(graph: Graph) -> None:
    """Let all that read one value on one grid, as query, key and value, share its Q."""
    first: dict[tuple[object, ...], str] = {}
    for node in graph.of_kind(QUANTIZE, DEQUANTIZE):
        if any(name not in graph.constants for name in node.input[1:]):
            continue
        grid = [graph.array(name) for name in node.input[1:]]
        # A DequantizeLinear comes after its QuantizeLinear, which has been merged.
        values = [(one.tobytes(), one.dtype.str) for one in grid]
        key = (node.op_type, node.input[0], axis_of(node), *values)
        kept = first.setdefault(key, node.output[0])
        if kept != node.output[0] and not graph.is_output(node.output[0]):
            graph.rename(node.output[0], kept)
            graph.replace(node)
    graph.write()


def look_up_before_dequantizing(graph: Graph) -> None:
    """Gather rows of INT8 embeddings and dequantize only those, not all."""
    for gather in graph.of_kind("Gather"):
        before = graph.writer(gather.input[0])
        if before is None or before.op_type != DEQUANTIZE:
            continue
        if axis_of(before) is not None or axis_of(gather) not in (None, 0):
            continue
        rows, name = graph.free_name(f"{gather.output[0]}_int8"), gather.name
        inputs = [rows, *before.input[1:]]
        after = make(DEQUANTIZE, inputs, gather.output[0], f"{name}_dequantize")
        gather.input[0] = before.input[0]
        gather.output[0] = rows
        graph.replace(gather, gather, after)
    graph.write()


def has_qdq_products(graph: Graph) -> bool:
    """Tell whether products are written between Q and DQ nodes."""
    return any(products_of(graph, "MatMul", "Gemm"))


def _make_scalars(graph: Graph, names: Iterable[str]) -> None:
    """Give a Q or DQ node of a whole tensor a scalar scale and zero point."""
    for name in names:
        if name in graph.constants and graph.array(name).size == 1:
            graph.store(name, graph.array(name).reshape(()))


def _fold(graph: Graph, node: NodeProto) -> None:
    """Compute a QuantizeLinear node of a constant, and drop it."""
    name = node.input[0]
    values, scale, zero_point = (graph.array(one) for one in node.input)
    scale, zero_point = along(axis_of(node), values, scale, zero_point)
    # torch multiplies with the inverse, in float32: ties fall as they do in training.
    steps = np.rint(values * (np.float32(1.0) / scale)) + zero_point
    limits = np.iinfo(zero_point.dtype)
    whole = np.clip(steps, limits.min, limits.max).astype(zero_point.dtype)
    graph.rename(node.output[0], graph.add(f"{name}_int8", whole))
    graph.replace(node)
