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
from obert_modifiers.kernels._run import run_blocks


@dataclass(frozen=True)
class GreedyOrder:
    """Order of elimination inside every block.

    With groups of Q > 1 weights the ranks are those of groups: B is then B / Q.

    Attributes:
        order: ``(num_blocks, B)``, int64. The index inside the block of the weight
            (or group) that goes first, second, ...; those that stay follow by index.
        saliency: ``(num_blocks, B)``, float64. Loss increase of each removal by rank,
            given the removals before it; infinite for those that stay.
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
    group (section 3.1) applied again and again. Ties go to the lower index. With
    ``n_m`` single weights go, and a group that has lost its M - N is passed over.

    Weights that are not eligible (pruned earlier, or padding) have zero gradient, so
    that leaving them out of F changes nothing for the others. A group with some of
    them goes at the saliency of its others.

    Time: ``O(B^3)`` per block; memory: the result.

    Args:
        sums: ``(num_blocks, B, B)``, zero in the rows of ineligible weights.
        scale: ``1 / m``.
        damp: Dampening, larger than 0.
        weights: ``(num_blocks, B)``; ineligible ones count as zero.
        eligible: ``(num_blocks, B)``, bool, True = may be removed.
        group_size: Weights Q that go together, consecutive ones; divides B.
        n_m: (N, M) to keep N of every M consecutive weights; M divides B.
        backend: ``"auto"``, ``"torch"``, ``"numba"`` or ``"triton"``.

    Returns:
        The order and the saliency; the inputs are left as they were.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    num_blocks, width = weights.shape
    _check_groups(width, group_size, n_m)
    shape = (num_blocks, width // group_size)
    order = torch.empty(shape, dtype=torch.int64, device=weights.device)
    saliency = torch.full_like(order, torch.inf, dtype=torch.float64)
    tile = padded_width(width // group_size) * padded_width(group_size)
    chosen = choose_backend(backend, sums, tile=tile)
    if chosen != "torch":
        name = "eliminate_blocks"
        structure: tuple[int, ...] = ()
        if n_m:
            name, structure = "eliminate_n_m_blocks", (n_m[1], n_m[1] - n_m[0])
        elif group_size > 1:
            name, structure = "eliminate_group_blocks", (group_size,)
        values = weights.double() * eligible
        blocks = (values, eligible, *structure, order, saliency)
        run_blocks(chosen, name, sums, scale, damp, *blocks)
        return GreedyOrder(order, saliency)
    for part in block_chunks(num_blocks, width):
        fisher = dampened(sums[part], scale, damp)
        values, living = weights[part].double(), eligible[part].clone()
        if group_size > 1:
            order[part], saliency[part] = _eliminate_groups_torch(
                fisher, values * living, living, group_size
            )
        else:
            order[part], saliency[part] = _eliminate_torch(fisher, values, living, n_m)
    return GreedyOrder(order, saliency)


def _check_groups(width: int, group_size: int, n_m: tuple[int, int] | None) -> None:
    if n_m and group_size > 1:
        raise ValueError(
            f"group_size={group_size} and n_m={n_m} are both given; expected one "
            "structure; leave group_size out"
        )
    size = n_m[1] if n_m else group_size
    if width % size:
        raise ValueError(
            f"fisher_block_size={width} is not a multiple of group_size={size}; "
            "expected whole groups in a block; use a multiple"
        )


def _eliminate_torch(
    fisher: Tensor, weights: Tensor, living: Tensor, n_m: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    num_blocks, width = weights.shape
    rows = torch.arange(num_blocks, device=weights.device)
    inverse = torch.cholesky_inverse(cholesky(fisher))
    order = torch.empty(num_blocks, width, dtype=torch.int64, device=weights.device)
    saliency = torch.full_like(weights, torch.inf)
    for rank in range(width):
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        removable = living & _open_groups(living, n_m) if n_m else living
        left = torch.where(removable, weights.square() / (2.0 * diagonal), torch.inf)
        best = left.argmin(dim=1)
        alive = removable[rows, best]
        order[:, rank] = torch.where(alive, best, -1)
        saliency[:, rank] = left[rows, best]
        column = inverse[rows, :, best]  # (num_blocks, B)
        pivot = column[rows, best]
        gone = torch.where(alive, 1.0 / pivot, 0.0)
        weights = weights - column * (weights[rows, best] * gone)[:, None]
        inverse.baddbmm_(
            (column * gone[:, None]).unsqueeze(2), column.unsqueeze(1), alpha=-1
        )
        living = living.clone()
        living[rows, best] &= ~alive
        # A removed weight must not be divided by again.
        inverse[rows, best, best] = torch.where(alive, 1.0, inverse[rows, best, best])
    return _append_missing(order), saliency


def _open_groups(living: Tensor, n_m: tuple[int, int]) -> Tensor:
    kept, size = n_m  # a group is open until it has lost its M - N
    alive = living.reshape(len(living), -1, size).sum(dim=2) > kept
    return alive.repeat_interleave(size, dim=1)


def _eliminate_groups_torch(
    fisher: Tensor, weights: Tensor, eligible: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    num_blocks, width = weights.shape
    groups = width // size
    rows = torch.arange(num_blocks, device=weights.device)
    inverse = torch.cholesky_inverse(cholesky(fisher))
    living = eligible.reshape(num_blocks, groups, size).any(dim=2)
    order = torch.empty(num_blocks, groups, dtype=torch.int64, device=weights.device)
    saliency = torch.full_like(order, torch.inf, dtype=torch.float64)
    inside = torch.arange(size, device=weights.device)
    for rank in range(groups):
        tiles = inverse.reshape(num_blocks, groups, size, groups, size)
        # (n, Q, Q, groups) -> (n, groups, Q, Q)
        factor = cholesky(tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2))
        right = weights.reshape(num_blocks, groups, size, 1)
        half = torch.linalg.solve_triangular(factor, right, upper=False).squeeze(3)
        now = torch.where(living, 0.5 * half.square().sum(dim=2), torch.inf)
        best = now.argmin(dim=1)
        alive = living[rows, best]
        order[:, rank] = torch.where(alive, best, -1)
        saliency[:, rank] = now[rows, best]
        members = best[:, None] * size + inside  # (n, Q)
        columns = inverse[rows[:, None], members]  # (n, Q, B)
        share = torch.linalg.solve_triangular(factor[rows, best], columns, upper=False)
        share *= alive[:, None, None]
        step = share.transpose(1, 2) @ half[rows, best].unsqueeze(2)
        weights = weights - step.squeeze(2)
        inverse.baddbmm_(share.transpose(1, 2), share, alpha=-1)
        _reset_(inverse, weights, members, alive)
        living = living.clone()
        living[rows, best] = False
    return _append_missing(order), saliency


def _reset_(inverse: Tensor, weights: Tensor, members: Tensor, alive: Tensor) -> None:
    """Make removed groups independent of all others, so that they still factor."""
    rows = torch.arange(len(inverse), device=inverse.device)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    gone[rows[:, None], members] = alive[:, None]
    inverse.masked_fill_(gone.unsqueeze(1) | gone.unsqueeze(2), 0.0)
    inverse.diagonal(dim1=1, dim2=2).masked_fill_(gone, 1.0)
    weights.masked_fill_(gone, 0.0)


def _append_missing(order: Tensor) -> Tensor:
    width = order.shape[1]
    taken = torch.zeros(order.shape[0], width + 1, dtype=torch.bool)
    taken = taken.to(order.device)
    taken.scatter_(1, torch.where(order < 0, width, order), True)
    # Stable sort: untaken indices first, each in order of the index.
    missing = taken[:, :width].to(torch.int8).argsort(dim=1, stable=True)
    rank = (order < 0).cumsum(dim=1) - 1
    return torch.where(order < 0, missing.gather(1, rank.clamp(min=0)), order)
