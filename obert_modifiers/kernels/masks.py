"""Masks: what is pruned is zero."""

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import choose_backend


def apply_mask_(values: Tensor, mask: Tensor, backend: str = "auto") -> Tensor:
    """Multiply by a mask in place: zero where it is False, untouched where True.

    Zeros are written, not multiplied: they are exact where the values are infinite or
    not a number too. Autograd does not record it. Memory: one byte per value in torch,
    nothing in Triton, which also reads the mask alone. Values that are not contiguous
    take torch.

    Args:
        values: Any shape, floating point; changed in place.
        mask: The same shape and device, bool, True = kept.
        backend: ``"auto"``, ``"torch"`` or ``"triton"``.

    Returns:
        ``values``.

    Raises:
        ValueError: If the mask is not bool or its shape differs.
    """
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(
            f"mask={tuple(mask.shape)} of {mask.dtype} does not fit values of shape "
            f"{tuple(values.shape)}; expected bool of the same shape; pass what is kept"
        )
    chosen = choose_backend(backend, values, among=("torch", "triton"))
    if chosen == "triton" and values.is_contiguous():
        from obert_modifiers.kernels import _triton_fisher

        _triton_fisher.zero_unkept(values.detach(), mask)
        if not values.is_inference():
            torch.autograd.graph.increment_version(values)
    else:
        values.detach().masked_fill_(~mask, 0.0)
    return values
