"""Which parts of a model are quantized, and whether their ranges still move."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from obert_modifiers.core.options import WHOLE
from obert_modifiers.core.pruning.targets import check_no_adapters, is_conv1d
from obert_modifiers.core.quantization.fake_quant import (
    ACTIVATION,
    FULL_RANGE,
    REDUCED_RANGE,
    WEIGHT,
    Quantizer,
)
from obert_modifiers.core.quantization.layers import (
    LAYERS,
    Quantized,
    attach_,
    is_attention,
)
from obert_modifiers.faults import Fault, FaultError, Rule


@dataclass(frozen=True)
class Scheme:
    """What is quantized.

    Attributes:
        per_channel: A scale for each output of a linear layer, in place of one for its
            weight. Embeddings have one scale each.
        reduce_range: Whether the weights of linear layers keep to -63 to 63, so that
            a CPU without VNNI sums their products exactly; else to -127 to 127.
        embeddings: Whether embedding matrices are quantized.
        attention_matmuls: Whether the inputs of the two products inside attention are.
        ignore: Names of modules, which stand for all below them, or ``re:`` patterns,
            matched from the start of the name, that stay as they are.
        submodules: In the same form, outside of which nothing is quantized; None or
            :data:`WHOLE` for the whole model.
    """

    per_channel: bool = False
    reduce_range: bool = True
    embeddings: bool = True
    attention_matmuls: bool = False
    ignore: tuple[str, ...] = ()
    submodules: tuple[str, ...] | None = None


def find_layers(model: nn.Module, scheme: Scheme) -> list[str]:
    """Name the modules that a scheme quantizes, in the order of the model.

    Those are all linear layers (of the encoder, the pooler and the head), the
    embeddings, and the attention modules where their products are asked for.

    Returns:
        Their names.

    Raises:
        FaultError: If there is nothing to quantize, a layer is of a kind that cannot
            be or has adapters, or a name in ``ignore`` matches nothing.
    """
    modules = dict(model.named_modules())
    layers = [
        name
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, nn.Embedding)) or is_conv1d(module)
    ]
    attentions = []
    if scheme.attention_matmuls:
        attentions = [n for n, module in modules.items() if is_attention(module)]
        if not attentions:
            raise FaultError(
                _fault(
                    "quantize_attention_matmuls",
                    "true",
                    f"finds no query, key and value layers in {type(model).__name__}",
                    "an encoder like BERT's",
                    "write false",
                )
            )
    everyone = [*layers, *attentions]
    ignored = _matching(everyone, scheme.ignore, "ignore")
    if scheme.submodules is not None:
        ignored |= {*everyone} - _matching(everyone, scheme.submodules, "submodules")
    found = [
        name
        for name in layers
        if name not in ignored
        and (scheme.embeddings or not isinstance(modules[name], nn.Embedding))
    ]
    check_no_adapters(model, found)
    for name in found:
        _check_kind(name, modules[name])
    if not found:
        inside = scheme.submodules
        within = "" if inside is None else f" and submodules={list(inside)}"
        raise FaultError(
            _fault(
                "ignore",
                f"{list(scheme.ignore)}{within}",
                f"leaves no layer of {type(model).__name__} to quantize",
                "a linear layer at least",
                "shorten it",
            )
        )
    chosen = {*found, *attentions} - ignored
    return [name for name in modules if name in chosen]


def quantize_(model: nn.Module, scheme: Scheme) -> None:
    """Put layers on 8-bit grids; changes their classes, and neither names nor weights.

    Weights have their ranges at once; activations get theirs in training.
    """
    names = find_layers(model, scheme)
    modules = [model.get_submodule(name) for name in names]
    # An embedding is not multiplied, but where a linear layer shares its weight.
    multiplied = {id(m.weight) for m in modules if isinstance(m, nn.Linear)}
    for module in modules:
        reduced = scheme.reduce_range and id(getattr(module, "weight", 0)) in multiplied
        limit = REDUCED_RANGE if reduced else FULL_RANGE
        attach_(module, scheme.per_channel, limit)


def quantizers_of(model: nn.Module) -> dict[str, Quantizer]:
    """Return a model's quantizers, none for a plain model.

    By name: that of the module, a colon, and ``weight``, ``input``, or ``query``,
    ``key``, ``probabilities``, ``value``.
    """
    return {
        f"{name}:{role}": quantizer
        for name, module in model.named_modules()
        if isinstance(module, Quantized)
        for role, quantizer in module.quantizers.items()
    }


def freeze_(model: nn.Module, weights: bool = True) -> list[str]:
    """Fix the ranges as they are; those of weights are taken a last time.

    With ``weights=False`` the ranges of weights go on following the weights.

    Returns:
        Names of the activations that have seen nothing, and so are not quantized.
    """
    unseen = []
    for name, quantizer in quantizers_of(model).items():
        if quantizer.kind == ACTIVATION:
            quantizer.observing = False
            if not quantizer.ready:
                unseen.append(name)
        elif weights and quantizer.observing:
            quantizer.observe_(_weight_of(model, name))
            quantizer.observing = False
    return unseen


def hold_weights_(model: nn.Module) -> None:
    """Clamp weights to their ranges, where those are reduced and fixed."""
    for name, quantizer in quantizers_of(model).items():
        if quantizer.kind == WEIGHT:
            quantizer.hold_(_weight_of(model, name))


def _weight_of(model: nn.Module, quantizer: str) -> nn.Parameter:
    return model.get_parameter(f"{quantizer.rpartition(':')[0]}.weight".lstrip("."))


@contextmanager
def ranges_held(model: nn.Module) -> Iterator[None]:
    """Keep all ranges as they are in the body."""
    moving = [q for q in quantizers_of(model).values() if q.observing]
    for quantizer in moving:
        quantizer.observing = False
    try:
        yield
    finally:
        for quantizer in moving:
            quantizer.observing = True


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Take the ranges of activations from the body's batches, on which nobody trains.

    They are means over the batches, in eval mode too.
    """
    found = quantizers_of(model).values()
    for quantizer in found:
        quantizer.begin_calibration()
    try:
        yield
    finally:
        for quantizer in found:
            quantizer.end_calibration()


def _fault(*parts: str) -> Fault:
    return Fault(Rule.MODEL, *parts)


def _check_kind(name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if isinstance(module, Quantized):
        raise ValueError(
            f"layer={name} is quantized already; expected a plain model; use one "
            "QATModifier"
        )
    odd = isinstance(module, nn.Embedding) and (module.max_norm or module.sparse)
    if type(module) not in LAYERS or odd:
        how = " with max_norm or sparse gradients" if odd else ""
        raise ValueError(
            f"layer={name} is a {kind}{how}; expected nn.Linear or a plain "
            "nn.Embedding; name it under ignore"
        )


def _matching(names: list[str], patterns: Sequence[str], key: str) -> set[str]:
    matching: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if _matches(pattern, name)}
        if not found:
            text = re.sub(r"^re:|[\\^$*+?()\[\]|]", "", pattern)
            near = difflib.get_close_matches(text, names, n=3, cutoff=0.0)
            raise FaultError(
                _fault(
                    key,
                    pattern,
                    "matches no layer",
                    "the name of a layer or of a module above it, or a re: pattern",
                    f"nearest: {', '.join(near)}",
                )
            )
        matching |= found
    return matching


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return pattern in (WHOLE, name) or name.startswith(f"{pattern}.")
