"""Triton kernels for greedy elimination and for the small systems of groups.

Elimination holds the inverse of one block on chip from its first removal to its last:
a loop over the ranks, in each of which a row is picked out and its outer product taken
away. Groups of Q weights lie in the tile in slots of the next power of two above Q.
"""

import triton
import triton.language as tl

from obert_modifiers.kernels._backend import padded_width
from obert_modifiers.kernels._triton_fisher import (
    load_fisher,
    on_device,
    run,
    sweep,
    take_row,
)

_CELLS = 4096  # entries of the tile of small systems that a program works on


@triton.jit
def _doubled_saliency(systems, right, SIZE: tl.constexpr):
    """Return ``r^T A^-1 r`` of each system, and whether all its pivots are above 0.

    By elimination, ``A = L D L^T``: it is the sum of ``r_p^2 / d_p``.
    """
    place = tl.arange(0, systems.shape[1])
    doubled = tl.zeros((systems.shape[0],), tl.float64)
    sound = doubled == 0.0
    for p in tl.static_range(SIZE):
        here = place == p
        row = tl.sum(tl.where(here[None, :, None], systems, 0.0), axis=1)
        pivot = tl.sum(tl.where(here[None, :], row, 0.0), axis=1)
        value = tl.sum(tl.where(here[None, :], right, 0.0), axis=1)
        sound = sound & (pivot > 0.0)
        pivot = tl.where(pivot > 0.0, pivot, 1.0)
        doubled += value * value / pivot
        right -= row * (value / pivot)[:, None]
        share = row / tl.sqrt(pivot)[:, None]
        systems -= share[:, :, None] * share[:, None, :]
    return doubled, sound


@triton.jit
def _diagonal_groups(tile, GROUPS: tl.constexpr, SLOTS: tl.constexpr):
    """Copy the diagonal group blocks of a tile, ``(groups, slots, slots)``."""
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
    saliency,
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
        doubled, sound = _doubled_saliency(
            tl.where(open_ones[:, None, None], systems, unit[None, :, :]),
            value.reshape(GROUPS, SLOTS),
            SIZE,
        )
        unsound += tl.sum((open_ones & (sound == 0)).to(tl.int32), axis=0)
        doubled = tl.where(open_ones, doubled, float("inf"))
        lowest, best = tl.min(doubled, axis=0, return_indices=True)
        tl.store(order + start + rank, best.to(tl.int64))
        tl.store(saliency + start + rank, 0.5 * lowest)
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


def eliminate_blocks(
    sums, scale, damp, weights, eligible, size, kept, of, order, saliency
) -> int:
    """Return how many blocks failed; write the order of elimination of the others.

    Groups of ``size`` with an eligible weight go, all but ``kept`` of every ``of``.
    """
    num_blocks, width = weights.shape
    groups, slots = padded_width(width // size), padded_width(size)
    sizes = {"WIDTH": width, "SIZE": size, "GROUPS": groups, "SLOTS": slots}
    numbers, cells = on_device(scale, damp, sums), (groups * slots) ** 2
    arguments = (sums, numbers, weights, eligible, order, saliency)
    systems = (num_blocks, 1)
    return run(_eliminate, systems, cells, *arguments, **sizes, KEPT=kept, OF=of)


@triton.jit
def _lowest(
    groups,
    weights,
    pruned,
    subsets,
    saliency,
    found,
    count,
    num_subsets,
    failed,
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
        doubled, sound = _doubled_saliency(
            tl.where(both, systems, unit[None, :, :]), right, SIZE
        )
        unsound += (holds & (sound == 0)).to(tl.int32)
        better = holds & (0.5 * doubled < best)
        best = tl.where(better, 0.5 * doubled, best)
        nth = tl.where(better, s, nth)
    tl.store(saliency + group, best, mask=inside)
    tl.store(found + group, nth, mask=inside)
    tl.store(failed + group, unsound, mask=inside)


def find_lowest_subsets(groups, weights, pruned, subsets, saliency, found) -> int:
    """Find the lowest subset of every group; return how many blocks failed."""
    tensors = (groups, weights, pruned, subsets.to(found.device), saliency, found)
    arguments = (*tensors, found.numel(), len(subsets))
    sizes = {"WIDTH": weights.shape[2], **_tiled(subsets.shape[1])}
    return run(_lowest, found.shape, _CELLS, *arguments, **sizes)


def _tiled(size: int) -> dict[str, int]:
    slots = padded_width(size)
    return {"SIZE": size, "SLOTS": slots, "TILE": max(1, _CELLS // slots**2 // 4)}


@triton.jit
def _solve(
    groups,
    weights,
    members,
    solved,
    count,
    failed,
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


def solve_group_blocks(groups, weights, members, solved) -> int:
    """Solve every group's system for its members; return how many blocks failed."""
    systems = weights.shape[:2]
    arguments = (groups, weights, members, solved, systems.numel())
    return run(_solve, systems, _CELLS, *arguments, **_tiled(weights.shape[2]))
