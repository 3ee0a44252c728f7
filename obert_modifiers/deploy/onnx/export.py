"""Export to ONNX, as the engines want it: free sizes and QDQ, or fixed and integers."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import Tensor, nn

from obert_modifiers.core.positions import usable_length
from obert_modifiers.deploy.engines import ENGINES, targets
from obert_modifiers.deploy.onnx.graph import DEQUANTIZE, QUANTIZE, Graph
from obert_modifiers.deploy.onnx.products import write_gemms, write_integer_products
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
from obert_modifiers.deploy.registry import check_known
from obert_modifiers.deploy.samples import longest_sample, repeated
from obert_modifiers.runtime.file import whole

_ROWS = 2  # a trace of one row takes its size for a constant here and there
# What becomes of weights whose sums a CPU without VNNI cannot hold.
SATURATING: dict[str, Callable[[Graph], dict[str, int]]] = {
    "unsigned": store_unsigned,
    "float": store_in_floating_point,
    "kept": saturating_layers,
}


@dataclass(frozen=True)
class OnnxExport:
    """What was written."""

    path: Path
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantize_nodes: int  # one for each quantized activation
    dequantize_nodes: int  # for activations and weights
    int8_weights: int
    target: str = "onnxruntime"  # the engine that it was written for
    shape: tuple[int, int] | None = None  # None where its sizes are free
    integer_products: int = 0  # MatMulInteger nodes
    # Pairs of weights whose sums a CPU without VNNI cannot hold, by layer.
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

    The outputs have the names that the model, one of transformers or any that returns a
    mapping of tensors, gives them. The weights of a model that QATModifier trained are
    stored as INT8; its ranges are taken as they are now. The model stays as it is.
    `sample` are inputs by name, ``(batch, sequence)``, as from the tokenizer; their
    values do not matter.

    For ``onnxruntime`` and ``openvino``: opset 17, sizes that are free unless `shape`
    fixes batch size and sequence length, and Q and DQ nodes around what is quantized.
    For ``deepsparse``, which runs fast only what it knows: opset 14, fixed sizes, and
    products of integers. Every target's file is plain ONNX that any engine can run.

    `integer_bias` rounds biases to INT32 on the grid of their sums, not for
    ``openvino``: about a tenth faster, and not quite what the model was trained with.
    """
    path = Path(path)
    check_known("target", target, targets())
    traits = ENGINES[target].target
    _check_shape(model, target, shape)
    sample = _checked(model, sample)
    sample = repeated(sample, shape or (_ROWS, max(2, longest_sample(model))))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "traced.onnx"
        outputs = trace(model, sample, file, traits.opset, shape is not None)
        graph = Graph(onnx.load(file))
    weights = store_int8_weights(graph)
    merge_equal_quantizers(graph)
    look_up_before_dequantizing(graph)
    saturating = SATURATING[traits.saturating](graph)
    if traits.products == "integer":
        write_integer_products(graph, integer_bias)
    longest = next(iter(sample.values())).shape[1]
    copy_sizes(graph, longest) if shape is None else fold_constants(graph)
    if traits.products == "gemm":
        write_gemms(graph, integer_bias, longest)
    written = graph.model
    written.producer_name = "obert_modifiers"
    written.metadata_props.add(key="target", value=target)
    onnx.checker.check_model(written)
    with whole(path) as unfinished:
        onnx.save(written, unfinished)
    kinds = [node.op_type for node in graph.nodes]
    return OnnxExport(
        path=path,
        size_bytes=path.stat().st_size,
        inputs=tuple(sample),
        outputs=outputs,
        quantize_nodes=kinds.count(QUANTIZE),
        dequantize_nodes=kinds.count(DEQUANTIZE),
        int8_weights=weights,
        target=target,
        shape=shape,
        integer_products=kinds.count("MatMulInteger"),
        saturating=saturating,
    )


def _check_shape(model: nn.Module, target: str, shape: tuple[int, int] | None) -> None:
    if shape is None:
        if ENGINES[target].target.fixed:
            raise ValueError(
                f"target={target} runs no graph with free sizes; expected a shape; give"
                " a batch size and a sequence length"
            )
        return
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"shape={shape} is no size of a batch; expected a batch size and a sequence"
            " length of 1 at least; give two such numbers"
        )
    most = usable_length(model)
    if most is not None and shape[1] > most:
        raise ValueError(
            f"shape={shape[0]}x{shape[1]} is longer than the model's {most} positions; "
            f"expected a sequence length of {most} at most; give a shorter one"
        )


def _checked(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check the inputs that a model is traced with, and put them on its device."""
    device = next(model.parameters()).device
    if not sample:
        raise ValueError(
            "sample={} has no inputs; expected tensors by name; pass the tokenizer's"
        )
    for name, value in sample.items():
        if value.ndim != 2 or len(value) < 1 or value.shape[1] < 2:
            raise ValueError(
                f"sample {name} has shape {tuple(value.shape)}; expected (batch, "
                "sequence) with 2 tokens at least; pass what the tokenizer gives"
            )
    return {name: value.to(device) for name, value in sample.items()}
