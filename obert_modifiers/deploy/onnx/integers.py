"""Products of integers in place of products between Q and DQ nodes."""

import numpy as np
from onnx import NodeProto, TensorProto

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    TRANSPOSED,
    Graph,
    attribute_of,
    axis_of,
    dequantizer_of,
    is_transposed,
    make,
)


def write_integer_products(graph: Graph, integer_bias: bool) -> None:
    """Write each product of two dequantized values as integers.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``(MatMulInteger(x, w) + rint(bias / s))
    * s`` with ``s = s_x s_w``, the sum in int32. That is what DeepSparse runs fast;
    between Q and DQ nodes it computes in floating point. An integer bias is off by half
    of ``s`` at most: less than a step of what follows, and still enough to lift single
    values over the border of theirs. Without it the bias stays a sum of its own, in
    floating point.
    """
    for gemm in graph.of_kind("Gemm"):
        _take_apart(graph, gemm)
    for product in graph.of_kind("MatMul"):
        left = graph.writer(product.input[0])
        right = dequantizer_of(graph, product.input[1])
        if left is not None and left.op_type == DEQUANTIZE and right is not None:
            bias = bias_after(graph, product.output[0]) if integer_bias else None
            _rewrite(graph, product, (left, right), bias)
    graph.write()


def _take_apart(graph: Graph, gemm: NodeProto) -> None:
    """Make a product and a sum of torch's quantized Gemm, of a pooler or a head."""
    right = graph.writer(gemm.input[1])
    if right is None or right.op_type != DEQUANTIZE or len(gemm.input) != 3:
        return
    factors = [attribute_of(gemm, name) for name in ("alpha", "beta")]
    if not set(factors) <= {1.0, None} or attribute_of(gemm, "transA"):
        return
    out, weight = gemm.output[0], gemm.input[1]
    if attribute_of(gemm, "transB"):
        weight = graph.free_name(f"{weight}_t")
        turn = make("Transpose", [gemm.input[1]], weight, perm=TRANSPOSED)
        graph.replace(gemm, turn, gemm)
    middle = graph.free_name(f"{out}_product")
    graph.replace(
        gemm,
        make("MatMul", [gemm.input[0], weight], middle, gemm.name),
        make("Add", [middle, gemm.input[2]], out, f"{gemm.name}_sum"),
    )


def _rewrite(
    graph: Graph,
    product: NodeProto,
    sides: tuple[NodeProto, NodeProto],
    bias: NodeProto | None,
) -> None:
    left, right = sides
    out, name = product.output[0], product.name
    scale = _scale(graph, left, right)
    factor, new = right.input[0], []
    if is_transposed(graph, product.input[1]):
        factor = graph.free_name(f"{out}_turned")
        new.append(make("Transpose", [right.input[0]], factor, perm=TRANSPOSED))
    zero = right.input[2]
    if axis_of(right) is not None:  # one number, also where rows have scales
        zero = graph.add(f"{zero}_scalar", graph.array(zero).reshape(-1)[0])
    total = graph.free_name(f"{out}_int32")
    inputs = [left.input[0], factor, left.input[2], zero]
    new.append(make("MatMulInteger", inputs, total, f"{name}_integer"))
    if bias is not None:
        steps = np.rint(graph.array(constant_of(graph, bias)) / scale)
        stored = graph.add(f"{out}_bias", steps.astype(np.int32))
        whole = graph.free_name(f"{out}_with_bias")
        new.append(make("Add", [total, stored], whole, f"{name}_bias"))
        total, out = whole, bias.output[0]
        graph.replace(bias)
    floats = graph.free_name(f"{out}_steps")
    stored = graph.add(f"{out}_scale", scale)
    new += [
        make("Cast", [total], floats, f"{name}_cast", to=TensorProto.FLOAT),
        make("Mul", [floats, stored], out, f"{name}_rescale"),
    ]
    graph.replace(product, *new)


def _scale(graph: Graph, left: NodeProto, right: NodeProto) -> np.ndarray:
    return (graph.array(left.input[1]) * graph.array(right.input[1])).astype(np.float32)


def bias_after(graph: Graph, name: str) -> NodeProto | None:
    """Find the addition of a vector, if nothing else reads a value."""
    readers = graph.readers(name)
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(name):
        return None
    constant = constant_of(graph, readers[0])
    is_vector = constant in graph.constants and graph.array(constant).ndim == 1
    return readers[0] if is_vector else None


def constant_of(graph: Graph, addition: NodeProto) -> str:
    """Return the constant that a node reads first, empty without one."""
    return next((name for name in addition.input if name in graph.constants), "")
