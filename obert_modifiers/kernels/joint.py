"""Joint update: the best remaining weights once a whole set of weights is zero."""

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    cholesky,
    choose_backend,
    dampened,
    padded_width,
)
from obert_modifiers.kernels._run import run_blocks


def solve_joint_update(
    sums: Tensor,
    scale: float,
    damp: float,
    weights: Tensor,
    pruned: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Minimise the quadratic loss increase with all pruned weights at zero.

    The minimiser of :math:`\frac12 d^T F d` subject to :math:`d_P = -w_P` (oBERT
    equation (3) with Q the whole pruned set P of a block) is
    :math:`d_K = F_{KK}^{-1} F_{KP} w_P`, with K the kept weights.

    Time: ``O(|K|^3)`` per block; memory: the result.

    Args:
        sums: ``(num_blocks, B, B)``.
        scale: ``1 / m``.
        damp: Dampening, larger than 0.
        weights: ``(num_blocks, B)``, before pruning.
        pruned: ``(num_blocks, B)``, bool, True = zero from now on.
        backend: ``"auto"``, ``"torch"``, ``"numba"`` or ``"triton"``.

    Returns:
        The updated weights ``(num_blocks, B)``, float64, exactly zero where pruned,
        and the loss increase of each block ``(num_blocks,)``, float64, >= 0.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    updated = torch.empty(weights.shape, dtype=torch.float64, device=weights.device)
    increases = torch.empty(
        weights.shape[0], dtype=torch.float64, device=weights.device
    )
    chosen = choose_backend(backend, sums, tile=padded_width(weights.shape[1]))
    if chosen != "torch":
        blocks = (weights.double(), pruned, updated, increases)
        run_blocks(chosen, "solve_joint_blocks", sums, scale, damp, *blocks)
        return updated, increases
    for part in block_chunks(*sums.shape[:2]):
        updated[part], increases[part] = _solve_torch(
            dampened(sums[part], scale, damp), weights[part].double(), pruned[part]
        )
    return updated, increases


def _solve_torch(
    fisher: Tensor, weights: Tensor, pruned: Tensor
) -> tuple[Tensor, Tensor]:
    kept = ~pruned
    removed = torch.where(pruned, weights, 0.0).unsqueeze(2)  # (n, B, 1)
    pull = fisher @ removed
    dense = (removed * pull).sum(dim=(1, 2))
    right = pull * kept.unsqueeze(2)
    inner = fisher * (kept.unsqueeze(2) & kept.unsqueeze(1))
    inner.diagonal(dim1=1, dim2=2).add_(pruned.double())
    step = torch.cholesky_solve(right, cholesky(inner))
    increases = 0.5 * (dense - (right * step).sum(dim=(1, 2))).clamp(min=0.0)
    return torch.where(pruned, 0.0, weights + step.squeeze(2)), increases
