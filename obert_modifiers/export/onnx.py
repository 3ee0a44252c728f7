"""Export to ONNX, with INT8 weights between Q and DQ nodes where quantized."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from obert_modifiers.core.quantization import ranges_held
from obert_modifiers.export._qdq import store_int8_weights

OPSET = 17
_AXES = ("batch", "sequence")
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


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
    """

    path: Path
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    quantize_nodes: int
    dequantize_nodes: int
    int8_weights: int


def export_onnx(
    model: nn.Module, sample: Mapping[str, Tensor], path: str | Path
) -> OnnxExport:
    """Write a model as ONNX, opset 17, with free batch size and sequence length.

    The outputs have the names that the model gives them: ``logits``, or
    ``start_logits`` and ``end_logits``. The weights of a model that QATModifier
    trained are stored as INT8; its ranges are taken as they are now. The model stays
    as it is, and so does the mode of its modules.

    Args:
        model: A transformers model, or one that returns a mapping of tensors.
        sample: Inputs by name, ``(batch, sequence)``, as from the tokenizer; what the
            values are does not matter, which names there are does.
        path: The file to write; its folder is made where it is missing.

    Returns:
        What was written.

    Raises:
        ValueError: If the sample cannot be traced, or the model returns no mapping.
    """  # noqa: DOC502  raised by the checks
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sample = _checked(model, sample)
    with _evaluating(model), torch.no_grad():
        found = _outputs(model, sample)
        # Weights that still move have their ranges from the pass above.
        shorter = _outputs(model, {k: v[:, :-1] for k, v in sample.items()})
        with ranges_held(model):
            _trace(model, sample, _output_axes(found, shorter), path)
    graph = onnx.load(path)
    weights = store_int8_weights(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
    kinds = [node.op_type for node in graph.graph.node]
    return OnnxExport(
        path=path,
        size_bytes=path.stat().st_size,
        inputs=tuple(sample),
        outputs=tuple(found),
        quantize_nodes=kinds.count(_QUANTIZE),
        dequantize_nodes=kinds.count(_DEQUANTIZE),
        int8_weights=weights,
    )


class _Positional(nn.Module):
    """A model with tensors in and tensors out, as tracing wants it."""

    def __init__(
        self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs = model, inputs, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self._inputs, values, strict=True)))
        return tuple(found[name] for name in self._outputs)


def _trace(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    output_axes: dict[str, dict[int, str]],
    path: Path,
) -> None:
    names, outputs = tuple(sample), tuple(output_axes)
    input_axes = {name: dict(enumerate(_AXES)) for name in names}
    with warnings.catch_warnings():
        # torch calls this exporter old; the new one needs onnx 1.16 and cannot write
        # fake quantization. Flags that tracing fixes are meant to be fixed.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # transformers looks masks up at positions, which are not negative.
        warnings.filterwarnings("ignore", "Exporting aten::index", UserWarning)
        torch.onnx.export(
            _Positional(model, names, outputs),
            tuple(sample.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=input_axes | output_axes,
        )


def _outputs(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: Any = model(**sample)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(model).__name__} returns {type(found).__name__}; expected a mapping"
            " of tensors, such as a transformers model returns; leave return_dict on"
        )
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _output_axes(
    found: Mapping[str, Tensor], shorter: Mapping[str, Tensor]
) -> dict[str, dict[int, str]]:
    # The axes that a shorter sequence changes are those that follow it.
    axes: dict[str, dict[int, str]] = {}
    for name, value in found.items():
        sizes = zip(value.shape, shorter[name].shape, strict=True)
        changed = {i: "sequence" for i, (one, two) in enumerate(sizes) if one != two}
        axes[name] = {0: "batch"} | changed
    return axes


def _checked(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    where = next(model.parameters()).device
    rows: dict[str, Tensor] = {}
    for name, value in sample.items():
        if value.ndim != 2 or len(value) < 1 or value.shape[1] < 2:
            raise ValueError(
                f"sample {name} has shape {tuple(value.shape)}; expected (batch, "
                "sequence) with 2 tokens at least; pass what the tokenizer gives"
            )
        # A trace of one row takes its size for a constant here and there.
        rows[name] = value[[0, -1]].to(where)
    if not rows:
        raise ValueError(
            "sample has no inputs; expected tensors by name; pass what the tokenizer "
            "gives"
        )
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
