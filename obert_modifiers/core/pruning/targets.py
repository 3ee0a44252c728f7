"""Parameters that are pruned: how they are laid out, and who writes them."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.blocks import GroupLayout, make_layout

_SHOWN = 3  # layers that an error names


@dataclass(frozen=True)
class Target:
    """A parameter that is pruned, with its full name in the unwrapped model.

    ``transposed`` weights are ``(in, out)``, as of GPT-2's Conv1D layers.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    def layout(self, pattern: MaskPattern) -> GroupLayout:
        """Return the order of groups; raises if they do not divide the shape."""
        return make_layout(pattern, self.name, self.parameter.shape, self.transposed)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is GPT-2's linear layer, with input x output weights.

    By their name, or by ``nf`` outputs, the second dimension of the weight: the library
    that has them is not imported here.
    """
    weight, outputs = getattr(module, "weight", None), getattr(module, "nf", None)
    if isinstance(module, nn.Linear) or not isinstance(weight, nn.Parameter):
        return False
    named = type(module).__name__ == "Conv1D"
    return weight.ndim == 2 and (named or weight.shape[1] == outputs)


def has_adapter(module: nn.Module) -> bool:
    """Return whether adapters add to a layer's weight where it is used, merged or not.

    By the names of what they hold, as the libraries are not imported here: peft keeps
    the plain layer as ``base_layer``; others have the low-rank matrices ``lora_A`` and
    ``lora_B`` beside the weight.
    """
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        return True
    own = {name for name, _ in module.named_children()}
    own |= {name for name, _ in module.named_parameters(recurse=False)}
    return {"lora_A", "lora_B"} <= own


def check_no_adapters(model: nn.Module, names: Iterable[str]) -> None:
    """Raise if one of these parameters or layers belongs to a layer with adapters."""
    # Its merged weights would be others than asked for: zeros of a plain weight, or of
    # both factors of what is added to it, are no zeros of the sum; no more is a grid.
    adapted = [name for name, module in model.named_modules() if has_adapter(module)]
    wanted = [f"{name}." for name in names] if adapted else []
    found = [
        name
        for name in adapted
        if any(one.startswith(f"{name}." if name else "") for one in wanted)
    ]
    if not found:
        return
    shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    raise ValueError(
        f"model={type(model).__name__} has adapters in {len(found)} of the layers that "
        f"are to be pruned or quantized ({shown}); expected plain weights, as "
        "adapters that are merged later undo zeros and 8-bit grids; merge first: model "
        "= model.merge_and_unload()"
    )


def write_parameters_(
    targets: Sequence[Target], values: Sequence[Tensor], masks: Sequence[Tensor]
) -> None:
    """Write pruned parameters in place, exactly zero where the mask is False."""
    with torch.no_grad():
        for target, value, mask in zip(targets, values, masks, strict=True):
            shaped = value.reshape(target.parameter.shape)
            target.parameter.copy_(torch.where(mask, shaped, 0.0))


def widest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the type that holds the values of all tensors, float32 or wider."""
    types = (tensor.dtype for tensor in tensors)
    return functools.reduce(torch.promote_types, types, torch.float32)


@contextmanager
def restored(targets: Sequence[Target], *, after_success: bool) -> Iterator[None]:
    """Bring the parameters back after the body, always or only if it fails."""
    before = [t.parameter.detach().clone() for t in targets]
    done = False
    try:
        yield
        done = True
    finally:
        if after_success or not done:
            with torch.no_grad():
                for target, old in zip(targets, before, strict=True):
                    target.parameter.copy_(old)


def group_masks(
    layouts: Sequence[GroupLayout], masks: Sequence[Tensor]
) -> list[Tensor]:
    """Return masks as ``(d / Q, Q)``, in the order of the groups."""
    return [layout.groups(mask) for layout, mask in zip(layouts, masks, strict=True)]


def restore_shapes(
    layouts: Sequence[GroupLayout], values: Sequence[Tensor], like: Sequence[Tensor]
) -> list[Tensor]:
    """Return ``(d,)`` or ``(d / Q, Q)`` weights in the shapes of ``like``."""
    return [
        layout.restore(value.reshape(-1)).reshape(model.shape)
        for layout, value, model in zip(layouts, values, like, strict=True)
    ]
