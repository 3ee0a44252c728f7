"""Batches as single samples, for layers in which samples share their rows.

A layer that all samples of a batch share (positions of DeBERTa), or that has the sample
in another place than first (Longformer), does not tell whose gradient is whose. In a
batch of one sample all of it is that sample's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def count_rows(batch: Any) -> int | None:
    """Count the samples of a batch.

    Args:
        batch: Tensors, in mappings and sequences of any depth.

    Returns:
        Rows of the first tensor that has any; None where there is none.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    rows = (count_rows(one) for one in _items(batch))
    return next((one for one in rows if one is not None), None)


def take_sample(batch: Any, row: int, size: int) -> Any:
    """Take one sample out of a batch.

    Args:
        batch: As for :func:`count_rows`.
        row: Which one.
        size: Samples of the batch.

    Returns:
        The same with that row alone in each tensor that has a row for each sample.
    """
    if isinstance(batch, Tensor):
        per_sample = batch.ndim > 0 and batch.shape[0] == size
        return batch[row : row + 1] if per_sample else batch
    if isinstance(batch, Mapping):
        return {name: take_sample(one, row, size) for name, one in batch.items()}
    if isinstance(batch, (list, tuple)):
        found = [take_sample(one, row, size) for one in batch]
        return tuple(found) if isinstance(batch, tuple) else found
    return batch


def join_positions(parts: Sequence[Tensor]) -> Tensor:
    """Put signals of single samples together.

    Args:
        parts: ``(1, T, n)`` each; fewer positions are filled up with zeros, which add
            nothing to a gradient.

    Returns:
        ``(k, T, n)``.
    """
    longest = max(part.shape[1] for part in parts)
    return torch.cat([
        torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1]))
        for part in parts
    ])


def _items(batch: Any) -> Iterable[Any]:
    if isinstance(batch, Mapping):
        return batch.values()
    return batch if isinstance(batch, (list, tuple)) else ()
