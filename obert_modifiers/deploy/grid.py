"""Weights on the INT8 grids of their layers."""

import torch
from torch import Tensor


def to_grid(weight: Tensor, scale: Tensor) -> Tensor:
    """Round a float32 weight to INT8 as QATModifier's layers do, bit for bit.

    The scale is ``(1,)`` or ``(rows,)``.
    """
    zero = torch.zeros_like(scale, dtype=torch.int32)
    if scale.numel() == 1:
        rounded = torch.fake_quantize_per_tensor_affine(weight, scale, zero, -128, 127)
    else:
        rounded = torch.fake_quantize_per_channel_affine(
            weight, scale, zero, 0, -128, 127
        )
    values = (rounded / _broadcast(scale, weight)).round().to(torch.int8)
    if not torch.equal(from_grid(values, scale), rounded):
        raise ValueError(
            f"a quantized weight of shape {tuple(weight.shape)} is not finite or its "
            "scale is not; expected numbers; train it again, or pass int8=False"
        )
    return values


def from_grid(values: Tensor, scale: Tensor) -> Tensor:
    """Return the weight that a quantized layer computes with."""
    return values.to(torch.float32) * _broadcast(scale, values)


def _broadcast(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))
