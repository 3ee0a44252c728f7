"""Parameters that are pruned: how they are laid out, and who writes them."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from obert_modifiers.core.blocks import GroupLayout, MaskPattern, make_layout


@dataclass(frozen=True)
class Target:
    """One parameter that is pruned.

    Attributes:
        name: Full name of the parameter in the unwrapped model.
        parameter: The parameter.
        transposed: True for ``(in, out)`` weights, as of GPT-2's Conv1D layers.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    def layout(self, pattern: MaskPattern) -> GroupLayout:
        """Lay the parameter out in groups.

        Args:
            pattern: Structure of the sparsity.

        Returns:
            The order of the weights; an error if the groups do not divide its shape.
        """
        return make_layout(pattern, self.name, self.parameter.shape, self.transposed)


def is_conv1d(module: nn.Module) -> bool:
    """Tell the linear layers of GPT-2, whose weights are input x output.

    They are known by their name or shape, as the library that has them is not
    imported here.

    Args:
        module: Any module.

    Returns:
        True for a Conv1D, or a module with ``nf`` outputs, the second dimension of
        its weight.
    """
    weight, outputs = getattr(module, "weight", None), getattr(module, "nf", None)
    if isinstance(module, nn.Linear) or not isinstance(weight, nn.Parameter):
        return False
    named = type(module).__name__ == "Conv1D"
    return weight.ndim == 2 and (named or weight.shape[1] == outputs)


def write_parameters_(
    targets: Sequence[Target], values: Sequence[Tensor], masks: Sequence[Tensor]
) -> None:
    """Write pruned parameters in place, exactly zero where the mask is False.

    Args:
        targets: Parameters to write.
        values: New values of each, any float dtype, same number of elements.
        masks: Mask of each, True = kept.
    """
    with torch.no_grad():
        for target, value, mask in zip(targets, values, masks, strict=True):
            shaped = value.reshape(target.parameter.shape)
            target.parameter.copy_(torch.where(mask, shaped, 0.0))


def widest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Find the type that holds the values of all tensors, float32 or wider.

    Args:
        tensors: Floating-point tensors.

    Returns:
        The type.
    """
    types = (tensor.dtype for tensor in tensors)
    return functools.reduce(torch.promote_types, types, torch.float32)


@contextmanager
def restored(targets: Sequence[Target], *, after_success: bool) -> Iterator[None]:
    """Bring the parameters back after the body, always or only if it fails.

    Args:
        targets: The parameters.
        after_success: True brings them back in any case.

    Yields:
        Once, for the body.
    """
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


def restore_shapes(
    layouts: Sequence[GroupLayout], values: Sequence[Tensor], like: Sequence[Tensor]
) -> list[Tensor]:
    """Bring weights from the order of the groups into the parameters' shapes.

    Args:
        layouts: Of each parameter.
        values: ``(d,)`` or ``(groups, Q)`` of each.
        like: Tensors of the shapes.

    Returns:
        The same weights in those shapes.
    """
    return [
        layout.restore(value.reshape(-1)).reshape(model.shape)
        for layout, value, model in zip(layouts, values, like, strict=True)
    ]
