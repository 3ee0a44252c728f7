"""Masks: what is pruned is zero."""

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import choose_backend
from obert_modifiers.kernels._run import run_compiled

# numpy has no bfloat16; zero is the same bits in all of them.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def apply_mask_(values: Tensor, mask: Tensor, backend: str = "auto") -> Tensor:
    """Multiply by a mask in place: zero where it is False, untouched where True.

    Zeros are written, not multiplied: they are exact where the values are infinite or
    not a number too. Autograd does not record it. Memory: one byte per value in torch,
    nothing elsewhere. Values that are not contiguous take torch.

    Returns:
        ``values``, floating point of any shape.

    Raises:
        ValueError: If the mask is not bool or its shape differs.
    """
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(
            f"mask={tuple(mask.shape)} of {mask.dtype} does not fit values of shape "
            f"{tuple(values.shape)}; expected bool of the same shape; pass what is kept"
        )
    chosen = choose_backend(backend, values)
    if chosen == "torch" or not values.is_contiguous():
        values.detach().masked_fill_(~mask, 0.0)
        return values
    if chosen == "numba":
        bits = values.detach().view(_BITS[values.dtype.itemsize]).view(-1)
        run_compiled("zero_unkept", bits, mask.reshape(-1))
    else:
        from obert_modifiers.kernels import _triton_fisher

        _triton_fisher.zero_unkept(values.detach(), mask)
    if not values.is_inference():
        torch.autograd.graph.increment_version(values)
    return values
