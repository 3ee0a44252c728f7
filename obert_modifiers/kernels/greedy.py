"""Greedy elimination: the order in which a Fisher block should lose its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.kernels._backend import (
    block_chunks,
    check_definite,
    cholesky,
    choose_backend,
    dampened,
)


@dataclass(frozen=True)
class GreedyOrder:
    """Order of elimination inside every block.

    Attributes:
        order: ``(num_blocks, B)``, int64. The index inside the block of the weight
            that goes first, second, ...; the ineligible ones follow at the end.
        costs: ``(num_blocks, B)``, float64. Loss increase of each removal by rank,
            given the removals before it; infinite for the ineligible ones.
    """

    order: Tensor
    costs: Tensor


def eliminate_greedily(
    sums: Tensor,
    scale: float,
    damp: float,
    weights: Tensor,
    eligible: Tensor,
    *,
    backend: str = "auto",
) -> GreedyOrder:
    r"""Remove one weight at a time inside each block, downdating the inverse.

    Starting from :math:`A = F^{-1}` over the eligible weights, repeat: take
    :math:`q = \arg\min w_q^2 / (2 A_{qq})`, then
    :math:`w \leftarrow w - A_{:q} w_q / A_{qq}` and
    :math:`A \leftarrow A - A_{:q} A_{q:} / A_{qq}`, which is oBERT's update for one
    weight (section 3.1) applied again and again. Ties go to the lower index.

    Weights that are not eligible (pruned earlier, or padding) have zero gradient, so
    that leaving them out of F changes nothing for the others.

    Time: ``O(B^3)`` per block; memory: the result.

    Args:
        sums: ``(num_blocks, B, B)``, zero in the rows of ineligible weights.
        scale: One over the number of gradients.
        damp: Dampening, larger than 0.
        weights: ``(num_blocks, B)``.
        eligible: ``(num_blocks, B)``, bool, True = may be removed.
        backend: ``"auto"``, ``"torch"`` or ``"numba"``.

    Returns:
        The order and the costs; the inputs are left as they were.

    Raises:
        FloatingPointError: If a block is not numerically positive definite.
    """
    order = torch.empty(weights.shape, dtype=torch.int64, device=weights.device)
    costs = torch.full_like(order, torch.inf, dtype=torch.float64)
    if choose_backend(backend, sums) == "numba":
        from obert_modifiers.kernels._compiled import eliminate_blocks

        arrays = (weights.double(), eligible, order, costs)
        failed = eliminate_blocks(
            sums.numpy(), scale, damp, *(array.contiguous().numpy() for array in arrays)
        )
        check_definite(int(failed))
        return GreedyOrder(order, costs)
    for part in block_chunks(*sums.shape[:2]):
        order[part], costs[part] = _eliminate_torch(
            dampened(sums[part], scale, damp),
            weights[part].double(),
            eligible[part].clone(),
        )
    return GreedyOrder(order, costs)


def _eliminate_torch(
    fisher: Tensor, weights: Tensor, living: Tensor
) -> tuple[Tensor, Tensor]:
    num_blocks, width = weights.shape
    rows = torch.arange(num_blocks, device=weights.device)
    inverse = torch.cholesky_inverse(cholesky(fisher))
    order = torch.empty(num_blocks, width, dtype=torch.int64, device=weights.device)
    costs = torch.full_like(weights, torch.inf)
    for rank in range(width):
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        cost = torch.where(living, weights.square() / (2.0 * diagonal), torch.inf)
        # Where nothing lives any more, the ineligible ones follow by index.
        left = torch.where(living, cost, torch.inf)
        best = left.argmin(dim=1)
        alive = living[rows, best]
        order[:, rank] = torch.where(alive, best, -1)
        costs[:, rank] = left[rows, best]
        column = inverse[rows, :, best]  # (num_blocks, B)
        pivot = column[rows, best]
        gone = torch.where(alive, 1.0 / pivot, 0.0)
        weights = weights - column * (weights[rows, best] * gone)[:, None]
        inverse.baddbmm_(
            (column * gone[:, None]).unsqueeze(2), column.unsqueeze(1), alpha=-1
        )
        living = living.clone()
        living[rows, best] = False
        # A removed weight must not be divided by again.
        inverse[rows, best, best] = torch.where(alive, 1.0, inverse[rows, best, best])
    return _append_missing(order, width), costs


def _append_missing(order: Tensor, width: int) -> Tensor:
    taken = torch.zeros(order.shape[0], width + 1, dtype=torch.bool)
    taken = taken.to(order.device)
    taken.scatter_(1, torch.where(order < 0, width, order), True)
    # Stable sort: untaken indices first, each in order of the index.
    missing = taken[:, :width].to(torch.int8).argsort(dim=1, stable=True)
    rank = (order < 0).cumsum(dim=1) - 1
    return torch.where(order < 0, missing.gather(1, rank.clamp(min=0)), order)
