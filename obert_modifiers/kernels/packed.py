"""Symmetric blocks in LAPACK's packed storage: their lower triangles, row by row.

On a CPU float64 sums are kept so, in half of the memory. A block of width B has
``B (B + 1) / 2`` values, the element (i, j) of its lower triangle at
``i (i + 1) / 2 + j``.
"""

import math

import torch
from torch import Tensor


def packed_size(width: int) -> int:
    """Return the number of values that a packed block has."""
    return width * (width + 1) // 2


def is_packed(sums: Tensor) -> bool:
    """Whether blocks are packed, ``(num_blocks, B (B + 1) / 2)``."""
    return sums.ndim == 2


def block_width(sums: Tensor) -> int:
    """Return B of blocks ``(num_blocks, B, B)`` or packed ones."""
    if not is_packed(sums):
        return sums.shape[1]
    return (math.isqrt(8 * sums.shape[1] + 1) - 1) // 2


def pack_blocks(sums: Tensor) -> Tensor:
    """Return the lower triangles of blocks, packed; packed ones as they are."""
    if is_packed(sums):
        return sums
    rows, columns = _triangle(sums)
    return sums[:, rows, columns]


def unpack_blocks(sums: Tensor) -> Tensor:
    """Return symmetric blocks ``(num_blocks, B, B)``; whole ones as they are."""
    if not is_packed(sums):
        return sums
    width = block_width(sums)
    whole = sums.new_empty(len(sums), width, width)
    rows, columns = _triangle(whole)
    whole[:, rows, columns] = sums
    whole[:, columns, rows] = sums
    return whole


def packed_diagonals(sums: Tensor) -> Tensor:
    """Return the diagonals of blocks, packed or whole, ``(num_blocks, B)``."""
    if not is_packed(sums):
        return sums.diagonal(dim1=1, dim2=2)
    last = torch.arange(1, block_width(sums) + 1, device=sums.device)
    return sums[:, last * (last + 1) // 2 - 1]


def _triangle(sums: Tensor) -> Tensor:
    width = sums.shape[1]
    return torch.tril_indices(width, width, device=sums.device)
