"""Products of quantized values, written as the engines compute them in integers."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    TRANSPOSED,
    Graph,
    Product,
    attribute_of,
    axis_of,
    make,
    products_of,
)
from obert_modifiers.deploy.onnx.shapes import Size, sizes_of


def write_integer_products(graph: Graph, integer_bias: bool) -> None:
    """Write each product of two dequantized values as integers, for DeepSparse.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``(MatMulInteger(x, w) + rint(bias / s))
    * s`` with ``s = s_x s_w``, the sum in int32; between Q and DQ nodes DeepSparse
    computes in floating point. An integer bias is off by half of ``s`` at most: less
    than a step of what follows, and still enough to lift single values over the border
    of theirs. Without `integer_bias` the bias stays a sum in floating point.
    """
    for gemm in graph.of_kind("Gemm"):
        _take_apart(graph, gemm)
    for product in products_of(graph, "MatMul"):
        out = product.node.output[0]
        bias = _bias_after(graph, out) if integer_bias else None
        _write_integers(graph, product, bias)
    graph.write()


def write_gemms(graph: Graph, integer_bias: bool, longest: int) -> None:
    """Write quantized linear layers as ONNX Runtime fuses them.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``Gemm(DQ(x), DQ(w), DQ(bias))`` on rows,
    the bias in int32 on the grid of the sum, which is one QGemm node there. A MatMul
    and a sum stay two nodes with floating point between them, and where the sizes are
    fixed are computed in it. Without `integer_bias` the bias stays a sum in floating
    point.
    """
    first = graph.model.graph.input[0].name
    sizes = sizes_of(graph, longest)
    rows: dict[str, str] = {}  # dequantized rows by dequantized value
    for product in products_of(graph, "MatMul"):
        value, weight = product.left.output[0], product.right.input[0]
        before = graph.writer(product.left.input[0])
        if before is None or before.op_type != QUANTIZE:
            continue
        if weight not in graph.constants:
            continue
        dims = list(graph.constants[weight].dims)
        width, wide = dims[::-1] if product.transposed else dims
        known = sizes.get(before.input[0])
        is_matrix = known is not None and len(known) == 2  # of a pooler or a head
        if value not in rows:
            flat = None if is_matrix else _flatten(graph, before, product.left, width)
            rows[value] = flat or value
        shape = None
        if not is_matrix:
            source = first if known and known[:-1] == sizes[first] else None
            shape = _shape_with(graph, source, before.input[0], known or [0], wide)
        out = product.node.output[0]
        bias = _bias_after(graph, out) if integer_bias else None
        _write_gemm(graph, product, rows[value], shape, bias)
    for product in products_of(graph, "Gemm"):
        _change_bias(graph, product, integer_bias)
    graph.write()


def _take_apart(graph: Graph, gemm: NodeProto) -> None:
    """Make a product and a sum of torch's quantized Gemm, of a pooler or a head."""
    right = graph.writer(gemm.input[1])
    if right is None or right.op_type != DEQUANTIZE or len(gemm.input) != 3:
        return
    factors = {attribute_of(gemm, name) for name in ("alpha", "beta")}
    if not factors <= {1.0, None} or attribute_of(gemm, "transA"):
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


def _write_integers(graph: Graph, product: Product, bias: NodeProto | None) -> None:
    left, right = product.left, product.right
    out, name = product.node.output[0], product.node.name
    factor, new = right.input[0], []
    if product.transposed:
        factor = graph.free_name(f"{out}_turned")
        new.append(make("Transpose", [right.input[0]], factor, perm=TRANSPOSED))
    zero = right.input[2]
    if axis_of(right) is not None:  # one number, also where rows have scales
        zero = graph.add(f"{zero}_scalar", graph.array(zero).reshape(-1)[0])
    total = graph.free_name(f"{out}_int32")
    inputs = [left.input[0], factor, left.input[2], zero]
    new.append(make("MatMulInteger", inputs, total, f"{name}_integer"))
    scale = product.scale(graph).astype(np.float32)
    if bias is not None:
        steps = _bias_steps(graph, _constant_of(graph, bias), scale)
        stored = graph.add(f"{out}_bias", steps)
        whole = graph.free_name(f"{out}_with_bias")
        new.append(make("Add", [total, stored], whole, f"{name}_bias"))
        total, out = whole, bias.output[0]
        graph.replace(bias)
    floats = graph.free_name(f"{out}_steps")
    stored = graph.add(f"{out}_scale", scale)
    new.append(make("Cast", [total], floats, f"{name}_cast", to=TensorProto.FLOAT))
    new.append(make("Mul", [floats, stored], out, f"{name}_rescale"))
    graph.replace(product.node, *new)


