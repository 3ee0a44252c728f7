"""Greedy elimination: the order in which a Fisher block should lose its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    cholesky,
    choose_backend,
    dampened,
    padded_width,
)
from obert_modifiers.kernels._run import run_on_sums
from obert_modifiers.kernels.fisher import diagonal_groups


@dataclass(frozen=True)
class GreedyOrder:
    """Order of elimination inside every block.

    Both are ``(num_blocks, B / Q)``: the index inside the block of the group of Q that
    goes first, second, ..., int64, and the loss increase by its removal, given those
    before it. Those that stay follow by index, and their saliency is infinite.
    """

    order: Tensor
    saliency: Tensor


def eliminate_greedily(
    sums: Tensor,
    scale: float,
    damp: float,
    weights: Tensor,
    eligible: Tensor,
    *,
    group_size: int = 1,
    n_m: tuple[int, int] | None = None,
    backend: str = "auto",
) -> GreedyOrder:
    r"""Remove one weight or group at a time inside each block, downdating the inverse.

    Starting from :math:`A = F^{-1}` over the eligible weights, repeat: take the group
    Q of lowest :math:`\frac12 w_Q^T A_{QQ}^{-1} w_Q`, which for a single weight is
    :math:`w_q^2 / (2 A_{qq})`, then
    :math:`w \leftarrow w - A_{:Q} A_{QQ}^{-1} w_Q` and
    :math:`A \leftarrow A - A_{:Q} A_{QQ}^{-1} A_{Q:}`, which is oBERT's update for one
    group (section 3.1) applied again and again. Ties go to the lower index. A group is
    of Q consecutive weights; with ``n_m`` single weights go, and M of them that have
    lost their M - N are passed over.

    Weights that are not eligible (pruned earlier, or padding) count as zero and have
    zero gradient, so that leaving them out of F changes nothing for the others. A group
    with some of them goes at the saliency of its others.

    Time: ``O(B^3)`` per block; memory: the result.

    Returns:
        The order and the saliency; the inputs are left as they were.

    Raises:
        ValueError: If groups and N:M are both given, or do not divide the block.
    """
    num_blocks, width = weights.shape
    if n_m and group_size > 1:
        raise ValueError(
            f"group_size={group_size} and n_m={n_m} are both given; expected one "
            "structure; leave group_size out"
        )
    if width % (size := n_m[1] if n_m else group_size):
        raise ValueError(
            f"fisher_block_size={width} is not a multiple of group_size={size}; "
            "expected whole groups in a block; use a multiple"
        )
    groups = width // group_size
    kept, of = n_m or (0, groups)  # whatever has no pattern may go as a whole
    values = weights.double() * eligible
    order = weights.new_empty((num_blocks, groups), dtype=torch.int64)
    saliency = weights.new_full(order.shape, torch.inf, dtype=torch.float64)
    tile = padded_width(groups) * padded_width(group_size)
    chosen = choose_backend(backend, sums, tile=tile)
    if chosen != "torch":
        structure = (group_size, kept, of)
        blocks = (values, eligible, *structure, order, saliency)
        run_on_sums(chosen, "eliminate_blocks", sums, scale, damp, *blocks)
        return GreedyOrder(order, saliency)
    for part in block_chunks(num_blocks, width):
        living = eligible[part].reshape(-1, groups, group_size).any(dim=2)
        fisher = dampened(sums[part], scale, damp)
        order[part], saliency[part] = _eliminate(fisher, values[part], living, kept, of)
    return GreedyOrder(order, saliency)


def _eliminate(
    fisher: Tensor, weights: Tensor, living: Tensor, kept: int, of: int
) -> tuple[Tensor, Tensor]:
    """Remove ``(n, groups)`` living groups, down to ``kept`` of every ``of``."""
    num_blocks, groups = living.shape
    size = weights.shape[1] // groups
    rows = torch.arange(num_blocks, device=weights.device)[:, None]
    inside = torch.arange(size, device=weights.device)
    unit = torch.eye(size, dtype=torch.float64, device=weights.device)
    inverse = torch.cholesky_inverse(cholesky(fisher))
    order = torch.full_like(living, -1, dtype=torch.int64)
    saliency = torch.full_like(order, torch.inf, dtype=torch.float64)
    for rank in range(groups):
        removable = living
        if kept:
            left = living.reshape(num_blocks, -1, of).sum(dim=2) > kept
            removable = living & left.repeat_interleave(of, dim=1)
        # What was removed is left with rounding errors, which need not factor.
        systems = torch.where(
            living[:, :, None, None], diagonal_groups(inverse, size), unit
        )
        factor = _factor(systems)
        half = _half_solve(factor, weights.reshape(num_blocks, groups, size, 1))
        now = torch.where(removable, 0.5 * half.square().sum(dim=(2, 3)), torch.inf)
        best = now.argmin(dim=1, keepdim=True)  # (n, 1)
        alive = removable.gather(1, best)
        order[:, rank] = torch.where(alive, best, -1).squeeze(1)
        saliency[:, rank] = now.gather(1, best).squeeze(1)
        living = living.scatter(1, best, living.gather(1, best) & ~alive)
        columns = inverse[rows, best * size + inside]  # (n, Q, B)
        share = _half_solve(factor[rows, best].squeeze(1), columns)
        share *= alive.unsqueeze(2)
        weights = weights - (share * half[rows, best].squeeze(1)).sum(dim=1)
        inverse.baddbmm_(share.transpose(1, 2), share, alpha=-1)
    return _append_missing(order), saliency


def _factor(systems: Tensor) -> Tensor:
    return systems.sqrt() if systems.shape[-1] == 1 else cholesky(systems)


def _half_solve(factor: Tensor, right: Tensor) -> Tensor:
    if factor.shape[-1] == 1:
        return right / factor
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _append_missing(order: Tensor) -> Tensor:
    """Replace -1, which ends each row, by the indices that are missing in it."""
    width = order.shape[1]
    taken = order.new_zeros((len(order), width + 1), dtype=torch.bool)
    taken.scatter_(1, torch.where(order < 0, width, order), True)
    # Stable sort: untaken indices first, each in order of the index.
    missing = taken[:, :width].to(torch.int8).argsort(dim=1, stable=True)
    rank = (order < 0).cumsum(dim=1) - 1
    return torch.where(order < 0, missing.gather(1, rank.clamp(min=0)), order)
