"""Selection: which weights go, given their saliency and an exact count.

What is chosen from lies in pieces, on one process or on several. Only counts travel.
"""

import math
from collections.abc import Mapping, Sequence
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
    """Parameters, by position, that compete for one count of pruned weights.

    The ``count`` is over all members and includes those pruned earlier.
    """

    members: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Quota:
    """Candidates that are ``wanted`` of a pool's members together.

    Each member may lose ``most`` of them; None is no limit.
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
        """Return the weights that go with chosen candidates ``(n,)``, ``(numel,)``."""
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
    """Return a quota for each pool of :func:`make_pools`, made with the pattern's unit.

    What is pruned in the masks ``kept``, ``(d / Q, Q)``, stays pruned and counts; a
    pool whose count is already reached wants nothing. ``by_weight`` says that the
    candidates of N:M are single weights; each parameter keeps ``min_density`` at least,
    to a candidate where all together can only lose so many.
    """
    single = by_weight and pattern.n_m is not None
    unit = 1 if single else pattern.unit
    gone = [_gone(mask, pattern, single) for mask in kept]
    quotas = []
    for pool in pools:
        wanted = pool.count // unit - sum(gone[i] for i in pool.members)
        most = None
        if min_density > 0.0:
            able = [(1.0 - min_density) * kept[i].numel() / unit for i in pool.members]
            # Rounded up only where the count is out of reach otherwise.
            for rounded in (math.floor, math.ceil):
                most = tuple(
                    max(0, rounded(one) - gone[i])
                    for i, one in zip(pool.members, able, strict=True)
                )
                if wanted <= sum(most):
                    break
        quotas.append(Quota(pool.members, max(0, wanted), most))
    return quotas


def _gone(kept: Tensor, pattern: MaskPattern, single: bool) -> int:
    lost = (~kept).sum(dim=1)
    if single:
        # What a group lost beyond its pattern does not spare another group.
        return int(lost.clamp(max=pattern.unit).sum())
    return int((lost >= pattern.unit).sum())


def choose(
    candidates: Mapping[int, Candidates],
    owners: Sequence[int],
    quotas: Sequence[Quota],
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """Choose the candidates of lowest saliency for each quota, over all processes.

    oBERT section 3.2.1 for a global threshold. Ties go to the lower piece, then to the
    lower index. Candidates are those of this process, by the place of their piece among
    all pieces, whose parameters are ``owners``. With a device, where the process group
    can work, the choice is among the candidates of all processes.

    Returns:
        For each piece of this process ``(n,)``, bool; raises as :func:`smallest` does.
    """
    chosen = {
        place: torch.zeros_like(one.saliency, dtype=torch.bool)
        for place, one in candidates.items()
    }
    for quota in quotas:
        keys: dict[int, Tensor] = {}
        for nth, member in enumerate(quota.members):
            own = {p: c.saliency for p, c in candidates.items() if owners[p] == member}
            if quota.most is not None:
                able = sum(int(torch.isfinite(key).sum()) for key in own.values())
                able = able if device is None else all_reduce_count(able, device)
                most = min(quota.most[nth], able)
                found = smallest(own, most, len(owners), device)
                own = {p: torch.where(found[p], own[p], torch.inf) for p in own}
            keys |= own
        chosen |= smallest(keys, quota.wanted, len(owners), device)
    return chosen


def smallest(
    saliencies: Mapping[int, Tensor],
    count: int,
    places: int,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """Mark the smallest values over all processes, ties by place, then by index.

    The value that divides is found digit by digit from counts, so that nothing is
    sorted and nothing but counts travels. Time: ``O(n)``; memory: 16 bytes for each
    value of this process. Takes the pieces of :func:`choose`, out of ``places``.

    Returns:
        For each piece ``(n_p,)``, bool; infinite values are never marked.

    Raises:
        FloatingPointError: If a saliency is NaN.
        ValueError: If there are fewer finite values than ``count``.
    """
    bits = {place: _ordered_bits(values) for place, values in saliencies.items()}
    none = torch.empty(0, dtype=torch.int64, device=device)
    flat = torch.cat([*bits.values()]) if bits else none
    bad = sum(int(torch.isnan(values).sum()) for values in saliencies.values())
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
        return {p: torch.zeros_like(v, dtype=torch.bool) for p, v in bits.items()}
    border, ties = _border(flat, count, device)
    equal = {place: values == border for place, values in bits.items()}
    per_place = torch.zeros(places, dtype=torch.int64, device=flat.device)
    for place, same in equal.items():
        per_place[place] = same.sum()
    per_place = _total(per_place, device)
    left = ties - (per_place.cumsum(0) - per_place)  # that may go, for each place
    return {
        place: (bits[place] < border) | (same & (same.cumsum(0) <= left[place]))
        for place, same in equal.items()
    }


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
