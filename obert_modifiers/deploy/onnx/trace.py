"""The graph of a model as torch traces it, in the shape that engines know."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.quantization.scheme import ranges_held
from obert_modifiers.deploy.engines.engine import reason

_AXES = ("batch", "sequence")
_MASK = "attention_mask"
_FEW = (2, 8)  # rows and tokens that tell names and axes
# A model that one of these is set for hides tokens by their distance.
_WINDOWS = ("sliding_window", "local_attention", "attention_window")


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
    the same from it as from its own. The model stays as it is.

    What a model computes of the length in Python stays what it was for the sample, so
    with free sizes the sample has as many tokens as the model reads.

    Returns:
        Names of the outputs.
    """
    with _evaluating(model), _attending_plainly(model), torch.no_grad():
        few = sample
        if not fixed:
            few = {name: value[: _FEW[0], : _FEW[1]] for name, value in sample.items()}
        found = _outputs(model, few)
        # Weights that still move have their ranges from the pass above.
        axes = {} if fixed else _output_axes(model, few, found)
        with ranges_held(model):
            traced = _Positional(model, tuple(sample), tuple(found))
            traced.plain_mask = not _has_window(model) and all(
                _takes_plain_mask(traced, one)
                for one in (few, {name: value[:1] for name, value in sample.items()})
            )
            _write(traced, sample, axes, path, opset)
    return tuple(found)


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
            kept = given[_MASK][:, None, None, :].to(torch.float32)
            given[_MASK] = (1.0 - kept) * torch.finfo(torch.float32).min
        found = self.model(**given)
        return tuple(found[name] for name in self.outputs)


def _has_window(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) for name in _WINDOWS)


def _takes_plain_mask(traced: _Positional, sample: Mapping[str, Tensor]) -> bool:
    """Tell whether a model computes the same bits from a mask of its own making."""
    if _MASK not in sample:
        return False
    padded = dict(sample)
    padded[_MASK] = torch.ones_like(sample[_MASK])
    padded[_MASK][0, -1] = 0
    expected = traced(*padded.values())
    traced.plain_mask = True
    try:
        found = traced(*padded.values())
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # a model that wants (batch, sequence)
    finally:
        traced.plain_mask = False
    return all(map(torch.equal, expected, found))


def _write(
    traced: _Positional,
    sample: Mapping[str, Tensor],
    output_axes: dict[str, dict[int, str]],
    path: Path,
    opset: int,
) -> None:
    free = bool(output_axes)
    input_axes = {name: dict(enumerate(_AXES)) for name in sample if free}
    with warnings.catch_warnings():
        # torch calls this exporter old; the new one needs onnx 1.16 and cannot write
        # fake quantization. Flags that tracing fixes are meant to be fixed.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # transformers looks masks up at positions, which are not negative.
        warnings.filterwarnings("ignore", "Exporting aten::index", UserWarning)
        # DeBERTa makes tensors of sizes, which are tensors in a trace.
        warnings.filterwarnings("ignore", "To copy construct", UserWarning)
        torch.onnx.export(
            traced,
            tuple(sample.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(sample),
            output_names=list(traced.outputs),
            dynamic_axes=input_axes | output_axes or None,
        )


def _outputs(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        found: Any = model(**sample)
    except (RuntimeError, IndexError) as error:
        rows, tokens = next(iter(sample.values())).shape
        raise ValueError(
            f"{type(model).__name__} does not run at batch size {rows} and sequence "
            f"length {tokens} ({reason(error)}); expected a model that does; fix its "
            "sizes with --shape BATCHxLENGTH, at a length that it takes"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(model).__name__} returns {type(found).__name__}; expected a mapping"
            " of tensors, such as a transformers model returns; leave return_dict on"
        )
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _output_axes(
    model: nn.Module, sample: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, dict[int, str]]:
    # The axes that a shorter sequence changes are those that follow it.
    shorter = _outputs(model, {name: value[:, :-1] for name, value in sample.items()})
    axes: dict[str, dict[int, str]] = {}
    for name, value in found.items():
        sizes = zip(value.shape, shorter[name].shape, strict=True)
        changed = {i: "sequence" for i, (one, two) in enumerate(sizes) if one != two}
        axes[name] = {0: "batch"} | changed
    return axes


@contextmanager
def _attending_plainly(model: nn.Module) -> Iterator[None]:
    """Let attention be computed operation by operation, for a while."""
    configs = {
        id(one): one
        for one in (getattr(module, "config", None) for module in model.modules())
        if hasattr(one, "_attn_implementation")
    }
    with ExitStack() as stack:
        for config in configs.values():
            kind = config._attn_implementation
            if kind is not None and kind != "eager":
                stack.callback(setattr, config, "_attn_implementation", kind)
                config._attn_implementation = "eager"
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
