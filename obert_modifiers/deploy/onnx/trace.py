"""The graph of a model as torch traces it, in the shape that engines know."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.attention import plain_attention
from obert_modifiers.core.quantization.scheme import ranges_held
from obert_modifiers.deploy.engines.engine import reason
from obert_modifiers.deploy.samples import MASK

_AXES = {0: "batch", 1: "sequence"}
_FEW = (2, 8)  # rows and tokens that tell names and axes
# A model that one of these is set for hides tokens by their distance.
_WINDOWS = ("sliding_window", "local_attention", "attention_window")
# torch calls this exporter old; the new one needs onnx 1.16 and cannot write fake
# quantization. Flags that tracing fixes are meant to be fixed, transformers looks masks
# up at positions, which are not negative, and DeBERTa makes tensors of sizes, which are
# tensors in a trace.
_EXPECTED_WARNINGS = (
    ("", DeprecationWarning),
    ("", torch.jit.TracerWarning),
    ("Exporting aten::index", UserWarning),
    ("To copy construct", UserWarning),
)


def trace(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    path: Path,
    opset: int,
    fixed: bool = False,
) -> tuple[str, ...]:
    """Write the graph of a model, with Q and DQ nodes where it is quantized.

    Attention is written out as product, mask, softmax, product, the one form that
    engines know well, and the mask as ``(1 - m) * lowest``, where the model computes
    the same from it as from its own. What a model computes of the length in Python
    stays what it was for the sample, so with free sizes the sample has as many tokens
    as the model reads. The model stays as it is. Returns the names of the outputs.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        _set_eval(model, stack)
        stack.enter_context(plain_attention(model))
        few = sample
        if not fixed:
            few = {name: value[: _FEW[0], : _FEW[1]] for name, value in sample.items()}
        outputs = _run(model, few)
        # Weights that still move have their ranges from the pass above.
        axes = {} if fixed else _axes(model, few, outputs)
        stack.enter_context(ranges_held(model))
        traced = _Positional(model, tuple(sample), tuple(outputs))
        traced.plain_mask = not _has_window(model) and all(
            _takes_plain_mask(traced, one)
            for one in (few, {name: value[:1] for name, value in sample.items()})
        )
        stack.enter_context(warnings.catch_warnings())
        for message, category in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        torch.onnx.export(
            traced,
            tuple(sample.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(sample),
            output_names=list(outputs),
            dynamic_axes=axes or None,
        )
    return tuple(outputs)


class _Positional(nn.Module):
    """A model with tensors in and tensors out, as tracing wants it."""

    def __init__(
        self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.plain_mask = False

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, values, strict=True))
        if self.plain_mask:
            kept = given[MASK][:, None, None, :].to(torch.float32)
            given[MASK] = (1.0 - kept) * torch.finfo(torch.float32).min
        found = self.model(**given)
        return tuple(found[name] for name in self.outputs)


def _has_window(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) for name in _WINDOWS)


def _takes_plain_mask(traced: _Positional, sample: Mapping[str, Tensor]) -> bool:
    """Tell whether a model computes the same bits from a mask of its own making."""
    if MASK not in sample:
        return False
    mask = torch.ones_like(sample[MASK])
    mask[0, -1] = 0
    padded = dict(sample) | {MASK: mask}
    expected = traced(*padded.values())
    traced.plain_mask = True
    try:
        found = traced(*padded.values())
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # a model that wants (batch, sequence)
    finally:
        traced.plain_mask = False
    return all(map(torch.equal, expected, found))


def _run(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        found: Any = model(**sample)
    except (RuntimeError, IndexError) as error:
        rows, tokens = next(iter(sample.values())).shape
        raise ValueError(
            f"{type(model).__name__} does not run at {rows}x{tokens} ({reason(error)});"
            " expected any batch size and sequence length; fix its sizes with --shape "
            "BATCHxLENGTH, at a length that it takes"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(model).__name__} returns {type(found).__name__}; expected a mapping"
            " of tensors; leave return_dict on"
        )
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _axes(
    model: nn.Module, sample: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> dict[str, dict[int, str]]:
    """Name the free axes: of outputs, those that a shorter sequence changes."""
    shorter = _run(model, {name: value[:, :-1] for name, value in sample.items()})
    axes = dict.fromkeys(sample, _AXES)
    for name, value in outputs.items():
        sizes = enumerate(zip(value.shape, shorter[name].shape, strict=True))
        changed = {i: "sequence" for i, (one, two) in sizes if one != two}
        axes[name] = {0: "batch"} | changed
    return axes


def _set_eval(model: nn.Module, stack: ExitStack) -> None:
    """Put a model into eval mode, for as long as the stack."""
    for module in model.modules():
        stack.callback(setattr, module, "training", module.training)
    model.eval()
