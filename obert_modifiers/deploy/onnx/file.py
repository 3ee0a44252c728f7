"""An ONNX file that somebody else may have written, or that is damaged."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from obert_modifiers.deploy.onnx.graph import Graph
from obert_modifiers.deploy.weight import Weight, count_nonzero, in_a_layer
from obert_modifiers.sizes import check_there

_PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
# Operators that hand a weight on, by the input it comes in through.
_MOVING = ("Gather", "Transpose", "Identity")
_PASSING = ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
# Inputs that are scales and zero points.
_GRIDS = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}
# Inputs that are the value and its zero point.
_ZEROS = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3), "QLinearMatMul": (3, 5)}


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, with its external data."""
    check_there(path)
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it has no nodes")
        onnx.checker.check_model(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model={path} keeps weights in a file that is missing ({error}); expected "
            "it beside the model; copy it there"
        ) from error
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"model={path} is damaged or no ONNX file ({why}); expected what `obert "
            "export` wrote; export or copy it again"
        ) from error
    return model


def external_files(path: Path) -> list[Path]:
    """Find the files that an ONNX file keeps its larger weights in, mostly none."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return []  # whoever reads it says what is wrong
    stored = [entry for one in model.graph.initializer for entry in one.external_data]
    names = {entry.value for entry in stored if entry.key == "location"}
    return sorted(path.parent / name for name in names)


def onnx_weights(path: Path) -> list[Weight]:
    """Count the constants of an ONNX file that are numbers of the model."""
    model = load_onnx(path)
    initializers = {one.name for one in model.graph.initializer}
    graph = Graph(model)
    multiplied = {
        _source(graph, node.input[_PRODUCTS[node.op_type]], _PASSING): node.name
        for node in graph.of_kind(*_PRODUCTS)
    }
    zeros = {}
    for node in graph.of_kind(*_ZEROS):
        value, zero = _ZEROS[node.op_type]
        if zero < len(node.input) and node.input[zero] in graph.constants:
            zeros[_source(graph, node.input[value], _MOVING)] = node.input[zero]
    named = any(in_a_layer(multiplied.get(name, "")) for name in graph.constants)
    grids = {
        name
        for node in graph.nodes
        for place, name in enumerate(node.input)
        if place in _GRIDS.get(node.op_type, ())
    }
    found = []
    for name, tensor in graph.constants.items():
        least = 1 if name in initializers else 2
        if name in grids or not tensor.dims or math.prod(tensor.dims) < least:
            continue
        array = graph.array(name)
        if not _is_number(graph, name, array.dtype):
            continue
        node = multiplied.get(name)
        prunable = node is not None and array.ndim == 2
        prunable = prunable and (in_a_layer(node) or not named)
        zero = graph.array(zeros[name]).reshape(-1) if name in zeros else None
        nonzero = count_nonzero(array, zero)
        found.append(Weight(name, array.size, nonzero, prunable))
    return found


def _is_number(graph: Graph, name: str, dtype: np.dtype) -> bool:
    """Tell floating point, integers of 8 bits, and biases of products of integers."""
    if dtype.kind == "f" or dtype in (np.int8, np.uint8):
        return True
    return dtype == np.int32 and any(
        node.op_type == "Add"
        or (node.op_type == "DequantizeLinear" and node.input[0] == name)
        for node in graph.readers(name)
    )


def _source(graph: Graph, name: str, passing: Sequence[str]) -> str:
    """Go back from a value over nodes of some kinds."""
    while (writer := graph.writer(name)) and writer.op_type in passing:
        name = writer.input[0]
    return name
