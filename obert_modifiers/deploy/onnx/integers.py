"""Products of integers in place of products between Q and DQ nodes."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from obert_modifiers.deploy.onnx.graph import (
    DEQUANTIZE,
    TURN,
    Graph,
    axis_of,
    dequantizer_of,
    is_turned,
)


def write_integer_products(model: onnx.ModelProto, integer_bias: bool) -> int:
    """Write each product of two dequantized values as integers; changes the graph.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``(MatMulInteger(x, w) + rint(bias / s))
    * s`` with ``s = s_x s_w``, the sum in int32. That is what DeepSparse runs fast;
    between Q and DQ nodes it computes in floating point. An integer bias is off by half
    of ``s`` at most: less than a step of what follows, and still enough to lift single
    values over the border of theirs.

    Args:
        model: The graph, with INT8 weights; changed in place.
        integer_bias: False leaves the bias a sum of its own, in floating point.

    Returns:
        Products of integers.
    """
    graph = Graph(model)
    count = 0
    for gemm in graph.of_kind("Gemm"):
        _take_apart(graph, gemm)
    for product in graph.of_kind("MatMul"):
        left = graph.writer(product.input[0])
        right = dequantizer_of(graph, product.input[1])
        if left is not None and left.op_type == DEQUANTIZE and right is not None:
            bias = bias_after(graph, product.output[0]) if integer_bias else None
            _rewrite(graph, product, (left, right), bias)
            count += 1
    graph.write()
    return count


def _take_apart(graph: Graph, gemm: NodeProto) -> None:
    """Make a product and a sum of a Gemm that torch wrote, of a pooler or a head.

    Args:
        graph: The graph.
        gemm: The node; one that is not quantized stays.
    """
    right = graph.writer(gemm.input[1])
    known = {one.name: one.i or one.f for one in gemm.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0} | known
    if right is None or right.op_type != DEQUANTIZE or len(gemm.input) != 3:
        return
    if (plain["alpha"], plain["beta"], plain["transA"]) != (1.0, 1.0, 0):
        return
    out, weight = gemm.output[0], gemm.input[1]
    if plain.get("transB"):
        weight = graph.free_name(f"{weight}_t")
        turn = helper.make_node("Transpose", [gemm.input[1]], [weight], perm=TURN)
        graph.replace(gemm, turn, gemm)
    middle = graph.free_name(f"{out}_product")
    graph.replace(
        gemm,
        helper.make_node("MatMul", [gemm.input[0], weight], [middle], name=gemm.name),
        helper.make_node(
            "Add", [middle, gemm.input[2]], [out], name=f"{gemm.name}_sum"
        ),
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
    factor, turns = right.input[0], []
    if is_turned(graph, product.input[1]):
        factor = graph.free_name(f"{out}_turned")
        turns = [helper.make_node("Transpose", [right.input[0]], [factor], perm=TURN)]
    new = [
        helper.make_node(
            "MatMulInteger",
            [left.input[0], factor, left.input[2], _zero(graph, right)],
            [graph.free_name(f"{out}_int32")],
            name=f"{name}_integer",
        )
    ]
    if bias is not None:
        steps = np.rint(graph.array(constant_of(graph, bias)) / scale)
        stored = graph.store(graph.free_name(f"{out}_bias"), steps.astype(np.int32))
        new.append(
            helper.make_node(
                "Add",
                [new[0].output[0], stored],
                [graph.free_name(f"{out}_with_bias")],
                name=f"{name}_bias",
            )
        )
        out = bias.output[0]
        graph.replace(bias)
    floats = graph.free_name(f"{out}_steps")
    new.append(
        helper.make_node(
            "Cast",
            [new[-1].output[0]],
            [floats],
            name=f"{name}_cast",
            to=TensorProto.FLOAT,
        )
    )
    stored = graph.store(graph.free_name(f"{out}_scale"), scale)
    new.append(helper.make_node("Mul", [floats, stored], [out], name=f"{name}_rescale"))
    graph.replace(product, *turns, *new)


def _scale(graph: Graph, left: NodeProto, right: NodeProto) -> np.ndarray:
    return (graph.array(left.input[1]) * graph.array(right.input[1])).astype(np.float32)


def _zero(graph: Graph, right: NodeProto) -> str:
    """Return the zero point of a weight: one number, also where rows have scales.

    Args:
        graph: The graph.
        right: What dequantizes the weight.

    Returns:
        The constant.
    """
    name = right.input[2]
    if axis_of(right) is None:
        return name
    zeros = graph.array(name)
    return graph.store(graph.free_name(f"{name}_scalar"), zeros.reshape(-1)[0])


def bias_after(graph: Graph, name: str) -> NodeProto | None:
    """Find the addition of a vector that alone reads a value.

    Args:
        graph: The graph.
        name: The value.

    Returns:
        The node, or None.
    """
    readers = graph.readers(name)
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(name):
        return None
    constant = constant_of(graph, readers[0])
    is_vector = constant in graph.constants and graph.array(constant).ndim == 1
    return readers[0] if is_vector else None


def constant_of(graph: Graph, addition: NodeProto) -> str:
    """Return the constant that a node reads first.

    Args:
        graph: The graph.
        addition: The node.

    Returns:
        Its name, empty without one.
    """
    found = [name for name in addition.input if name in graph.constants]
    return found[0] if found else ""
