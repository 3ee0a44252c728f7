"""Selection: which weights go, given their saliencies and an exact count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.core.blocks import MaskPattern
from obert_modifiers.core.schedule import sparsity_to_count


@dataclass(frozen=True)
class Pool:
    """Parameters that compete for one count of pruned weights.

    Attributes:
        members: Positions of the parameters.
        count: Weights to be pruned among all members, those pruned earlier included.
    """

    members: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Candidates:
    """What each group of a parameter would lose next, and at which cost.

    Attributes:
        costs: ``(groups,)``, saliency of the removal.
        members: ``(groups, Q)``, bool, True = goes with it.
        living: ``(groups,)``, bool, True = has not lost its members yet.
    """

    costs: Tensor
    members: Tensor
    living: Tensor


def make_pools(
    numels: Sequence[int],
    sparsities: Sequence[float],
    global_sparsity: bool,
    unit: int = 1,
) -> list[Pool]:
    """Turn target sparsities into exact counts.

    Args:
        numels: Number of weights of each parameter.
        sparsities: Target sparsity of each parameter, in [0, 1].
        global_sparsity: True lets the parameters that share a target compete with
            each other; False prunes each to its own target.
        unit: Weights that are pruned together; counts are multiples of it.

    Returns:
        Pools that cover every parameter once.
    """
    if not global_sparsity:
        return [
            Pool((i,), sparsity_to_count(sparsity, numel, unit))
            for i, (numel, sparsity) in enumerate(zip(numels, sparsities, strict=True))
        ]
    by_target: dict[float, list[int]] = {}
    for i, sparsity in enumerate(sparsities):
        by_target.setdefault(sparsity, []).append(i)
    totals = {
        target: sum(numels[i] for i in members) for target, members in by_target.items()
    }
    return [
        Pool(tuple(members), sparsity_to_count(target, totals[target], unit))
        for target, members in by_target.items()
    ]


def smallest(saliency: Tensor, count: int) -> Tensor:
    """Mark the smallest values, ties by index.

    Args:
        saliency: ``(n,)``, no NaN.
        count: How many to mark, between 0 and n.

    Returns:
        ``(n,)``, bool, exactly ``count`` True.

    Raises:
        FloatingPointError: If a saliency is NaN.
        ValueError: If the count is outside [0, n].
    """
    if not 0 <= count <= saliency.numel():
        raise ValueError(
            f"count={count} is outside [0, {saliency.numel()}]; expected a number of "
            "candidates; lower the sparsity"
        )
    if bool(torch.isnan(saliency).any()):
        raise FloatingPointError(
            "saliency has NaN; expected finite weights and gradients; look for NaN in "
            "the model's weights"
        )
    chosen = torch.zeros(saliency.numel(), dtype=torch.bool, device=saliency.device)
    if count == 0:
        return chosen
    threshold = saliency.kthvalue(count).values
    chosen = saliency < threshold
    ties = (saliency == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def select_independently(
    saliencies: Sequence[Tensor], masks: Sequence[Tensor], pools: Sequence[Pool]
) -> list[Tensor]:
    """Prune the weights of lowest saliency in each pool.

    oBERT section 3.2.1. Weights that are pruned stay pruned and count; a pool whose
    count is already exceeded stays as it is.

    Args:
        saliencies: ``(d,)`` for each parameter.
        masks: Current mask of each parameter, True = kept, shape of the parameter.
        pools: As from :func:`make_pools`.

    Returns:
        New masks, each a subset of the old one.
    """
    fresh = [mask.clone() for mask in masks]
    for pool in pools:
        living = torch.cat([masks[i].reshape(-1) for i in pool.members])
        candidates = torch.cat([saliencies[i] for i in pool.members])[living]
        wanted = pool.count - (living.numel() - candidates.numel())
        if wanted <= 0:
            continue
        kept = living.clone()
        kept[living] = ~smallest(candidates, wanted)
        _write_masks(fresh, kept, pool.members)
    return fresh


def select_greedily(
    keys: Sequence[Tensor],
    orders: Sequence[Tensor],
    masks: Sequence[Tensor],
    pools: Sequence[Pool],
) -> list[Tensor]:
    """Prune in the greedy order of each block, blocks competing by cost.

    Args:
        keys: ``(num_blocks, B)`` for each parameter: cost by rank, not decreasing
            along the ranks, infinite for weights that cannot be pruned.
        orders: ``(num_blocks, B)`` for each parameter: index inside the block by rank.
        masks: Current mask of each parameter, True = kept, shape of the parameter.
        pools: As from :func:`make_pools`.

    Returns:
        New masks, each a subset of the old one.
    """
    fresh = [mask.clone() for mask in masks]
    for pool in pools:
        living = sum(int(masks[i].sum()) for i in pool.members)
        total = sum(masks[i].numel() for i in pool.members)
        wanted = pool.count - (total - living)
        if wanted <= 0:
            continue
        flat = torch.cat([keys[i].reshape(-1) for i in pool.members])
        # Ties by position keep the order inside a block, as ranks come in order.
        chosen = smallest(flat, wanted)
        start = 0
        for i in pool.members:
            size = keys[i].numel()
            by_rank = chosen[start : start + size].reshape(keys[i].shape)
            gone = torch.zeros_like(by_rank).scatter_(1, orders[i], by_rank)
            gone = gone.reshape(-1)[: masks[i].numel()].reshape(masks[i].shape)
            fresh[i] &= ~gone
            start += size
    return fresh


def select_candidates(
    candidates: Sequence[Candidates],
    kept: Sequence[Tensor],
    pools: Sequence[Pool],
    unit: int,
) -> list[Tensor]:
    """Prune the candidates of lowest cost in each pool.

    Args:
        candidates: Of each parameter, one for each group.
        kept: ``(groups, Q)`` of each parameter, current mask, True = kept.
        pools: As from :func:`make_pools`.
        unit: Weights that a group loses; the pools' counts are multiples of it.

    Returns:
        New masks, ``(groups, Q)``, each a subset of the old one.
    """
    left = select_independently(
        [c.costs for c in candidates],
        [c.living for c in candidates],
        [Pool(pool.members, pool.count // unit) for pool in pools],
    )
    return [
        mask & ~((c.living & ~lives).unsqueeze(1) & c.members)
        for mask, c, lives in zip(kept, candidates, left, strict=True)
    ]


def select_ranked(
    keys: Sequence[Tensor],
    orders: Sequence[Tensor],
    kept: Sequence[Tensor],
    pools: Sequence[Pool],
    pattern: MaskPattern,
) -> list[Tensor]:
    """Prune in the greedy order of each block, for any structure.

    Args:
        keys: As for :func:`select_greedily`, by rank of a group where groups go as a
            whole, by rank of a weight otherwise.
        orders: The same for the index inside the block.
        kept: ``(groups, Q)`` of each parameter, current mask, True = kept.
        pools: As from :func:`make_pools` with the pattern's unit.
        pattern: Structure of the sparsity.

    Returns:
        New masks, ``(groups, Q)``, each a subset of the old one.
    """
    if pattern.n_m is None:
        scaled = [Pool(pool.members, pool.count // pattern.unit) for pool in pools]
        living = [mask.any(dim=1) for mask in kept]
        left = select_greedily(keys, orders, living, scaled)
        return [m & alive.unsqueeze(1) for m, alive in zip(kept, left, strict=True)]
    # What a group lost beyond its pattern does not spare another group.
    excess = [int((~m).sum(dim=1).sub(pattern.unit).clamp(min=0).sum()) for m in kept]
    raised = [
        Pool(pool.members, pool.count + sum(excess[i] for i in pool.members))
        for pool in pools
    ]
    return select_greedily(keys, orders, kept, raised)


def _write_masks(fresh: list[Tensor], kept: Tensor, members: Sequence[int]) -> None:
    sizes = [fresh[i].numel() for i in members]
    for i, part in zip(members, kept.split(sizes), strict=True):
        fresh[i] = part.reshape(fresh[i].shape)
