"""Which process works on which Fisher blocks, when, and the bytes that it takes.

The weights of an event are cut into pieces: whole Fisher blocks, whole groups and, in
a weight matrix, whole output rows of one parameter. How they are cut depends on the
shapes alone. A plan gives each piece a process and a turn; what is computed for a
piece is the same whatever the plan, so that the masks are too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from obert_modifiers.core.pruning.blocks import GroupLayout, count_blocks

PIECE_WEIGHTS = 2**18  # weights of a piece, at most, unless one step has more
FOLD_SAMPLES = 128  # gradients added to a piece's blocks at a time, at most
HELD_BYTES = 2**29  # of layer inputs and output gradients that wait to be added
_HELD_SHARE = 8  # ... or this part of the float32 state, whichever is more
_OWN_WEIGHT_BYTES = 26  # saliency or cost 8, rank 2, new value 8, working copies 8
_WEIGHT_BYTES = 10  # copy to roll back 4, new value 4, old and new mask 2
KEEPS = ("device", "host", "nothing")


@dataclass(frozen=True)
class Piece:
    """Whole Fisher blocks of one parameter that are worked on at a time.

    Attributes:
        target: Position of the parameter.
        start: First weight, in the order of the groups.
        stop: One past the last weight.
        rank: Process that owns it.
        turn: Turn in which its Fisher is collected.
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
        """Take this piece of its parameter.

        Args:
            values: Any shape with d elements, in the order of the groups.

        Returns:
            ``(numel,)``, a view where the values are contiguous.
        """
        return values.reshape(-1)[self.start : self.stop]


@dataclass(frozen=True)
class MemoryPlan:
    """Where and when the Fisher state of an event lives, before it is allocated.

    Attributes:
        pieces: All pieces of all parameters, in their order.
        ranks: Number of processes.
        turns: Times that the gradients are collected to have seen every piece once.
        keeps: What stays of the turns that are over: ``"device"`` (there is one turn),
            ``"host"`` or ``"nothing"``, so that they are collected again when needed.
        fisher_dtype: Precision of the sums.
        state_bytes: Most bytes of sums on the device of one process at a time.
        host_bytes: Most bytes of sums in host memory beside the device, per process.
        working_bytes: Everything else that the event holds, per process: gradients,
            selection, new weights.
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

    @property
    def total_bytes(self) -> int:
        """Bytes on the device of one process."""
        return self.state_bytes + self.working_bytes

    def owned(self, rank: int, turn: int | None = None) -> list[int]:
        """List the pieces of a process.

        Args:
            rank: The process.
            turn: One turn, or None for all.

        Returns:
            Positions in :attr:`pieces`.
        """
        return [
            i
            for i, piece in enumerate(self.pieces)
            if piece.rank == rank and turn in (None, piece.turn)
        ]

    def describe(self) -> str:
        """Say it in a line for the log.

        Returns:
            Where the state is, how large and how precise.
        """
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
    fisher_dtype: torch.dtype = torch.float64,
    ranks: int = 1,
    memory_budget: int | None = None,
    host_budget: int = 0,
) -> MemoryPlan:
    """Plan the state of a pruning event from the shapes of its parameters.

    Args:
        layouts: Of each parameter.
        fisher_block_size: Width B of a Fisher block.
        fisher_dtype: Precision of the sums.
        ranks: Number of processes.
        memory_budget: Bytes that the event may take on the device of one process,
            beside the model; None for no limit.
        host_budget: Bytes of host memory for sums that are not on the device; 0 where
            the device is the host.

    Returns:
        The plan with the fewest turns that fits.

    Raises:
        ValueError: If the budget is below what one piece takes.
    """
    pieces = [
        Piece(target, start, stop)
        for target, layout in enumerate(layouts)
        for start, stop in _cut(layout, fisher_block_size)
    ]
    size = fisher_dtype.itemsize
    weights = sum(piece.numel for piece in pieces)
    bytes_of = [
        count_blocks(p.numel, fisher_block_size) * fisher_block_size**2 * size
        for p in pieces
    ]
    owners = _owners(pieces, weights, ranks)
    held = max(HELD_BYTES, 4 * weights * fisher_block_size // _HELD_SHARE)
    own = [[i for i, rank in enumerate(owners) if rank == r] for r in range(ranks)]
    most_weights = max(sum(pieces[i].numel for i in mine) for mine in own)
    working = (
        held
        + FOLD_SAMPLES * max(p.numel for p in pieces) * (4 + size)
        + _OWN_WEIGHT_BYTES * most_weights
        + _WEIGHT_BYTES * weights
    )
    most_state = max(sum(bytes_of[i] for i in mine) for mine in own)
    turns, turn_of = 1, [0] * len(pieces)
    if memory_budget is not None and working + most_state > memory_budget:
        room = memory_budget - working
        if room < max(bytes_of):
            least = working + max(bytes_of)
            raise ValueError(
                f"memory_budget={memory_budget} is below the {least} bytes that one "
                f"piece of the Fisher state takes; expected at least {least}; raise it "
                f"to {_gib(least)}"
            )
        turn_of = _turns(own, bytes_of, room)
        turns = max(turn_of) + 1
    keeps = "device" if turns == 1 else "nothing"
    if turns > 1 and most_state <= host_budget:
        keeps = "host"
    return MemoryPlan(
        pieces=tuple(
            Piece(p.target, p.start, p.stop, rank, turn)
            for p, rank, turn in zip(pieces, owners, turn_of, strict=True)
        ),
        ranks=ranks,
        turns=turns,
        keeps=keeps,
        fisher_dtype=fisher_dtype,
        state_bytes=_most_in_turn(own, bytes_of, turn_of, turns),
        host_bytes=most_state if keeps == "host" else 0,
        working_bytes=working,
        held_bytes=held,
    )


def _cut(layout: GroupLayout, fisher_block_size: int) -> list[tuple[int, int]]:
    out, width = layout.shape
    numel = out * width
    step = math.lcm(layout.pattern.rows * width, fisher_block_size)
    steps = math.ceil(numel / step)
    count = math.ceil(steps / max(1, PIECE_WEIGHTS // step))
    size = math.ceil(steps / count) * step
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def _owners(pieces: Sequence[Piece], weights: int, ranks: int) -> list[int]:
    # Neighbours together, so that a layer's inputs go to few processes.
    owners, before = [], 0
    for piece in pieces:
        middle = before + piece.numel / 2
        owners.append(min(ranks - 1, int(middle * ranks / weights)))
        before += piece.numel
    return owners


def _turns(
    own: Sequence[Sequence[int]], bytes_of: Sequence[int], room: int
) -> list[int]:
    found = [0] * len(bytes_of)
    for mine in own:
        turn, filled = 0, 0
        for i in mine:
            if filled + bytes_of[i] > room:
                turn, filled = turn + 1, 0
            found[i] = turn
            filled += bytes_of[i]
    return found


def _most_in_turn(
    own: Sequence[Sequence[int]],
    bytes_of: Sequence[int],
    turn_of: Sequence[int],
    turns: int,
) -> int:
    return max(
        sum(bytes_of[i] for i in mine if turn_of[i] == turn)
        for mine in own
        for turn in range(turns)
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
