"""Linear layers between Q and DQ nodes as Gemm with an integer bias."""

import numpy as np
from onnx import NodeProto

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    axis_of,
    dequantizer_of,
    is_transposed,
    make,
)
from obert_modifiers.deploy.onnx.integers import bias_after, constant_of
from obert_modifiers.deploy.onnx.shapes import Shape, sizes_of


def write_gemms(graph: Graph, integer_bias: bool) -> None:
    """Write quantized linear layers as ONNX Runtime fuses them.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``Gemm(DQ(x), DQ(w), DQ(bias))`` on rows,
    the bias in int32 on the grid of the sum. ONNX Runtime makes one QGemm node of it. A
    MatMul with a sum after it stays two nodes there, with all values in floating point
    between them, and where the sizes are fixed it is computed in floating point.
    Without `integer_bias` the bias stays a sum of its own, in floating point.
    """
    first = graph.model.graph.input[0].name
    sizes = sizes_of(graph)
    rows: dict[str, str] = {}  # dequantized rows by quantized value
    for product in graph.of_kind("MatMul"):
        left = graph.writer(product.input[0])
        right = dequantizer_of(graph, product.input[1])
        if left is None or right is None or right.input[0] not in graph.constants:
            continue
        before = graph.writer(left.input[0])
        if left.op_type != DEQUANTIZE or before is None or before.op_type != QUANTIZE:
            continue
        known = sizes.get(before.input[0])
        is_matrix = known is not None and len(known) == 2  # of a pooler or a head
        transposed = is_transposed(graph, product.input[1])
        matrix = graph.array(right.input[0])
        width, wide = matrix.shape[transposed], matrix.shape[1 - transposed]
        if left.output[0] not in rows:
            rows[left.output[0]] = (
                left.output[0] if is_matrix else _flatten(graph, before, left, width)
            )
        shape = None
        if not is_matrix:
            tokens = first if known and known[:-1] == sizes[first] else None
            shape = _shape_with(graph, tokens, before.input[0], known, wide)
        bias = bias_after(graph, product.output[0]) if integer_bias else None
        _rewrite(graph, product, (rows[left.output[0]], left, right), shape, bias)
    for gemm in graph.of_kind("Gemm"):
        _change_bias(graph, gemm, integer_bias)
    graph.write()


def _change_bias(graph: Graph, gemm: NodeProto, integer_bias: bool) -> None:
    """Put the bias of a quantized Gemm of torch's on the grid, or into a sum.

    torch writes one for a pooler and a head.
    """
    if len(gemm.input) < 3 or gemm.input[2] not in graph.constants:
        return
    left, right = (graph.writer(name) for name in gemm.input[:2])
    if left is None or right is None or not left.op_type == right.op_type == DEQUANTIZE:
        return
    out = gemm.output[0]
    if integer_bias:
        integer = _integer_bias(graph, gemm.input[2], out, left, right)
        gemm.input[2] = integer.output[0]
        graph.replace(gemm, integer, gemm)
    else:
        name = gemm.input.pop()
        gemm.output[0] = graph.free_name(f"{out}_product")
        total = make("Add", [gemm.output[0], name], out, f"{out}_sum")
        graph.replace(gemm, gemm, total)


def _flatten(graph: Graph, quantize: NodeProto, left: NodeProto, width: int) -> str:
    """Quantize a value as ``(tokens, width)``; return it dequantized."""
    base = quantize.output[0]
    shape = graph.add("rows_shape", np.array([-1, width], np.int64))
    names = ("rows", "rows_q", "rows_dq")
    rows, q, dq = (graph.free_name(f"{base}_{name}") for name in names)
    graph.replace(
        left,
        left,
        make("Reshape", [quantize.input[0], shape], rows, f"{base}_to_rows"),
        make(QUANTIZE, [rows, *quantize.input[1:]], q, f"{base}_rows_q"),
        make(DEQUANTIZE, [q, *left.input[1:]], dq, f"{base}_rows_dq"),
    )
    return dq


def _rewrite(
    graph: Graph,
    product: NodeProto,
    sides: tuple[str, NodeProto, NodeProto],
    shape: str | None,
    bias: NodeProto | None,
) -> None:
    rows, left, right = sides
    out, name = product.output[0], product.name
    transposed = int(is_transposed(graph, product.input[1]))
    inputs, new = [rows, right.output[0]], []
    if bias is not None:
        out, constant = bias.output[0], constant_of(graph, bias)
        new.append(_integer_bias(graph, constant, out, left, right))
        inputs.append(new[0].output[0])
    flat = out if shape is None else graph.free_name(f"{out}_rows")
    new.append(make("Gemm", inputs, flat, f"{name}_gemm", transB=transposed))
    if shape is not None:
        new.append(make("Reshape", [flat, shape], out, f"{name}_tokens"))
    if bias is None:
        graph.replace(product, *new)
    else:
        # What the sum reads is there before it: the nodes take its place.
        graph.replace(bias, *new)
        graph.replace(product)


def _integer_bias(
    graph: Graph, constant: str, out: str, left: NodeProto, right: NodeProto
) -> NodeProto:
    """Store a bias in steps of its sum; return the node that dequantizes it."""
    scale = graph.array(left.input[1]) * graph.array(right.input[1])
    steps = np.rint(graph.array(constant) / scale).astype(np.int32)
    given = [
        graph.add(f"{out}_bias", steps),
        graph.add(f"{out}_bias_scale", scale),
        graph.add(f"{out}_bias_zero", np.zeros(scale.shape, np.int32)),
    ]
    name = graph.free_name(f"{out}_bias_dq")
    axis = {} if axis_of(right) is None else {"axis": 0}
    return make(DEQUANTIZE, given, name, name, **axis)


def _shape_with(
    graph: Graph,
    tokens: str | None,
    value: str,
    known: Shape | None,
    width: int,
) -> str:
    """Return the shape of a value, of `known` sizes, with another width.

    `tokens` is an input, ``(batch, sequence)``, if the value has its sizes; its shape
    is computed once in the graph.
    """
    numbers = [one for one in (known or [0])[:-1] if isinstance(one, int) and one]
    if known and len(numbers) == len(known) - 1:
        return graph.add(f"{value}_by_{width}", np.array([*numbers, width], np.int64))
    # Sizes of tokens are there from the start, those of others after their value.
    source, name = (tokens, "tokens") if tokens else (value, f"{value}_outer")
    found = f"{name}_by_{width}"
    if graph.writer(found) is not None:
        return found
    stored = graph.store(f"{found}_width", np.array([width], np.int64))
    new = [make("Concat", [name, stored], found, axis=0)]
    if graph.writer(name) is None:
        outer = {} if tokens else {"end": -1}
        new.insert(0, make("Shape", [source], name, **outer))
    graph.insert_after(name if graph.writer(name) else source, *new)
    return found
