"""Linear layers between Q and DQ nodes as Gemm with an integer bias."""

import numpy as np
import onnx
from onnx import NodeProto, helper

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    QUANTIZE,
    Graph,
    axis_of,
    dequantizer_of,
    is_turned,
)
from obert_modifiers.deploy.onnx.integers import bias_after, constant_of
from obert_modifiers.deploy.onnx.shapes import sizes_of


def write_gemms(model: onnx.ModelProto, integer_bias: bool) -> int:
    """Write quantized linear layers as ONNX Runtime fuses them; changes the graph.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``Gemm(DQ(x), DQ(w), DQ(bias))`` on rows,
    the bias in int32 on the grid of the sum. ONNX Runtime makes one QGemm node of it. A
    MatMul with a sum after it stays two nodes there, with all values in floating point
    between them, and where the sizes are fixed it is computed in floating point.

    Args:
        model: The graph, with INT8 weights and merged quantizers; changed in place.
        integer_bias: False leaves the bias a sum of its own, in floating point.

    Returns:
        Gemm nodes.
    """
    graph = Graph(model)
    first = model.graph.input[0].name
    sizes = sizes_of(model, graph)
    rows: dict[str, str] = {}  # dequantized rows by quantized value
    count = 0
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
        turned = is_turned(graph, product.input[1])
        matrix = graph.array(right.input[0])
        width, wide = matrix.shape[turned], matrix.shape[1 - turned]
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
        count += 1
    for gemm in graph.of_kind("Gemm"):
        count += _change_bias(graph, gemm, integer_bias)
    graph.write()
    return count


def _change_bias(graph: Graph, gemm: NodeProto, integer_bias: bool) -> bool:
    """Put the bias of a Gemm that torch wrote, of a pooler or a head, on the grid.

    Args:
        graph: The graph.
        gemm: The node.
        integer_bias: False makes a sum of its own of it.

    Returns:
        False for one that is not quantized, or has been done.
    """
    if len(gemm.input) < 3:
        return False
    left, right = (graph.writer(name) for name in gemm.input[:2])
    if left is None or right is None or gemm.input[2] not in graph.constants:
        return False
    if not left.op_type == right.op_type == DEQUANTIZE:
        return False
    if not integer_bias:
        out, name = gemm.output[0], gemm.input.pop()
        gemm.output[0] = graph.free_name(f"{out}_product")
        total = helper.make_node(
            "Add", [gemm.output[0], name], [out], name=f"{out}_sum"
        )
        graph.replace(gemm, gemm, total)
        return True
    bias = helper.make_node("Add", [gemm.input[2]], [gemm.output[0]])
    integer = _integer_bias(graph, bias, left, right)
    gemm.input[2] = integer.output[0]
    graph.replace(gemm, integer, gemm)
    return True


def _flatten(graph: Graph, quantize: NodeProto, left: NodeProto, width: int) -> str:
    """Quantize a value as rows of tokens.

    Args:
        graph: The graph.
        quantize: What quantizes the value now.
        left: What dequantizes it.
        width: Values of a token.

    Returns:
        The dequantized rows.
    """
    base = quantize.output[0]
    shape = graph.store(graph.free_name("rows_shape"), np.array([-1, width], np.int64))
    names = [graph.free_name(f"{base}_{end}") for end in ("rows", "rows_q", "rows_dq")]
    graph.replace(
        left,
        left,
        helper.make_node(
            "Reshape", [quantize.input[0], shape], [names[0]], name=f"{base}_to_rows"
        ),
        helper.make_node(
            QUANTIZE, [names[0], *quantize.input[1:]], [names[1]], name=f"{base}_rows_q"
        ),
        helper.make_node(
            DEQUANTIZE, [names[1], *left.input[1:]], [names[2]], name=f"{base}_rows_dq"
        ),
    )
    return names[2]


def _rewrite(
    graph: Graph,
    product: NodeProto,
    sides: tuple[str, NodeProto, NodeProto],
    shape: str | None,
    bias: NodeProto | None,
) -> None:
    rows, left, right = sides
    out, name = product.output[0], product.name
    turned = is_turned(graph, product.input[1])
    inputs = [rows, right.output[0]]
    new = []
    if bias is not None:
        new.append(_integer_bias(graph, bias, left, right))
        inputs.append(new[0].output[0])
        out = bias.output[0]
    flat = out if shape is None else graph.free_name(f"{out}_rows")
    new.append(
        helper.make_node(
            "Gemm", inputs, [flat], name=f"{name}_gemm", transB=int(turned)
        )
    )
    if shape is not None:
        new.append(
            helper.make_node("Reshape", [flat, shape], [out], name=f"{name}_tokens")
        )
    if bias is None:
        graph.replace(product, *new)
    else:
        # What the sum reads is there before it: the nodes take its place.
        graph.replace(bias, *new)
        graph.replace(product)


def _integer_bias(
    graph: Graph, bias: NodeProto, left: NodeProto, right: NodeProto
) -> NodeProto:
    scale = graph.array(left.input[1]) * graph.array(right.input[1])
    name = constant_of(graph, bias)
    steps = np.rint(graph.array(name) / scale).astype(np.int32)
    per_row = axis_of(right) is not None
    given = [
        graph.store(graph.free_name(f"{bias.output[0]}_bias"), steps),
        graph.store(graph.free_name(f"{bias.output[0]}_bias_scale"), scale),
        graph.store(
            graph.free_name(f"{bias.output[0]}_bias_zero"),
            np.zeros(scale.shape, np.int32),
        ),
    ]
    out = graph.free_name(f"{bias.output[0]}_bias_dq")
    axis = {"axis": 0} if per_row else {}
    return helper.make_node(DEQUANTIZE, given, [out], name=out, **axis)


def _shape_with(
    graph: Graph,
    tokens: str | None,
    value: str,
    known: list[int | str] | None,
    width: int,
) -> str:
    """Return the shape of a value with another width.

    Args:
        graph: The graph.
        tokens: An input, ``(batch, sequence)``, where the value has its sizes; its
            shape is computed once in the graph.
        value: The value.
        known: Its sizes, as far as they are known.
        width: The last size of the shape.

    Returns:
        The value that holds it.
    """
    numbers = [one for one in (known or [0])[:-1] if isinstance(one, int) and one]
    if known and len(numbers) == len(known) - 1:
        name = graph.free_name(f"{value}_by_{width}")
        return graph.store(name, np.array([*numbers, width], np.int64))
    # Sizes of tokens are there from the start, those of others after their value.
    source, name = (tokens, "tokens") if tokens else (value, f"{value}_outer")
    found = f"{name}_by_{width}"
    if graph.writer(found) is not None:
        return found
    stored = graph.store(f"{found}_width", np.array([width], np.int64))
    new = [helper.make_node("Concat", [name, stored], [found], axis=0)]
    if graph.writer(name) is None:
        new.insert(0, helper.make_node("Shape", [source], [name]))
        if not tokens:
            new[0].attribute.append(helper.make_attribute("end", -1))
    graph.insert_after(name if graph.writer(name) else source, *new)
    return found
