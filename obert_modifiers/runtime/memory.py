"""Memory for the duration of a call, kept for the next: fresh pages cost time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from obert_modifiers.runtime.forking import fork_safe_lock

_LINE = 64  # bytes of a cache line


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return memory that begins where a cache line does, not set to anything."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + _LINE, np.uint8)
    start = -whole.ctypes.data % _LINE
    return whole[start : start + size].view(dtype).reshape(shape)


class Tiles:
    """Equal parts of an array, by their addresses."""

    def __init__(self, array: np.ndarray) -> None:
        """Take an array; its first axis tells the parts."""
        self.array = array
        self.start = array.ctypes.data
        self._size = array.nbytes // max(1, len(array))

    def __getitem__(self, part: int) -> int:
        """Return the address of a part."""
        return self.start + self._size * part

    def __len__(self) -> int:
        """Count the parts."""
        return len(self.array)


class Store:
    """Memory that calls have given back.

    Args:
        most: How many pieces are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, fork_safe_lock(inner=True)
        self._pieces: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """Return at least so many bytes."""
        with self._lock:
            fitting = [
                i
                for i, one in enumerate(self._pieces)
                if size <= one.nbytes <= 2 * size
            ]
            if fitting:
                return self._pieces.pop(
                    min(fitting, key=lambda i: self._pieces[i].nbytes)
                )
        return aligned((size,), np.uint8)

    def give_back(self, pieces: Sequence[np.ndarray]) -> None:
        """Keep pieces, the newest of all."""
        with self._lock:
            self._pieces += pieces
            del self._pieces[: -self._most]


class Memory:
    """What one call has taken of a store; a context that gives it back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: list[np.ndarray] = []

    def __call__(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Take an array, not set to anything."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        piece = self._store.take(max(size, _LINE))
        self._taken.append(piece)
        return piece[:size].view(dtype).reshape(shape)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._store.give_back(self._taken)
        self._taken = []
