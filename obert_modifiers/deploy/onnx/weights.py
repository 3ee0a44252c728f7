"""The weights of an ONNX graph."""

from pathlib import Path

import numpy as np

from obert_modifiers.deploy.onnx.file import load_onnx
from obert_modifiers.deploy.onnx.graph import Graph
from obert_modifiers.deploy.weight import Weight, count_nonzero, in_a_layer

_PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
# Operators that hand a weight on, by the input it comes in through.
_PASSING = ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
# Inputs that are scales and zero points.
_GRIDS = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}
_ZERO_POINTS = {"DequantizeLinear": 2, "MatMulInteger": 3, "QLinearMatMul": 5}
_KINDS = ("f", "i1", "u1")  # floating point and 8-bit integers


def onnx_weights(path: Path) -> list[Weight]:
    """Count the constants of an ONNX file that are numbers of the model."""
    model = load_onnx(path)
    initializers = {one.name for one in model.graph.initializer}
    graph = Graph(model)
    multiplied = _multiplied(graph)
    named = any(in_a_layer(node) for node in multiplied.values())
    grids = {
        node.input[place]
        for node in graph.nodes
        for place in _GRIDS.get(node.op_type, ())
        if place < len(node.input)
    }
    found = []
    for name, tensor in graph.constants.items():
        least = 1 if name in initializers else 2
        if name in grids or not tensor.dims or np.prod(tensor.dims) < least:
            continue
        array = graph.array(name)
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        if not kind.startswith(_KINDS) and not (kind == "i4" and _is_bias(graph, name)):
            continue
        node = multiplied.get(name)
        prunable = node is not None and array.ndim == 2
        if prunable and named:
            prunable = in_a_layer(node)
        nonzero = count_nonzero(array, _zero_point(graph, name))
        found.append(Weight(name, array.size, nonzero, prunable))
    return found


def _is_bias(graph: Graph, name: str) -> bool:
    # Of a product of integers; other integers of 32 bits are shapes and places.
    return any(
        node.op_type == "Add"
        or (node.op_type == "DequantizeLinear" and node.input[0] == name)
        for node in graph.readers(name)
    )


def _multiplied(graph: Graph) -> dict[str, str]:
    """Return the name of the node that multiplies with a constant, by its name."""
    found = {}
    for node in graph.of_kind(*_PRODUCTS):
        name = node.input[_PRODUCTS[node.op_type]]
        while (writer := graph.writer(name)) and writer.op_type in _PASSING:
            name = writer.input[0]
        if name in graph.constants:
            found[name] = node.name
    return found


def _zero_point(graph: Graph, name: str) -> np.ndarray | None:
    """Return the integers that stand for zero, None for floating point."""
    for node in graph.readers(name):
        if node.op_type in ("Gather", "Transpose", "Identity"):
            found = _zero_point(graph, node.output[0])
            if found is not None:
                return found
        place = _ZERO_POINTS.get(node.op_type)
        if place is not None and place < len(node.input):
            if node.input[place] in graph.constants:
                return graph.array(node.input[place]).reshape(-1)
    return None
