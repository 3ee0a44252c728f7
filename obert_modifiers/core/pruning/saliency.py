"""Saliency: the predicted loss increase of removing a weight or a group."""

import math

import torch
from torch import Tensor

from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.blocks import from_blocks, to_blocks
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.selection import Candidates
from obert_modifiers.kernels import (
    eliminate_greedily,
    inverse_group_blocks,
    lowest_subsets,
    solve_groups,
)

MAX_SUBSETS = 70  # sets of an N:M group that are tried; 70 for 4:8


def magnitude_saliency(weight: Tensor) -> Tensor:
    """Return the absolute value of each weight, ``(d,)``, at least float32.

    The order of magnitude pruning (GMP★ section 2); it carries no unit of loss.
    """
    values = weight.detach().reshape(-1)
    return (values if values.element_size() >= 4 else values.float()).abs()


def obs_saliency(weight: Tensor, fisher: BlockFisher, damp: float) -> Tensor:
    r"""Return the saliency of each single weight, ``(d,)``, float64, >= 0.

    :math:`\rho_j = w_j^2 / (2 [F^{-1}]_{jj})`, oBERT section 3.1 for a group of one.
    """
    blocks = inverse_group_blocks(fisher.sums, fisher.scale, damp, group_size=1)
    diagonal = from_blocks(blocks, fisher.numel)
    return weight.detach().reshape(-1).double().square() / (2.0 * diagonal)


def magnitude_candidates(
    weights: Tensor, kept: Tensor, pattern: MaskPattern
) -> Candidates:
    """Rank each group by the sum of the magnitudes that it would lose.

    For whole groups this is the order of SparseML's block masks, which take the mean
    magnitude. An N:M group loses its M - N smallest weights, ties by index.

    Returns:
        A candidate for each group of weights and mask, ``(d / Q, Q)``.
    """
    sizes = magnitude_saliency(weights).reshape(weights.shape)
    if pattern.n_m is None:
        return _whole_groups(sizes.sum(dim=1), kept)
    members = _first_in_group(sizes, kept, pattern.unit)
    return _members((sizes * members).sum(dim=1), members, kept, pattern)


def obs_candidates(
    weights: Tensor,
    kept: Tensor,
    fisher: BlockFisher,
    damp: float,
    pattern: MaskPattern,
) -> Candidates:
    r"""Compute the saliency of each group, as if no other went.

    :math:`\rho_P = \frac12 w_P^T ([F^{-1}]_{PP})^{-1} w_P`, oBERT section 3.1, with P
    the whole group. For N:M, P are the M - N weights of the group for which that is
    lowest: all sets are tried where there are at most :data:`MAX_SUBSETS`, otherwise
    P are the weights of lowest single saliency. Weights and mask are ``(d / Q, Q)``.

    Returns:
        A candidate for each group; saliency in float64, >= 0.
    """
    size = pattern.group_size
    if size == 1:
        return _whole_groups(obs_saliency(weights, fisher, damp), kept)
    width, count = fisher.fisher_block_size, len(weights)
    f_inv = inverse_group_blocks(fisher.sums, fisher.scale, damp, size)
    shape = f_inv.shape[:3]  # (num_blocks, B / Q, Q)
    values = to_blocks(weights.detach().reshape(-1), width).reshape(shape)
    gone = to_blocks(~kept.reshape(-1), width).bool().reshape(shape)
    if pattern.n_m is None:
        pull = solve_groups(f_inv, values, torch.ones_like(gone))
        saliency = 0.5 * (values * pull).sum(dim=2)
        return _whole_groups(saliency.reshape(-1)[:count], kept)
    if math.comb(size, pattern.unit) <= MAX_SUBSETS:
        saliency, members = lowest_subsets(f_inv, values, gone, pattern.unit)
    else:
        diagonal = f_inv.diagonal(dim1=2, dim2=3)
        singles = values.double().square() / (2.0 * diagonal)
        members = _first_in_group(singles, ~gone, pattern.unit)
        saliency = 0.5 * (values * solve_groups(f_inv, values, members)).sum(dim=2)
    members = members.reshape(-1, size)[:count]
    return _members(saliency.reshape(-1)[:count], members, kept, pattern)


def greedy_candidates(
    weights: Tensor,
    kept: Tensor,
    fisher: BlockFisher,
    damp: float,
    pattern: MaskPattern,
) -> Candidates:
    """Rank weights or groups in the order of greedy elimination in their block.

    See :func:`obert_modifiers.kernels.eliminate_greedily`. Blocks compete through the
    running maximum of the saliency: a later removal in a block may have a lower one
    than an earlier removal, and must not sort before it. Weights and mask are
    ``(d / Q, Q)``.

    Returns:
        A candidate for each rank in each block; saliency in float64, infinite for
        ranks that stand for nothing.
    """
    width = fisher.fisher_block_size
    size = 1 if pattern.n_m else pattern.group_size
    greedy = eliminate_greedily(
        fisher.sums,
        fisher.scale,
        damp,
        to_blocks(weights.reshape(-1), width),
        to_blocks(kept.reshape(-1), width).bool(),  # padding is never selectable
        group_size=size,
        n_m=pattern.n_m,
    )
    saliency = torch.cummax(greedy.saliency, dim=1).values.reshape(-1)
    small = torch.int16 if width <= 2**15 else torch.int64
    return Candidates(saliency, None, greedy.order.to(small), size)


def _whole_groups(saliency: Tensor, kept: Tensor) -> Candidates:
    alive = kept.any(dim=1)
    saliency = torch.where(alive, saliency, torch.inf)
    return Candidates(saliency, group_size=kept.shape[1])


def _members(
    saliency: Tensor, members: Tensor, kept: Tensor, pattern: MaskPattern
) -> Candidates:
    unfinished = (~kept).sum(dim=1) < pattern.unit
    return Candidates(torch.where(unfinished, saliency, torch.inf), members)


def _first_in_group(saliency: Tensor, kept: Tensor, count: int) -> Tensor:
    # Those pruned earlier come first; ties go by index.
    keys = torch.where(kept, saliency, -1.0)
    lowest = keys.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(kept).scatter_(-1, lowest, True)
