"""Products of integers in place of products between Q and DQ nodes."""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from obert_modifiers.export._graph import DEQUANTIZE, Graph, axis_of


def write_integer_products(model: onnx.ModelProto) -> int:
    """Write each product of two dequantized values as integers; changes the graph.

    ``MatMul(DQ(x), DQ(w)) + bias`` becomes ``(MatMulInteger(x, w) + rint(bias / s))
    * s`` with ``s = s_x s_w``, the sum in int32. That is what DeepSparse runs fast;
    between Q and DQ nodes it computes in floating point. The bias is off by half of
    ``s`` at most, far below a step of what follows.

    Args:
        model: The graph, with INT8 weights; changed in place.

    Returns:
        Products of integers.
    """
    graph = Graph(model)
    count = 0
    for product in graph.of_kind("MatMul"):
        sides = [graph.writer(name) for name in product.input]
        if all(one is not None and one.op_type == DEQUANTIZE for one in sides):
            _rewrite(graph, product, sides[0], sides[1])  # type: ignore[arg-type]
            count += 1
    graph.write()
    return count


def _rewrite(
    graph: Graph, product: NodeProto, left: NodeProto, right: NodeProto
) -> None:
    out, name = product.output[0], product.name
    scale = _scale(graph, left, right)
    new = [
        helper.make_node(
            "MatMulInteger",
            [left.input[0], right.input[0], left.input[2], _zero(graph, right)],
            [graph.free_name(f"{out}_int32")],
            name=f"{name}_integer",
        )
    ]
    bias = _bias_after(graph, out)
    if bias is not None:
        steps = np.rint(graph.array(_constant_of(graph, bias)) / scale)
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
    graph.replace(product, *new)


def _scale(graph: Graph, left: NodeProto, right: NodeProto) -> np.ndarray:
    return (graph.array(left.input[1]) * graph.array(right.input[1])).astype(np.float32)


def _zero(graph: Graph, right: NodeProto) -> str:
    """Return the zero point of a weight: one number, also where rows have scales."""
    name = right.input[2]
    if axis_of(right) is None:
        return name
    zeros = graph.array(name)
    return graph.store(graph.free_name(f"{name}_scalar"), zeros.reshape(-1)[0])


def _bias_after(graph: Graph, name: str) -> NodeProto | None:
    """Find the addition of a vector that alone reads a value."""
    readers = graph.readers(name)
    if len(readers) != 1 or readers[0].op_type != "Add" or graph.is_output(name):
        return None
    constant = _constant_of(graph, readers[0])
    is_vector = constant in graph.constants and graph.array(constant).ndim == 1
    return readers[0] if is_vector else None


def _constant_of(graph: Graph, addition: NodeProto) -> str:
    found = [name for name in addition.input if name in graph.constants]
    return found[0] if found else ""
