"""Selection: which weights go, given their saliency and an exact count.

What is chosen from lies in pieces, on one process or on several. Only counts travel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.core.distributed.parallel import all_reduce_, all_reduce_count
from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.schedule import sparsity_to_count

_DIGIT = 16  # bits of a saliency that are counted at a time
_LOWEST = -(1 << (_DIGIT - 1))
_INFINITY = 0x7FF0000000000000  # its bits in float64


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
class Quota:
    """What is still to be chosen in a pool.

    Attributes:
        members: Positions of the parameters.
        wanted: Candidates to choose, over all members.
        most: Candidates that each member may lose at most, or None for no limit.
    """

    members: tuple[int, ...]
    wanted: int
    most: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Candidates:
    """What can be pruned of a piece, and its saliency.

    Attributes:
        saliency: ``(n,)``, finite, or infinite for what cannot be pruned.
        members: ``(n, Q)``, bool, True = goes with the candidate, where candidate j
            is group j; None where it is one weight or a whole group.
        order: ``(num_blocks, n / num_blocks)``: index inside the block of each
            candidate, where candidates are listed by rank; None where candidate j is
            group j.
        group_size: Weights that go with a candidate, where ``members`` is None.
    """

    saliency: Tensor
    members: Tensor | None = None
    order: Tensor | None = None
    group_size: int = 1

    def pruned(self, chosen: Tensor, numel: int) -> Tensor:
        """Mark the weights that go with the chosen candidates ``(n,)``.

        Returns:
            ``(numel,)``, bool, in the order of the groups.
        """
        if self.order is not None:
            by_rank = chosen.reshape(self.order.shape)
            chosen = torch.zeros_like(by_rank).scatter_(1, self.order.long(), by_rank)
            chosen = chosen.reshape(-1)
        if self.members is not None:
            return (chosen.unsqueeze(1) & self.members).reshape(-1)
        return chosen.repeat_interleave(self.group_size)[:numel]


def make_pools(
    numels: Sequence[int],
    sparsities: Sequence[float],
    global_sparsity: bool,
    unit: int = 1,
) -> list[Pool]:
    """Turn target sparsities into exact counts, multiples of ``unit``.

    With ``global_sparsity`` the parameters that share a target compete with each other;
    else each is pruned to its own.

    Returns:
        Pools that cover every parameter once.
    """
    competing: dict[float, list[int]] = {}
    for i, sparsity in enumerate(sparsities):
        competing.setdefault(sparsity if global_sparsity else i, []).append(i)
    pools = []
    for members in competing.values():
        numel = sum(numels[i] for i in members)
        count = sparsity_to_count(sparsities[members[0]], numel, unit)
        pools.append(Pool(tuple(members), count))
    return pools


def make_quotas(
    pools: Sequence[Pool],
    kept: Sequence[Tensor],
    pattern: MaskPattern,
    *,
    by_weight: bool = False,
    min_density: float = 0.0,
) -> list[Quota]:
    """Count what is still to be chosen, given what was pruned earlier.

    Weights that are pruned stay pruned and count; a pool whose count is already
    reached wants nothing.

    Args:
        pools: As from :func:`make_pools` with the pattern's unit.
        kept: Mask of each parameter, ``(d / Q, Q)``, True = kept.
        pattern: Structure of the sparsity.
        by_weight: True where the candidates of N:M are single weights.
        min_density: Share of its weights that each parameter keeps at least.

    Returns:
        A quota for each pool.
    """
    single = by_weight and pattern.n_m is not None
    unit = 1 if single else pattern.unit
    gone = [_gone(mask, pattern, single) for mask in kept]
    quotas = []
    for pool in pools:
        wanted = pool.count // unit - sum(gone[i] for i in pool.members)
        most = None
        if min_density > 0.0:
            most = tuple(
                max(0, int((1.0 - min_density) * kept[i].numel()) // unit - gone[i])
                for i in pool.members
            )
        quotas.append(Quota(pool.members, max(0, wanted), most))
    return quotas


def _gone(kept: Tensor, pattern: MaskPattern, single: bool) -> int:
    if pattern.n_m is None:
        return int((~kept.any(dim=1)).sum())
    lost = (~kept).sum(dim=1)
    if single:
        # What a group lost beyond its pattern does not spare another group.
        return int(lost.clamp(max=pattern.unit).sum())
    return int((lost >= pattern.unit).sum())


def choose(
    candidates: Sequence[Candidates],
    places: Sequence[tuple[int, int]],
    num_places: int,
    quotas: Sequence[Quota],
    device: torch.device | None = None,
) -> list[Tensor]:
    """Choose the candidates of lowest saliency for each quota, over all processes.

    oBERT section 3.2.1 for a global threshold. Ties go to the lower place, then to the
    lower index.

    Args:
        candidates: Of each piece of this process.
        places: Of each of them, its parameter and its place among all pieces of all
            processes, increasing.
        num_places: Number of those.
        quotas: How many to choose.
        device: Where the process group can work; None chooses on this process only.

    Returns:
        For each piece of this process ``(n,)``, bool; raises as :func:`smallest` does.
    """
    chosen = [torch.zeros_like(c.saliency, dtype=torch.bool) for c in candidates]
    for quota in quotas:
        mine = [i for i, (target, _) in enumerate(places) if target in quota.members]
        keys = [candidates[i].saliency for i in mine]
        where = [places[i][1] for i in mine]
        if quota.most is not None:
            own = [places[i] for i in mine]
            keys = _limited(keys, own, num_places, quota, device)
        found = smallest(keys, quota.wanted, where, num_places, device)
        for i, part in zip(mine, found, strict=True):
            chosen[i] = part
    return chosen


def _limited(
    keys: list[Tensor],
    places: Sequence[tuple[int, int]],
    num_places: int,
    quota: Quota,
    device: torch.device | None,
) -> list[Tensor]:
    """Leave each member only as many candidates as it may lose; infinite for others."""
    limited = list(keys)
    for member, most in zip(quota.members, quota.most or (), strict=True):
        mine = [i for i, (target, _) in enumerate(places) if target == member]
        own = [keys[i] for i in mine]
        able = sum(int(torch.isfinite(key).sum()) for key in own)
        most = min(most, able if device is None else all_reduce_count(able, device))
        where = [places[i][1] for i in mine]
        found = smallest(own, most, where, num_places, device)
        for i, part in zip(mine, found, strict=True):
            limited[i] = torch.where(part, keys[i], torch.inf)
    return limited


def smallest(
    saliencies: Sequence[Tensor],
    count: int,
    places: Sequence[int] | None = None,
    num_places: int | None = None,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Mark the smallest values over all processes, ties by place, then by index.

    The value that divides is found digit by digit from counts, so that nothing is
    sorted and nothing but counts travels. Time: ``O(n)``; memory: 16 bytes for each
    value of this process. Places are those of :func:`choose`, None for one process.

    Returns:
        For each piece ``(n_p,)``, bool; infinite values are never marked.

    Raises:
        FloatingPointError: If a saliency is NaN.
        ValueError: If there are fewer finite values than ``count``.
    """
    places = range(len(saliencies)) if places is None else places
    bits = [_ordered_bits(saliency) for saliency in saliencies]
    flat = torch.cat(bits) if bits else torch.empty(0, dtype=torch.int64, device=device)
    bad = sum(int(torch.isnan(saliency).sum()) for saliency in saliencies)
    able = int((flat < _INFINITY).sum())
    totals = _total(torch.tensor([bad, able], device=device), device).tolist()
    if totals[0]:
        raise FloatingPointError(
            "saliency has NaN; expected finite weights and gradients; look for NaN in "
            "the model's weights"
        )
    if not 0 <= count <= totals[1]:
        raise ValueError(
            f"count={count} is outside [0, {totals[1]}]; expected a number of "
            "candidates; lower the sparsity"
        )
    if count == 0:
        return [torch.zeros_like(saliency, dtype=torch.bool) for saliency in saliencies]
    border, ties = _border(flat, count, device)
    equal = [values == border for values in bits]
    size = len(saliencies) if num_places is None else num_places
    per_place = torch.zeros(size, dtype=torch.int64, device=flat.device)
    for place, same in zip(places, equal, strict=True):
        per_place[place] = same.sum()
    before = _total(per_place, device).cumsum(0) - per_place
    chosen = []
    for place, values, same in zip(places, bits, equal, strict=True):
        left = ties - int(before[place])
        chosen.append((values < border) | (same & (same.cumsum(0) <= left)))
    return chosen


def _total(counts: Tensor, device: torch.device | None) -> Tensor:
    return counts if device is None else all_reduce_(counts)


def _ordered_bits(values: Tensor) -> Tensor:
    # Integers in the order of the numbers; adding zero makes both zeros one.
    bits = (values.double() + 0.0).view(torch.int64)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


def _border(values: Tensor, count: int, device: torch.device | None) -> tuple[int, int]:
    """Return the value of rank ``count`` from 1, and how many equal to it are to go."""
    found = 0
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        digits = values >> shift
        # The first digit has the sign.
        first = shift == 64 - _DIGIT
        digits = digits - _LOWEST if first else digits & ((1 << _DIGIT) - 1)
        counts = _total(torch.bincount(digits, minlength=1 << _DIGIT), device)
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, count))
        count -= int(below[digit] - counts[digit])
        values = values[digits == digit]
        found = (found << _DIGIT) + digit + (_LOWEST if first else 0)
    return found, count
