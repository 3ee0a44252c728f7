"""Sentences side by side in tiles: where each token of a batch is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KEYS_AT_ONCE = 4  # ranges of keys begin and end at multiples of it
_UNUSED, _MASKED = -1, -2
_UNEVEN = 1.1  # of threads' loads: the largest over the mean


@dataclass(frozen=True)
class Packing:
    """Some sentences of a batch in tiles of T tokens.

    Attributes:
        rows: ``(n,)`` which sentences of the batch.
        starts: ``(n,)`` slots of their first tokens.
        lengths: ``(n,)`` their tokens.
        slots: ``(tokens,)`` slots of all their tokens, sentence by sentence.
        own: ``(slots,)`` int32, the sentence of each slot; -1 where there is none.
        keys: The same of tokens that others attend to.
        ranges: ``(tiles, 2)`` first and last slot of what a tile attends to.
    """

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    slots: np.ndarray
    own: np.ndarray
    keys: np.ndarray
    ranges: np.ndarray

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return len(self.ranges)


def pack(rows: np.ndarray, mask: np.ndarray, tokens: int) -> Packing:
    """Lay sentences into tiles.

    A sentence longer than a tile begins with one; what its last tile has left, and
    tiles of their own, take the shorter ones, each where least is left over. No
    sentence that fits a tile crosses two.

    Args:
        rows: Which rows of the mask.
        mask: ``(batch, length)`` bool, True for tokens that are attended to.
        tokens: T.

    Returns:
        Where everything is.
    """
    lengths = mask.shape[1] - np.argmax(mask[rows, ::-1], axis=1)
    order = np.argsort(-lengths, kind="stable")
    starts = np.zeros(len(rows), np.int64)
    tiles, room = 0, []  # room: tokens left and the slot where they begin
    for i in order:
        length = int(lengths[i])
        fitting = [one for one in room if one[0] >= length]
        if fitting:
            left, start = min(fitting)
            room.remove((left, start))
        else:
            start = tiles * tokens
            tiles += -(-length // tokens)
            left = tiles * tokens - start
        starts[i] = start
        if left > length:
            room.append((left - length, start + length))
    own = np.full(tiles * tokens, _UNUSED, np.int32)
    keys = own.copy()
    ranges = np.stack([np.full(tiles, tiles * tokens), np.zeros(tiles, int)], 1)
    slots = []
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        stop = start + length
        own[start:stop] = i
        keys[start:stop] = np.where(mask[rows[i], :length], i, _MASKED)
        touched = slice(start // tokens, -(-stop // tokens))
        first = start // KEYS_AT_ONCE * KEYS_AT_ONCE
        last = -(-stop // KEYS_AT_ONCE) * KEYS_AT_ONCE
        ranges[touched, 0] = np.minimum(ranges[touched, 0], first)
        ranges[touched, 1] = np.maximum(ranges[touched, 1], last)
        slots.append(np.arange(start, stop))
    return Packing(rows, starts, lengths, np.concatenate(slots), own, keys, ranges)


def divide(lengths: Sequence[int], parts: int) -> list[np.ndarray]:
    """Divide sentences, the longest first, into parts of about as many tokens."""
    loads = np.zeros(parts)
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        lightest = int(np.argmin(loads))
        loads[lightest] += lengths[i]
        chosen[lightest].append(int(i))
    return [np.array(sorted(part), dtype=np.int64) for part in chosen if part]


def uneven(most: int, parts: int, total: int) -> bool:
    """Tell whether parts of which the largest is so large had better be shared."""
    return most * parts > _UNEVEN * total
