"""Triton kernels on Fisher blocks: accumulate, invert, update jointly; and the masks.

One program works on one block, in float64, with the whole ``P x P`` tile on chip; P
is B rounded up to a power of two, and what is padded never becomes a pivot. Triton is
imported in ``_triton_fisher.py`` and ``_triton_greedy.py`` only, and they where the
backend has been chosen.

A number of Python's would reach a compiled kernel in float32: ``scale`` and ``damp``
travel in a float64 tensor.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from obert_modifiers.kernels._backend import padded_width

_TILE = 64  # of the sums, in both directions
_DEPTH = 16  # gradients per step; the least that a dot takes
_STRIP = 1024  # entries of a mask per program


def launch(
    kernel: Any, programs: tuple[int, ...], cells: int, *arguments: Any, **sizes: int
) -> None:
    """Run a kernel, compiled for some sizes, on the device of its first argument.

    ``cells`` are the entries of the largest tile of a program; they set the number of
    threads so that a float64 tile takes at most half of their registers.
    """
    if programs[0] == 0:
        return
    warps = min(16, max(1, cells // 1024))
    with torch.cuda.device_of(arguments[0]):
        kernel[programs](*arguments, **sizes, num_warps=warps)


def run(
    kernel: Any, systems: tuple[int, int], cells: int, *arguments: Any, **sizes: int
) -> int:
    """Return how many blocks have a system that is not positive definite.

    Runs a kernel, whose last argument gets what failed, on so many blocks and systems
    in each, ``TILE`` of them in a program. Tensors that are read may have any strides.
    """
    failed = torch.zeros(systems, dtype=torch.int32, device=arguments[0].device)
    programs = (triton.cdiv(failed.numel(), sizes.get("TILE", 1)),)
    plain = [as_plain(value) for value in arguments]
    launch(kernel, programs, cells, *plain, failed, **sizes)
    return int((failed > 0).any(dim=1).sum())


def as_plain(value: Any) -> Any:
    """Return a tensor contiguous and without bools; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous()
    return value.view(torch.uint8) if value.dtype == torch.bool else value


def on_device(scale: float, damp: float, sums: Tensor) -> Tensor:
    """Return scale and dampening beside the sums, ``(2,)``, float64."""
    return torch.tensor([scale, damp], dtype=torch.float64, device=sums.device)


@triton.jit
def load_fisher(sums, numbers, block, index, inside, WIDTH: tl.constexpr):
    """Read the dampened block of some weights, ``(P, P)``, float64; zero outside."""
    scale, damp = tl.load(numbers), tl.load(numbers + 1)
    both = inside[:, None] & inside[None, :]
    cells = index[:, None] * WIDTH + index[None, :]
    tile = tl.load(sums + block * WIDTH * WIDTH + cells, mask=both, other=0.0)
    diagonal = both & (index[:, None] == index[None, :])
    return tile.to(tl.float64) * scale + tl.where(diagonal, damp, 0.0)


@triton.jit
def take_row(tile, place, pivot_place):
    """Return a row of a symmetric tile, its pivot (1 if not above 0), and if it is."""
    row = tl.sum(tl.where((place == pivot_place)[:, None], tile, 0.0), axis=0)
    pivot = tl.sum(tl.where(place == pivot_place, row, 0.0), axis=0)
    sound = pivot > 0.0
    return row, tl.where(sound, pivot, 1.0), sound


@triton.jit
def sweep(tile, place, pivot_place):
    """Sweep one pivot; the tile stays exactly symmetric.

    Returns:
        The tile, which is minus the inverse once all are swept, and what ``take_row``
        gives.
    """
    row, pivot, sound = take_row(tile, place, pivot_place)
    here = place == pivot_place
    edge = tl.where(here, -1.0, row) / pivot
    share = row / tl.sqrt(pivot)
    tile -= share[:, None] * share[None, :]
    tile = tl.where(here[None, :], edge[:, None], tile)
    tile = tl.where(here[:, None], edge[None, :], tile)
    return tile, row, pivot, sound


