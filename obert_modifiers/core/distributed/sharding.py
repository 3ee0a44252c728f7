"""Which process works on which Fisher blocks, when, and the bytes that it takes.

The weights of an event are cut into pieces: whole Fisher blocks, whole groups and, in
a weight matrix, whole output rows of one parameter. How they are cut depends on the
shapes only. A plan gives each piece a process and a turn; what is computed for a
piece is the same whatever the plan, so that the masks are too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from obert_modifiers.core.pruning.blocks import GroupLayout, count_blocks

PIECE_WEIGHTS = 2**15  # weights of a piece, at most, unless one step has more
FOLD_SAMPLES = 128  # gradients added to a piece's blocks at a time, at most
HELD_BYTES = 2**29  # of layer inputs and output gradients that wait to be added
_HELD_SHARE = 8  # ... or this part of the float32 state, whichever is more
_OWN_WEIGHT_BYTES = 26  # saliency 8, rank 2, new value 8, working copies 8
_WEIGHT_BYTES = 10  # copy to roll back 4, new value 4, old and new mask 2


@dataclass(frozen=True)
class Piece:
    """Whole Fisher blocks of one parameter that are worked on at a time.

    The weights from ``start`` to ``stop``, in the order of the groups, of the parameter
    at position ``target``; their Fisher is collected in one turn, on one process.
    """

    target: int
    start: int
    stop: int
    rank: int = 0
    turn: int = 0

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.stop - self.start

    def of(self, values: Tensor) -> Tensor:
        """Return this piece of d values of its parameter, ``(numel,)``."""
        return values.reshape(-1)[self.start : self.stop]


@dataclass(frozen=True)
class MemoryPlan:
    """Where and when the Fisher state of an event lives, before it is allocated.

    Attributes:
        pieces: All pieces of all parameters, in their order.
        ranks: Number of processes.
        turns: Times that the gradients are collected to have seen every piece once.
        keeps: Where the blocks of finished turns are kept: ``"device"`` (there is one
            turn), ``"host"``, or ``"nothing"``: they are collected again when needed.
        fisher_dtype: Precision of the sums.
        state_bytes: Most bytes of sums on the device of one process at a time.
        host_bytes: Most bytes of sums in host memory beside the device, per process.
        working_bytes: Everything else, per process: gradients, selection, new weights.
        held_bytes: Part of it for layer inputs and output gradients.
    """

    pieces: tuple[Piece, ...]
    ranks: int
    turns: int
    keeps: str
    fisher_dtype: torch.dtype
    state_bytes: int
    host_bytes: int
    working_bytes: int
    held_bytes: int

    def owned(self, rank: int, turn: int | None = None) -> list[int]:
        """Return the positions of a process's pieces, of one turn or of all."""
        return [
            i
            for i, piece in enumerate(self.pieces)
            if piece.rank == rank and turn in (None, piece.turn)
        ]

    def describe(self) -> str:
        """Return a line for the log: where the state is, how large and how precise."""
        where = {
            "device": "in one turn",
            "host": f"in {self.turns} turns, parked in {_gib(self.host_bytes)} of "
            "host memory",
            "nothing": f"in {self.turns} turns, collected again when needed",
        }
        over = f" on each of {self.ranks} processes" if self.ranks > 1 else ""
        return (
            f"Fisher state {_gib(self.state_bytes)} "
            f"({str(self.fisher_dtype).removeprefix('torch.')}) and "
            f"{_gib(self.working_bytes)} beside it{over}, {where[self.keeps]}"
        )


def plan_event(
    layouts: Sequence[GroupLayout],
    fisher_block_size: int,
    *,
    block_values: int | None = None,
    fisher_dtype: torch.dtype = torch.float64,
    ranks: int = 1,
    memory_budget: int | None = None,
    host_budget: int = 0,
) -> MemoryPlan:
    """Plan the state of a pruning event from the shapes of its parameters.

    A block's sums have ``block_values`` values, ``B * B`` if it is not given. Budgets
    are in bytes for one process: on its device, beside the model, and of host memory
    for sums, 0 where the device is the host.

    Returns:
        The plan with the fewest turns that fits.

    Raises:
        ValueError: If the budget is below what one piece takes.
    """
    pieces = _pieces(layouts, fisher_block_size, ranks)
    size, weights = fisher_dtype.itemsize, sum(piece.numel for piece in pieces)
    block_bytes = size * (block_values or fisher_block_size**2)
    bytes_of = [count_blocks(p.numel, fisher_block_size) * block_bytes for p in pieces]
    owned, most_state = Counter[int](), _most_at_once(pieces, bytes_of)
    for piece in pieces:
        owned[piece.rank] += piece.numel
    held = max(HELD_BYTES, 4 * weights * fisher_block_size // _HELD_SHARE)
    working = (
        held
        + FOLD_SAMPLES * max(p.numel for p in pieces) * (4 + size)
        + _OWN_WEIGHT_BYTES * max(owned.values())
        + _WEIGHT_BYTES * weights
    )
    keeps = "device"
    if memory_budget is not None and working + most_state > memory_budget:
        least = working + max(bytes_of)
        if memory_budget < least:
            raise ValueError(
                f"memory_budget={memory_budget} is below the {least} bytes that one "
                f"piece of the Fisher state takes; expected at least {least}; raise it "
                f"to {_gib(least)}"
            )
        pieces = _in_turns(pieces, bytes_of, memory_budget - working)
        keeps = "host" if most_state <= host_budget else "nothing"
    return MemoryPlan(
        pieces=tuple(pieces),
        ranks=ranks,
        turns=max(piece.turn for piece in pieces) + 1,
        keeps=keeps,
        fisher_dtype=fisher_dtype,
        state_bytes=_most_at_once(pieces, bytes_of),
        host_bytes=most_state if keeps == "host" else 0,
        working_bytes=working,
        held_bytes=held,
    )


def _pieces(
    layouts: Sequence[GroupLayout], fisher_block_size: int, ranks: int
) -> list[Piece]:
    found, before = [], 0
    weights = sum(layout.numel for layout in layouts)
    for target, layout in enumerate(layouts):
        for start, stop in _cut(layout, fisher_block_size):
            # Neighbours go to one process, so that a layer's inputs go to few.
            middle = before + (stop - start) / 2
            rank = min(ranks - 1, int(middle * ranks / weights))
            found.append(Piece(target, start, stop, rank))
            before += stop - start
    return found


def _cut(layout: GroupLayout, fisher_block_size: int) -> list[tuple[int, int]]:
    out, width = layout.shape
    numel = out * width
    step = math.lcm(layout.pattern.rows * width, fisher_block_size)
    steps = math.ceil(numel / step)
    count = math.ceil(steps / max(1, PIECE_WEIGHTS // step))
    size = math.ceil(steps / count) * step
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def _in_turns(
    pieces: Sequence[Piece], bytes_of: Sequence[int], room: int
) -> list[Piece]:
    found, turn, filled = [], Counter[int](), Counter[int]()
    for piece, size in zip(pieces, bytes_of, strict=True):
        rank = piece.rank
        if filled[rank] + size > room:
            turn[rank], filled[rank] = turn[rank] + 1, 0
        filled[rank] += size
        found.append(replace(piece, turn=turn[rank]))
    return found


def _most_at_once(pieces: Sequence[Piece], bytes_of: Sequence[int]) -> int:
    # Of all processes and turns.
    filled = Counter[tuple[int, int]]()
    for piece, size in zip(pieces, bytes_of, strict=True):
        filled[piece.rank, piece.turn] += size
    return max(filled.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
