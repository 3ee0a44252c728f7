"""Triton kernels for greedy elimination and for the small systems of groups.

Elimination holds the inverse of one block on chip from its first removal to its last:
a loop over the ranks, in each of which a row is picked out and its outer product taken
away. Groups of Q weights lie in the tile in slots of the next power of two above Q.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from obert_modifiers.kernels._backend import padded_width
from obert_modifiers.kernels._triton_fisher import (
    as_bytes,
    launch,
    load_fisher,
    on_device,
    sweep,
    take_row,
)

_CELLS = 4096  # entries of the tile of small systems that a program works on


@triton.jit
def _prices(systems, right, SIZE: tl.constexpr):
    """Compute ``r^T A^-1 r`` of each system.

    By elimination, ``A = L D L^T``: it is the sum of ``r_p^2 / d_p``.

    Returns:
        The prices, and which systems have all pivots above 0.
    """
    place = tl.arange(0, systems.shape[1])
    price = tl.zeros((systems.shape[0],), tl.float64)
    sound = price == 0.0
    for p in tl.static_range(SIZE):
        here = place == p
        row = tl.sum(tl.where(here[None, :, None], systems, 0.0), axis=1)
        pivot = tl.sum(tl.where(here[None, :], row, 0.0), axis=1)
        value = tl.sum(tl.where(here[None, :], right, 0.0), axis=1)
        sound = sound & (pivot > 0.0)
        pivot = tl.where(pivot > 0.0, pivot, 1.0)
        price += value * value / pivot
        right -= row * (value / pivot)[:, None]
        share = row / tl.sqrt(pivot)[:, None]
        systems -= share[:, :, None] * share[:, None, :]
    return price, sound


@triton.jit
def _diagonal_groups(tile, GROUPS: tl.constexpr, SLOTS: tl.constexpr):
    """Copy the diagonal group blocks of a tile.

    Returns:
        ``(groups, slots, slots)``.
    """
    place = tl.arange(0, GROUPS * SLOTS)
    slot = tl.arange(0, SLOTS)
    same = (place // SLOTS)[:, None] == (place // SLOTS)[None, :]
    systems = tl.zeros((GROUPS, SLOTS, SLOTS), tl.float64)
    for q in tl.static_range(SLOTS):
        chosen = same & (place % SLOTS == q)[:, None]
        row = tl.sum(tl.where(chosen, tile, 0.0), axis=0).reshape(GROUPS, SLOTS)
        systems = tl.where((slot == q)[None, :, None], row[:, None, :], systems)
    return systems


@triton.jit
def _eliminate(
    sums,
    numbers,
    weights,
    eligible,
    order,
    costs,
    failed,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    KEPT: tl.constexpr,
    OF: tl.constexpr,
):
    """Remove groups of SIZE weights, down to KEPT of every OF consecutive groups."""
    block = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, GROUPS * SLOTS)
    index = place // SLOTS * SIZE + place % SLOTS
    filled = (place % SLOTS < SIZE) & (index < WIDTH)
    value = tl.load(weights + block * WIDTH + index, mask=filled, other=0.0)
    able = tl.load(eligible + block * WIDTH + index, mask=filled, other=0).to(tl.int32)

    # A group that has one eligible weight is in the Fisher with all its weights.
    group = tl.arange(0, GROUPS)
    living = tl.max(able.reshape(GROUPS, SLOTS), axis=1) > 0
    inside = living[:, None] & (tl.arange(0, SLOTS) < SIZE)[None, :]
    inside = inside.to(tl.int32).reshape(GROUPS * SLOTS) > 0
    tile = load_fisher(sums, numbers, block, index, inside, WIDTH)
    unsound = 0
    for p in range(WIDTH // SIZE * SLOTS):
        if tl.sum(tl.where((place == p) & inside, 1, 0), axis=0) > 0:
            tile, _, _, sound = sweep(tile, place, p)
            unsound += tl.where(sound, 0, 1)
    tile = -tile

    mates = (group // OF)[:, None] == (group // OF)[None, :]
    left = tl.sum((mates & living[:, None]).to(tl.int32), axis=0) - KEPT
    leads = (group % OF == 0) & (left > 0)
    removals = tl.sum(tl.where(leads, left, 0), axis=0)
    removals = tl.where(unsound > 0, 0, removals)
    taken = group < 0
    systems = _diagonal_groups(tile, GROUPS, SLOTS)
    slot = tl.arange(0, SLOTS)
    unit = tl.where(slot[:, None] == slot[None, :], 1.0, 0.0).to(tl.float64)
    start = block * (WIDTH // SIZE)
    for rank in range(removals):
        open_ones = living & (left > 0)
        price, sound = _prices(
            tl.where(open_ones[:, None, None], systems, unit[None, :, :]),
            value.reshape(GROUPS, SLOTS),
            SIZE,
        )
        unsound += tl.sum((open_ones & (sound == 0)).to(tl.int32), axis=0)
        price = tl.where(open_ones, price, float("inf"))
        lowest, best = tl.min(price, axis=0, return_indices=True)
        tl.store(order + start + rank, best.to(tl.int64))
        tl.store(costs + start + rank, 0.5 * lowest)
        for q in tl.static_range(SIZE):
            row, pivot, sound = take_row(tile, place, best * SLOTS + q)
            unsound += tl.where(sound, 0, 1)
            own = tl.sum(tl.where(place == best * SLOTS + q, value, 0.0), axis=0)
            value -= row * (own / pivot)
            share = row / tl.sqrt(pivot)
            tile -= share[:, None] * share[None, :]
            share = share.reshape(GROUPS, SLOTS)
            systems -= share[:, :, None] * share[:, None, :]
        taken = taken | (group == best)
        living = living & (group != best)
        left -= tl.where(group // OF == best // OF, 1, 0)

    # What stays follows by index.
    rest = (group < WIDTH // SIZE) & (taken == 0)
    position = removals + tl.cumsum(rest.to(tl.int32), axis=0) - 1
    tl.store(order + start + position, group.to(tl.int64), mask=rest)
    tl.store(failed + block, tl.where(unsound > 0, 1, 0))


def eliminate(
    tensors: tuple[Tensor, Tensor, Tensor],
    scale: float,
    damp: float,
    structure: tuple[int, ...],
    found: tuple[Tensor, Tensor],
) -> int:
    """Order the eligible weights or groups of every block by greedy elimination.

    Args:
        tensors: Sums ``(num_blocks, B, B)``, weights and eligible ``(num_blocks, B)``.
        scale: One over the number of gradients.
        damp: Dampening, larger than 0.
        structure: ``(Q,)`` for whole groups, ``(M, M - N)`` for N:M.
        found: Order and costs, ``(num_blocks, B / Q)``; written. Costs are infinite on
            entry.

    Returns:
        The number of blocks that are not positive definite.
    """
    sums, weights, eligible = tensors
    num_blocks, width = weights.shape
    size, kept, of = structure[0], 0, 1
    if len(structure) == 2:
        size, kept, of = 1, structure[0] - structure[1], structure[0]
    groups, slots = padded_width(width // size), padded_width(size)
    failed = torch.zeros(num_blocks, dtype=torch.int32, device=sums.device)
    launch(
        _eliminate,
        (num_blocks,),
        sums.contiguous(),
        on_device(scale, damp, sums),
        weights.double().contiguous(),
        as_bytes(eligible),
        *found,
        failed,
        cells=(groups * slots) ** 2,
        WIDTH=width,
        SIZE=size,
        GROUPS=groups,
        SLOTS=slots,
        KEPT=kept,
        OF=of,
    )
    return int(failed.sum())


@triton.jit
def _cheapest(
    groups,
    weights,
    pruned,
    subsets,
    costs,
    found,
    failed,
    count,
    num_subsets,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = group < count
    slot = tl.arange(0, SLOTS)
    held = tl.zeros((TILE,), tl.int32)
    for i in range(WIDTH):
        flag = tl.load(pruned + group * WIDTH + i, mask=inside, other=0)
        held += flag.to(tl.int32)
    best = tl.zeros((TILE,), tl.float64) + float("inf")
    nth = tl.zeros((TILE,), tl.int64) - 1
    unsound = tl.zeros((TILE,), tl.int32)
    filled = slot < SIZE
    unit = tl.where(slot[:, None] == slot[None, :], 1.0, 0.0).to(tl.float64)
    for s in range(num_subsets):
        member = tl.load(subsets + s * SIZE + slot, mask=filled, other=0)
        cell = group[:, None] * WIDTH + member[None, :]
        cells = inside[:, None] & filled[None, :]
        flags = tl.load(pruned + cell, mask=cells, other=0).to(tl.int32)
        holds = inside & (tl.sum(flags, axis=1) == held)
        both = holds[:, None, None] & filled[None, :, None] & filled[None, None, :]
        pairs = groups + cell[:, :, None] * WIDTH + member[None, None, :]
        systems = tl.load(pairs, mask=both, other=0.0)
        right = tl.load(weights + cell, mask=cells, other=0.0)
        price, sound = _prices(tl.where(both, systems, unit[None, :, :]), right, SIZE)
        unsound += (holds & (sound == 0)).to(tl.int32)
        better = holds & (0.5 * price < best)
        best = tl.where(better, 0.5 * price, best)
        nth = tl.where(better, s, nth)
    tl.store(costs + group, best, mask=inside)
    tl.store(found + group, nth, mask=inside)
    tl.store(failed + group, unsound, mask=inside)


def find_cheapest_subsets(
    groups: Tensor,
    weights: Tensor,
    pruned: Tensor,
    subsets: Tensor,
    costs: Tensor,
    found: Tensor,
) -> int:
    """Find the cheapest subset of every group among those that hold what is pruned.

    Args:
        groups: ``(num_blocks, B / Q, Q, Q)``, float64.
        weights: ``(num_blocks, B / Q, Q)``.
        pruned: ``(num_blocks, B / Q, Q)``, bool.
        subsets: ``(sets, size)``, int64, in the order in which ties are broken.
        costs: ``(num_blocks, B / Q)``, float64; written.
        found: ``(num_blocks, B / Q)``, int64; the index of the subset, written.

    Returns:
        The number of blocks with a system that is not positive definite.
    """
    num_subsets, size = subsets.shape
    slots = padded_width(size)
    tile = max(1, _CELLS // slots**2 // 4)
    failed = torch.zeros(found.shape, dtype=torch.int32, device=found.device)
    launch(
        _cheapest,
        (triton.cdiv(found.numel(), tile),),
        groups.contiguous(),
        weights.double().contiguous(),
        as_bytes(pruned),
        subsets.to(found.device),
        costs,
        found,
        failed,
        found.numel(),
        num_subsets,
        cells=_CELLS,
        WIDTH=weights.shape[2],
        SIZE=size,
        SLOTS=slots,
        TILE=tile,
    )
    return int((failed > 0).any(dim=1).sum())


@triton.jit
def _solve(
    groups,
    weights,
    members,
    solved,
    failed,
    count,
    SIZE: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    slot = tl.arange(0, SLOTS)
    cell = group[:, None] * SIZE + slot[None, :]
    cells = (group < count)[:, None] & (slot < SIZE)[None, :]
    chosen = tl.load(members + cell, mask=cells, other=0) != 0
    both = chosen[:, :, None] & chosen[:, None, :]
    pairs = groups + cell[:, :, None] * SIZE + slot[None, None, :]
    unit = tl.where(slot[:, None] == slot[None, :], 1.0, 0.0).to(tl.float64)
    systems = tl.where(both, tl.load(pairs, mask=both, other=0.0), unit[None, :, :])
    step = tl.load(weights + cell, mask=chosen, other=0.0)
    unsound = tl.zeros((TILE,), tl.int32)
    for p in range(SIZE):
        here = slot == p
        row = tl.sum(tl.where(here[None, :, None], systems, 0.0), axis=1)
        pivot = tl.sum(tl.where(here[None, :], row, 0.0), axis=1)
        unsound += tl.where(pivot > 0.0, 0, 1)
        pivot = tl.where(pivot > 0.0, pivot, 1.0)[:, None]
        pulled = tl.sum(tl.where(here[None, :], step, 0.0), axis=1)[:, None]
        step = tl.where(here[None, :], pulled / pivot, step - row * (pulled / pivot))
        # One sweep, as in `sweep`, of every system of the tile.
        edge = tl.where(here[None, :], -1.0, row) / pivot
        share = row / tl.sqrt(pivot)
        systems -= share[:, :, None] * share[:, None, :]
        systems = tl.where(here[None, None, :], edge[:, :, None], systems)
        systems = tl.where(here[None, :, None], edge[:, None, :], systems)
    tl.store(solved + cell, tl.where(chosen, step, 0.0), mask=cells)
    tl.store(failed + group, unsound, mask=group < count)


def solve_group_blocks(
    groups: Tensor, weights: Tensor, members: Tensor, solved: Tensor
) -> int:
    """Solve the system of every group restricted to its members.

    Args:
        groups: ``(num_blocks, B / Q, Q, Q)``, float64.
        weights: ``(num_blocks, B / Q, Q)``.
        members: ``(num_blocks, B / Q, Q)``, bool.
        solved: ``(num_blocks, B / Q, Q)``, float64; written.

    Returns:
        The number of blocks with a system that is not positive definite.
    """
    size = weights.shape[2]
    slots = padded_width(size)
    tile = max(1, _CELLS // slots**2 // 4)
    failed = torch.zeros(weights.shape[:2], dtype=torch.int32, device=weights.device)
    launch(
        _solve,
        (triton.cdiv(failed.numel(), tile),),
        groups.contiguous(),
        weights.double().contiguous(),
        as_bytes(members),
        solved,
        failed,
        failed.numel(),
        cells=_CELLS,
        SIZE=size,
        SLOTS=slots,
        TILE=tile,
    )
    return int((failed > 0).any(dim=1).sum())
