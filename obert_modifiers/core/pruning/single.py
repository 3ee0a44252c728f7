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
    """Return the samples of a batch: rows of the first tensor that has any, or None.

    Args:
        batch: Tensors, in mappings and sequences of any depth.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    rows = (count_rows(item) for item in _items(batch))
    return next((count for count in rows if count is not None), None)


def take_sample(batch: Any, row: int, size: int) -> Any:
    """Return one sample of a batch: its row of each tensor that has ``size`` rows."""
    if isinstance(batch, Tensor):
        per_sample = batch.ndim > 0 and batch.shape[0] == size
        return batch[row : row + 1] if per_sample else batch
    if isinstance(batch, Mapping):
        return {name: take_sample(item, row, size) for name, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        found = [take_sample(item, row, size) for item in batch]
        return tuple(found) if isinstance(batch, tuple) else found
    return batch


def join_positions(parts: Sequence[Tensor]) -> Tensor:
    """Return ``(1, T, n)`` signals of single samples as ``(k, T, n)``.

    Fewer positions are filled up with zeros, which add nothing to a gradient.
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
