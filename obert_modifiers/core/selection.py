"""Selection: which weights go, given their saliencies and an exact count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


def make_pools(
    numels: Sequence[int], sparsities: Sequence[float], global_sparsity: bool
) -> list[Pool]:
    """Turn target sparsities into exact counts.

    Args:
        numels: Number of weights of each parameter.
        sparsities: Target sparsity of each parameter, in [0, 1].
        global_sparsity: True lets the parameters that share a target compete with
            each other; False prunes each to its own target.

    Returns:
        Pools that cover every parameter once.
    """
    if not global_sparsity:
        return [
            Pool((i,), sparsity_to_count(sparsity, numel))
            for i, (numel, sparsity) in enumerate(zip(numels, sparsities, strict=True))
        ]
    by_target: dict[float, list[int]] = {}
    for i, sparsity in enumerate(sparsities):
        by_target.setdefault(sparsity, []).append(i)
    return [
        Pool(tuple(members), sparsity_to_count(target, sum(numels[i] for i in members)))
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


def _write_masks(fresh: list[Tensor], kept: Tensor, members: Sequence[int]) -> None:
    sizes = [fresh[i].numel() for i in members]
    for i, part in zip(members, kept.split(sizes), strict=True):
        fresh[i] = part.reshape(fresh[i].shape)