@triton.jit
def _accumulate(
    sums,
    grads,
    count,
    sums_block,
    sums_row,
    sums_column,
    grads_row,
    grads_block,
    grads_column,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.program_id(2) * TILE + tl.arange(0, TILE)
    dtype = sums.dtype.element_ty
    total = tl.zeros((TILE, TILE), dtype)
    grads += block * grads_block
    left_cell = row.to(tl.int64)[:, None] * grads_column
    right_cell = column.to(tl.int64)[None, :] * grads_column
    for start in range(0, count, DEPTH):
        k = (start + tl.arange(0, DEPTH)).to(tl.int64)
        left = tl.load(
            grads + left_cell + k[None, :] * grads_row,
            mask=(row < WIDTH)[:, None] & (k < count)[None, :],
            other=0.0,
        )
        right = tl.load(
            grads + right_cell + k[:, None] * grads_row,
            mask=(k < count)[:, None] & (column < WIDTH)[None, :],
            other=0.0,
        )
        total = tl.dot(
            left.to(dtype),
            right.to(dtype),
            total,
            input_precision="ieee",
            out_dtype=dtype,
        )
    cells = row[:, None] * sums_row + column[None, :] * sums_column
    inside = (row < WIDTH)[:, None] & (column < WIDTH)[None, :]
    sums += block * sums_block
    old = tl.load(sums + cells, mask=inside, other=0.0)
    tl.store(sums + cells, old + total, mask=inside)


def accumulate(sums: Tensor, grads: Tensor) -> None:
    """Add ``(k, num_blocks, B)`` gradients' outer products to the sums, in place.

    Products and sums are in the dtype of the sums, without TF32.
    """
    num_blocks, width = sums.shape[:2]
    tile = min(_TILE, max(_DEPTH, padded_width(width)))
    tiles = triton.cdiv(width, tile)
    programs, sizes = (num_blocks, tiles, tiles), {"WIDTH": width, "TILE": tile}
    arguments = (sums, grads, len(grads), *sums.stride(), *grads.stride())
    launch(_accumulate, programs, tile * tile, *arguments, **sizes, DEPTH=_DEPTH)


@triton.jit
def _invert_groups(
    sums,
    numbers,
    found,
    failed,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PADDED)
    inside = index < WIDTH
    tile = load_fisher(sums, numbers, block, index, inside, WIDTH)
    unsound = 0
    for p in range(WIDTH):
        tile, _, _, sound = sweep(tile, index, p)
        unsound += tl.where(sound, 0, 1)
    group = index // SIZE
    found += block * WIDTH * SIZE
    # By rows: a store of the whole tile would move it through shared memory.
    for q in tl.static_range(SIZE):
        chosen = (group[:, None] == group[None, :]) & (index % SIZE == q)[:, None]
        row = tl.sum(tl.where(chosen, tile, 0.0), axis=0)
        tl.store(found + index * SIZE + q, -row, mask=inside)
    tl.store(failed + block, tl.where(unsound > 0, 1, 0))


def invert_group_blocks(sums, scale, damp, group_size, found) -> int:
    """Write the group blocks; return how many blocks are not positive definite."""
    num_blocks, width = sums.shape[:2]
    padded = padded_width(width)
    sizes = {"WIDTH": width, "PADDED": padded, "SIZE": group_size}
    arguments = (sums, on_device(scale, damp, sums), found)
    return run(_invert_groups, (num_blocks, 1), padded**2, *arguments, **sizes)


@triton.jit
def _solve_joint(
    sums,
    numbers,
    weights,
    pruned,
    updated,
    increases,
    failed,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PADDED)
    inside = index < WIDTH
    start = block * WIDTH
    value = tl.load(weights + start + index, mask=inside, other=0.0)
    gone = tl.load(pruned + start + index, mask=inside, other=1) != 0
    tile = load_fisher(sums, numbers, block, index, inside, WIDTH)
    removed = tl.where(gone, value, 0.0)
    pull = tl.sum(tile * removed[:, None], axis=0)
    increase = tl.sum(removed * pull, axis=0)
    # Sweeps of only the kept pivots leave ``F_KK^-1 F_KP w_P`` in the kept entries;
    # they never read a pruned row.
    step = pull
    unsound = 0
    for p in range(WIDTH):
        if tl.load(pruned + start + p) == 0:
            tile, row, pivot, sound = sweep(tile, index, p)
            unsound += tl.where(sound, 0, 1)
            pulled = tl.sum(tl.where(index == p, step, 0.0), axis=0)
            increase -= pulled * pulled / pivot
            share = pulled / pivot
            step = tl.where(index == p, share, step - row * share)
    new = tl.where(gone, 0.0, value + step)
    tl.store(updated + start + index, new, mask=inside)
    tl.store(increases + block, tl.where(increase > 0.0, 0.5 * increase, 0.0))
    tl.store(failed + block, tl.where(unsound > 0, 1, 0))


def solve_joint_blocks(sums, scale, damp, weights, pruned, updated, increases) -> int:
    """Compute the best weights of every block; return how many blocks failed."""
    num_blocks, width = weights.shape
    padded = padded_width(width)
    sizes = {"WIDTH": width, "PADDED": padded}
    numbers = on_device(scale, damp, sums)
    arguments = (sums, numbers, weights, pruned, updated, increases)
    return run(_solve_joint, (num_blocks, 1), padded**2, *arguments, **sizes)


@triton.jit
def _zero_unkept(values, mask, count, STRIP: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * STRIP + tl.arange(0, STRIP)
    kept = tl.load(mask + index, mask=index < count, other=1)
    zero = tl.zeros((STRIP,), values.dtype.element_ty)
    tl.store(values + index, zero, mask=kept == 0)


def zero_unkept(values: Tensor, mask: Tensor) -> None:
    """Write zeros where a mask is False; nothing else is read or written."""
    count = values.numel()
    programs, arguments = (triton.cdiv(count, _STRIP),), (values, as_plain(mask), count)
    launch(_zero_unkept, programs, 4 * _STRIP, *arguments, STRIP=_STRIP)
