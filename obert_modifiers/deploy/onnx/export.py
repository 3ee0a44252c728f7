"""Export to ONNX, as the engines want it: free sizes and QDQ, or fixed and integers."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import Tensor, nn

from obert_modifiers.core.positions import usable_length
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.deploy.onnx.gemm import write_gemms
from obert_modifiers.deploy.onnx.graph import DEQUANTIZE, QUANTIZE
from obert_modifiers.deploy.onnx.integers import write_integer_products
from obert_modifiers.deploy.onnx.qdq import (
    look_up_before_dequantizing,
    merge_equal_quantizers,
    store_int8_weights,
)
from obert_modifiers.deploy.onnx.saturation import (
    saturating_layers,
    store_in_floating_point,
    store_unsigned,
)
from obert_modifiers.deploy.onnx.shapes import copy_sizes, fold_constants
from obert_modifiers.deploy.onnx.trace import trace
from obert_modifiers.deploy.samples import longest_sample, repeated

# DeepSparse knows a layer's norm by the operators that opset 17 makes one of.
OPSETS = {"onnxruntime": 17, "openvino": 17, "deepsparse": 14}
TARGETS = tuple(OPSETS)
_ROWS = 2  # a trace of one row takes its size for a constant here and there
# What becomes of weights whose sums a CPU without VNNI cannot hold. DeepSparse's own
# kernels are not known, and take no other weights.
_SATURATING = {
    "onnxruntime": store_unsigned,
    "openvino": store_in_floating_point,
    "deepsparse": saturating_layers,
}


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The file.
        size_bytes: Its size.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        quantize_nodes: QuantizeLinear nodes, one for each quantized activation.
        dequantize_nodes: DequantizeLinear nodes, for activations and weights.
        int8_weights: Weights that are stored as INT8.
        target: The engine that it was written for.
        integer_products: MatMulInteger nodes.
        saturating: Pairs of weights whose sums a CPU without VNNI cannot hold, by
            layer. Those layers are stored as UINT8 for ``onnxruntime`` and as float32
            for ``openvino``, which every CPU computes alike; for ``deepsparse`` they
            stay as they are.
    """

    path: Path
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantize_nodes: int
    dequantize_nodes: int
    int8_weights: int
    target: str = "onnxruntime"
    integer_products: int = 0
    saturating: Mapping[str, int] = field(default_factory=dict)


def export_onnx(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: str | Path,
    target: str = "onnxruntime",
    shape: tuple[int, int] | None = None,
    integer_bias: bool = False,
) -> OnnxExport:
    """Write a model as ONNX for an engine.

    The outputs have the names that the model gives them: ``logits``, or
    ``start_logits`` and ``end_logits``. The weights of a model that QATModifier
    trained are stored as INT8; its ranges are taken as they are now. The model stays
    as it is, and so does the mode of its modules.

    For ``onnxruntime`` and ``openvino``: opset 17, free batch size and sequence length,
    and Q and DQ nodes around what is quantized. For ``deepsparse``, which runs fast
    only what it knows: opset 14, one batch size and sequence length, and products of
    integers. Every target's file is plain ONNX that any of the engines can run.

    Args:
        model: A transformers model, or one that returns a mapping of tensors.
        sample: Inputs by name, ``(batch, sequence)``, as from the tokenizer; what the
            values are does not matter, which names there are does.
        path: The file to write; its folder is made where it is missing.
        target: ``onnxruntime``, ``openvino`` or ``deepsparse``.
        shape: Batch size and sequence length, both fixed; None leaves them free.
        integer_bias: Round biases to INT32 on the grid of their sums, for
            ``onnxruntime`` and ``deepsparse``: about a tenth faster, and not quite what
            the model was trained with.

    Returns:
        What was written.

    Raises:
        ValueError: If the sample cannot be traced, the model returns no mapping, or the
            target and the shape do not fit.
    """  # noqa: DOC502  raised by the checks
    path = Path(path)
    _check_target(target, shape)
    _check_positions(model, shape)
    sample = _checked(model, sample)
    sample = repeated(sample, shape or (_ROWS, max(2, longest_sample(model))))
    outputs, graph = _traced(model, sample, path, OPSETS[target], shape is not None)
    weights = store_int8_weights(graph)
    merge_equal_quantizers(graph)
    look_up_before_dequantizing(graph)
    saturating = _SATURATING[target](graph)
    products = 0
    if target == "deepsparse":
        products = write_integer_products(graph, integer_bias)
    copy_sizes(graph) if shape is None else fold_constants(graph)
    if target == "onnxruntime":
        write_gemms(graph, integer_bias)
    _name(graph, target)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    kinds = [node.op_type for node in graph.graph.node]
    return OnnxExport(
        path=path,
        size_bytes=path.stat().st_size,
        inputs=tuple(sample),
        outputs=outputs,
        quantize_nodes=kinds.count(QUANTIZE),
        dequantize_nodes=kinds.count(DEQUANTIZE),
        int8_weights=weights,
        target=target,
        integer_products=products,
        saturating=saturating,
    )


def _traced(
    model: nn.Module, sample: Mapping[str, Tensor], path: Path, opset: int, fixed: bool
) -> tuple[tuple[str, ...], onnx.ModelProto]:
    """Trace a model beside the file that is to be; nothing is left of a failure.

    Returns:
        Names of the outputs, and the graph.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "traced.onnx"
        outputs = trace(model, sample, file, opset, fixed)
        return outputs, onnx.load(file)


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model has been through quantization-aware training.

    Args:
        model: Any model.

    Returns:
        True where weights or activations are on 8-bit grids.
    """
    return bool(quantizers_of(model))


def _name(graph: onnx.ModelProto, target: str) -> None:
    """Say in the file who wrote it and for which engine."""
    graph.producer_name = "obert_modifiers"
    entry = graph.metadata_props.add()
    entry.key, entry.value = "target", target


def _check_target(target: str, shape: tuple[int, int] | None) -> None:
    if target not in TARGETS:
        raise ValueError(
            f"target={target} is no engine that is known here; expected one of "
            f"{', '.join(TARGETS)}; name one"
        )
    if target == "deepsparse" and shape is None:
        raise ValueError(
            "target=deepsparse without a shape is slow: it runs no part of a graph with"
            " free sizes itself; expected a batch size and a sequence length; give both"
        )
    if shape is not None and (len(shape) != 2 or min(shape) < 1):
        raise ValueError(
            f"shape={shape} is no size of a batch; expected a batch size and a sequence"
            " length of 1 at least; give two such numbers"
        )


def _check_positions(model: nn.Module, shape: tuple[int, int] | None) -> None:
    most = usable_length(model)
    if shape is not None and most is not None and shape[1] > most:
        raise ValueError(
            f"shape={shape[0]}x{shape[1]} is longer than the model's {most} positions; "
            f"expected a sequence length of {most} at most; give a shorter one"
        )


def _checked(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    where = next(model.parameters()).device
    rows: dict[str, Tensor] = {}
    for name, value in sample.items():
        if value.ndim != 2 or len(value) < 1 or value.shape[1] < 2:
            raise ValueError(
                f"sample {name} has shape {tuple(value.shape)}; expected (batch, "
                "sequence) with 2 tokens at least; pass what the tokenizer gives"
            )
        rows[name] = value.to(where)
    if not rows:
        raise ValueError(
            "sample has no inputs; expected tensors by name; pass what the tokenizer "
            "gives"
        )
    return rows