def _write_gemm(
    graph: Graph, product: Product, rows: str, shape: str | None, bias: NodeProto | None
) -> None:
    out, name = product.node.output[0], product.node.name
    inputs, new = [rows, product.right.output[0]], []
    if bias is not None:
        out = bias.output[0]
        new.append(_integer_bias(graph, product, _constant_of(graph, bias), out))
        inputs.append(new[0].output[0])
    flat = out if shape is None else graph.free_name(f"{out}_rows")
    turned = int(product.transposed)
    new.append(make("Gemm", inputs, flat, f"{name}_gemm", transB=turned))
    if shape is not None:
        new.append(make("Reshape", [flat, shape], out, f"{name}_tokens"))
    if bias is None:
        graph.replace(product.node, *new)
    else:
        # What the sum reads is there before it: the nodes take its place.
        graph.replace(bias, *new)
        graph.replace(product.node)


def _change_bias(graph: Graph, product: Product, integer_bias: bool) -> None:
    """Put the bias of torch's Gemm, of a pooler or head, on the grid or into a sum."""
    gemm = product.node
    if len(gemm.input) < 3 or gemm.input[2] not in graph.constants:
        return
    out = gemm.output[0]
    if integer_bias:
        integer = _integer_bias(graph, product, gemm.input[2], out)
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


def _shape_with(
    graph: Graph, tokens: str | None, value: str, known: Sequence[Size], width: int
) -> str:
    """Return the shape of a value, of `known` sizes, with another width.

    `tokens` is an input, ``(batch, sequence)``, if the value has its sizes; its shape
    is computed once in the graph.
    """
    outer = known[:-1]
    if outer and all(isinstance(size, int) and size for size in outer):
        return graph.add(f"{value}_by_{width}", np.array([*outer, width], np.int64))
    # Sizes of tokens are there from the start, those of others after their value.
    source, name = (tokens, "tokens") if tokens else (value, f"{value}_outer")
    found = f"{name}_by_{width}"
    if graph.writer(found) is not None:
        return found
    stored = graph.store(f"{found}_width", np.array([width], np.int64))
    new = [make("Concat", [name, stored], found, axis=0)]
    if graph.writer(name) is None:
        outer_only = {} if tokens else {"end": -1}
        new.insert(0, make("Shape", [source], name, **outer_only))
    graph.insert_after(name if graph.writer(name) else source, *new)
    return found


def _integer_bias(graph: Graph, product: Product, constant: str, out: str) -> NodeProto:
    """Store a bias in steps of its sum; return the node that dequantizes it."""
    scale = product.scale(graph)
    given = [
        graph.add(f"{out}_bias", _bias_steps(graph, constant, scale)),
        graph.add(f"{out}_bias_scale", scale),
        graph.add(f"{out}_bias_zero", np.zeros(scale.shape, np.int32)),
    ]
    name = graph.free_name(f"{out}_bias_dq")
    axis = {} if axis_of(product.right) is None else {"axis": 0}
    return make(DEQUANTIZE, given, name, name, **axis)


def _bias_steps(graph: Graph, constant: str, scale: np.ndarray) -> np.ndarray:
    return np.rint(graph.array(constant) / scale).astype(np.int32)


def _bias_after(graph: Graph, name: str) -> NodeProto | None:
    """Find the addition of a vector, if nothing else reads a value."""
    readers = graph.readers(name)
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(name):
        return None
    constant = graph.constants.get(_constant_of(graph, readers[0]))
    return readers[0] if constant is not None and len(constant.dims) == 1 else None


def _constant_of(graph: Graph, addition: NodeProto) -> str:
    """Return the constant that a node reads first, empty without one."""
    return next((name for name in addition.input if name in graph.constants), "")
