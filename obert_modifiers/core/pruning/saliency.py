"""Saliency of weights: the loss increase that their removal is predicted to cost."""

import math

import torch
from torch import Tensor

from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.blocks import from_blocks, to_blocks
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.selection import Candidates
from obert_modifiers.kernels import (
    cheapest_subsets,
    eliminate_greedily,
    inverse_group_blocks,
    solve_groups,
)

MAX_SUBSETS = 70  # masks of an N:M group that are scored one by one; 70 for 4:8


def magnitude_saliency(weight: Tensor) -> Tensor:
    """Take the absolute value of each weight as its saliency.

    The order of magnitude pruning (GMP★ section 2); it carries no unit of loss.

    Args:
        weight: ``(d,)`` or any shape.

    Returns:
        ``(d,)``, at least float32.
    """
    values = weight.detach().reshape(-1)
    return (values if values.element_size() >= 4 else values.float()).abs()


def obs_saliency(weight: Tensor, fisher: BlockFisher, damp: float) -> Tensor:
    r"""Compute the saliency of each single weight.

    :math:`\rho_j = w_j^2 / (2 [F^{-1}]_{jj})`, oBERT section 3.1 for a group of one.

    Args:
        weight: ``(d,)`` or any shape with d elements.
        fisher: State of the parameter.
        damp: Dampening, larger than 0.

    Returns:
        ``(d,)``, float64, >= 0.
    """
    blocks = inverse_group_blocks(fisher.sums, fisher.scale, damp, group_size=1)
    diagonal = from_blocks(blocks, fisher.numel)
    return weight.detach().reshape(-1).double().square() / (2.0 * diagonal)


def magnitude_candidates(
    weights: Tensor, kept: Tensor, pattern: MaskPattern
) -> Candidates:
    """Price each group by the sum of the magnitudes that it would lose.

    For whole groups this is the order of SparseML's block masks, which take the mean
    magnitude. An N:M group loses its M - N smallest weights, ties by index.

    Args:
        weights: ``(groups, Q)``.
        kept: ``(groups, Q)``, current mask, True = kept.
        pattern: Structure of the sparsity.

    Returns:
        One candidate for each group.
    """
    sizes = magnitude_saliency(weights).reshape(weights.shape)
    if pattern.n_m is None:
        return _whole_groups(sizes.sum(dim=1), kept)
    members = _first_in_group(sizes, kept, pattern.unit)
    return _patterns((sizes * members).sum(dim=1), members, kept, pattern)


def obs_candidates(
    weights: Tensor,
    kept: Tensor,
    fisher: BlockFisher,
    damp: float,
    pattern: MaskPattern,
) -> Candidates:
    r"""Price what each group would lose by the loss increase that it costs.

    :math:`\rho_P = \frac12 w_P^T ([F^{-1}]_{PP})^{-1} w_P`, oBERT section 3.1, with P
    the whole group. For N:M, P are the M - N weights of the group for which that is
    lowest: all sets are tried where there are at most :data:`MAX_SUBSETS`, otherwise
    P are the weights of lowest single saliency.

    Args:
        weights: ``(groups, Q)``, in the order of the Fisher.
        kept: ``(groups, Q)``, current mask, True = kept.
        fisher: State of the parameter.
        damp: Dampening, larger than 0.
        pattern: Structure of the sparsity.

    Returns:
        One candidate for each group; costs in float64, >= 0.
    """
    size = pattern.group_size
    if size == 1:
        return _whole_groups(obs_saliency(weights, fisher, damp), kept)
    width, count = fisher.fisher_block_size, len(weights)
    inverse = inverse_group_blocks(fisher.sums, fisher.scale, damp, size)
    values = to_blocks(weights.detach().reshape(-1), width).reshape(inverse.shape[:3])
    gone = to_blocks(~kept.reshape(-1), width).bool().reshape(inverse.shape[:3])
    if pattern.n_m is None:
        pull = solve_groups(inverse, values, torch.ones_like(gone))
        costs = 0.5 * (values * pull).sum(dim=2)
        return _whole_groups(costs.reshape(-1)[:count], kept)
    if math.comb(size, pattern.unit) <= MAX_SUBSETS:
        costs, members = cheapest_subsets(inverse, values, gone, pattern.unit)
    else:
        diagonal = inverse.diagonal(dim1=2, dim2=3)
        singles = values.double().square() / (2.0 * diagonal)
        members = _first_in_group(singles, ~gone, pattern.unit)
        costs = 0.5 * (values * solve_groups(inverse, values, members)).sum(dim=2)
    members = members.reshape(-1, size)[:count]
    return _patterns(costs.reshape(-1)[:count], members, kept, pattern)


def greedy_candidates(
    weights: Tensor,
    kept: Tensor,
    fisher: BlockFisher,
    damp: float,
    pattern: MaskPattern,
) -> Candidates:
    """Price weights or groups in the order of greedy elimination in their block.

    See :func:`obert_modifiers.kernels.eliminate_greedily`. Blocks compete through the
    running maximum of their costs, so that the order inside a block is kept.

    Args:
        weights: ``(groups, Q)``, in the order of the Fisher.
        kept: ``(groups, Q)``, current mask, True = kept.
        fisher: State of the piece.
        damp: Dampening, larger than 0.
        pattern: Structure of the sparsity.

    Returns:
        One candidate for each rank in each block; costs in float64, infinite for
        ranks that stand for nothing.
    """
    width = fisher.fisher_block_size
    size = 1 if pattern.n_m else pattern.group_size
    greedy = eliminate_greedily(
        fisher.sums,
        fisher.scale,
        damp,
        to_blocks(weights.reshape(-1), width),
        living_blocks(kept, width),
        group_size=size,
        n_m=pattern.n_m,
    )
    costs = running_maximum(greedy.costs).reshape(-1)
    small = torch.int16 if width <= 2**15 else torch.int64
    return Candidates(costs, None, greedy.order.to(small), size)


def _whole_groups(costs: Tensor, kept: Tensor) -> Candidates:
    alive = kept.any(dim=1)
    return Candidates(torch.where(alive, costs, torch.inf), group_size=kept.shape[1])


def _patterns(
    costs: Tensor, members: Tensor, kept: Tensor, pattern: MaskPattern
) -> Candidates:
    unfinished = (~kept).sum(dim=1) < pattern.unit
    return Candidates(torch.where(unfinished, costs, torch.inf), members)


def _first_in_group(saliency: Tensor, kept: Tensor, count: int) -> Tensor:
    # Those pruned earlier come first; ties go by index.
    keys = torch.where(kept, saliency, -1.0)
    lowest = keys.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(kept).scatter_(-1, lowest, True)


def living_blocks(mask: Tensor, fisher_block_size: int) -> Tensor:
    """Mark the weights of each block that can still be pruned.

    Args:
        mask: Mask of the parameter, True = kept, any shape with d elements.
        fisher_block_size: Width B of a block.

    Returns:
        ``(num_blocks, B)``, bool; padding is False.
    """
    return to_blocks(mask.reshape(-1), fisher_block_size).bool()


def running_maximum(costs: Tensor) -> Tensor:
    """Make greedy costs comparable across blocks without changing their order.

    A later removal in a block may be cheaper than an earlier one; with the running
    maximum it never sorts before it.

    Args:
        costs: ``(num_blocks, B)``, by rank inside the block.

    Returns:
        ``(num_blocks, B)``, not decreasing along the ranks.
    """
    return torch.cummax(costs, dim=1).values
