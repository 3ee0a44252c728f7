"""The only definition of a Fisher block and of a weight group.

A weight tensor is flattened in row-major order and cut into consecutive blocks of
``B = fisher_block_size`` weights. The last block is padded with zeros where B does
not divide the number of weights d; padding carries zero gradient and is never
selectable. A block may straddle two rows of the weight matrix.
"""

import math

import torch
from torch import Tensor


def count_blocks(numel: int, fisher_block_size: int) -> int:
    """Count the Fisher blocks of a parameter, ``ceil(d / B)``.

    Args:
        numel: Number of weights d, at least 1.
        fisher_block_size: Width B of a block, at least 1.

    Returns:
        The number of blocks, the last one possibly padded.

    Raises:
        ValueError: If either argument is smaller than 1.
    """
    if fisher_block_size < 1:
        raise ValueError(
            f"fisher_block_size={fisher_block_size} is smaller than 1; expected a "
            "positive width; use 48"
        )
    if numel < 1:
        raise ValueError(
            f"numel={numel} is smaller than 1; expected a parameter with weights; "
            "leave empty parameters out"
        )
    return math.ceil(numel / fisher_block_size)


def to_blocks(values: Tensor, fisher_block_size: int) -> Tensor:
    """Cut the trailing weights of a tensor into Fisher blocks.

    Args:
        values: ``(d,)`` or ``(k, d)``, any dtype; one row per gradient.
        fisher_block_size: Width B of a block.

    Returns:
        ``(num_blocks, B)`` or ``(k, num_blocks, B)``, zero-padded at the end; a view
        where B divides d, otherwise a copy.
    """
    numel = values.shape[-1]
    blocks = count_blocks(numel, fisher_block_size)
    padding = blocks * fisher_block_size - numel
    if padding:
        values = torch.nn.functional.pad(values, (0, padding))
    return values.reshape(*values.shape[:-1], blocks, fisher_block_size)


def from_blocks(blocks: Tensor, numel: int) -> Tensor:
    """Undo :func:`to_blocks` for one vector.

    Args:
        blocks: ``(num_blocks, B)``, any dtype.
        numel: Number of weights d before padding.

    Returns:
        ``(d,)``, a view of ``blocks``.
    """
    return blocks.reshape(-1)[:numel]
