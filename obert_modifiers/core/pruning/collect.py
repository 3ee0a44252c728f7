"""Gradients, formed a piece at a time and added to its Fisher blocks.

Batches are added in one order and in the same portions under every plan and on any
number of processes, so that every block is summed in the same way: equal bits wherever
the owner's arithmetic is the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from obert_modifiers.core.distributed.parallel import raise_on_all_ranks, world
from obert_modifiers.core.distributed.sharding import FOLD_SAMPLES, MemoryPlan, Piece
from obert_modifiers.core.pruning.blocks import GroupLayout
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.layer_signals import Signals
from obert_modifiers.core.pruning.per_sample import BatchGradients

GRADIENTS = -1  # in place of a number of positions: the gradients themselves
# Up to so many positions it costs less to form a gradient in float64 than to copy it.
_WIDE_POSITIONS = 64


@dataclass
class _Held:
    """A batch of ``size`` samples that waits: its parts of the shares, by target."""

    size: int
    parts: dict[int, Signals | Tensor]


class Collector:
    """Adds batches to the blocks of one turn: all of them, on a single process.

    Batches wait until there are enough to be added at once, or too many bytes of
    them. Memory: what the plan counts as working bytes for gradients.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        turn: int,
        layouts: Sequence[GroupLayout],
        kept: Sequence[Tensor | None],
        fishers: dict[int, BlockFisher],
        like: Tensor,
    ) -> None:
        """Start with nothing held.

        ``kept`` has a mask ``(d,)`` in the order of the groups for each parameter, None
        where all are kept; ``fishers`` the state of each piece of this process and
        turn, by its position in the plan. Gradients wait and travel as ``like``.
        """
        self._plan, self._layouts = plan, layouts
        self._kept, self._fishers = kept, fishers
        self._dtype, self._device = like.dtype, like.device
        rank, ranks = world()
        self._shares = [_shares_of(plan, r, turn) for r in range(ranks)]
        self._own = self._shares[rank]
        self._held: list[_Held] = []
        self._held_bytes = 0
        self._room: dict[torch.dtype, Tensor] = {}

    def add(self, batch: BatchGradients) -> None:
        """Take a batch."""
        self._hold(batch.size, positions_of(batch), self._cut(batch, self._own))

    def finish(self) -> None:
        """Add up what is held."""
        with raise_on_all_ranks(self._device):
            self._add_held()

    def abort(self, error: Exception) -> None:
        """Give up after an error; there is nobody to tell."""

    def _cut(
        self, batch: BatchGradients, shares: Sequence[Piece]
    ) -> Iterator[Signals | Tensor]:
        for share in shares:
            part, layout = batch.parts[share.target], self._layouts[share.target]
            if isinstance(part, Signals):
                width = layout.shape[1]
                dy = part.output_grads[..., share.start // width : share.stop // width]
                yield Signals(part.inputs.to(self._dtype), dy.to(self._dtype))
            else:
                mine = layout.arrange(part)[:, share.start : share.stop]
                yield mine.to(self._dtype)

    def _hold(
        self, size: int, positions: Sequence[int], parts: Iterator[Signals | Tensor]
    ) -> None:
        values = 0  # of a sample, in all layers
        for layout, count in zip(self._layouts, positions, strict=True):
            out, width = layout.shape
            values += out * width if count == GRADIENTS else count * (out + width)
        size_bytes = 4 * size * values
        full = sum(held.size for held in self._held) + size > FOLD_SAMPLES
        if full or self._held_bytes + size_bytes > self._plan.held_bytes:
            self._add_held()
        by_target = {s.target: part for s, part in zip(self._own, parts, strict=True)}
        self._held.append(_Held(size, by_target))
        self._held_bytes += size_bytes

    def _add_held(self) -> None:
        starts = {share.target: share.start for share in self._own}
        for i, fisher in self._fishers.items():
            piece = self._plan.pieces[i]
            kept = self._kept[piece.target]
            for held in _portions(self._held):
                grads = self._form(piece, held, starts[piece.target], fisher.sums.dtype)
                fisher.add_(grads, None if kept is None else piece.of(kept))
        self._held, self._held_bytes = [], 0

    def _form(
        self, piece: Piece, held: list[_Held], start: int, dtype: torch.dtype
    ) -> Tensor:
        # The gradients of a piece, (k, numel), in memory that is used again.
        layout = self._layouts[piece.target]
        grads = self._take(dtype, sum(batch.size for batch in held), piece.numel)
        rows = grads.split([batch.size for batch in held])
        for into, batch in zip(rows, held, strict=True):
            part = batch.parts[piece.target]
            if isinstance(part, Signals):
                self._multiply(into, part, piece, start, layout.shape[1])
                if layout.pattern.rows > 1:  # gradients come in this order already
                    into.copy_(layout.band(piece.numel).arrange(into))
            else:
                into.copy_(part[:, piece.start - start : piece.stop - start])
        return grads

    def _multiply(
        self, grads: Tensor, part: Signals, piece: Piece, start: int, width: int
    ) -> None:
        # Write sum_t dy_t x_t^T of each sample.
        first, last = (piece.start - start) // width, (piece.stop - start) // width
        x, dy = part.inputs, part.output_grads[..., first:last].contiguous()
        shape = (len(x), last - first, width)  # (k, out, in)
        if grads.dtype == x.dtype or x.shape[1] <= _WIDE_POSITIONS:
            x, dy = x.to(grads.dtype), dy.to(grads.dtype)
            torch.bmm(dy.transpose(1, 2), x, out=grads.view(shape))
            return
        narrow = self._take(x.dtype, len(x), grads.shape[1])
        torch.bmm(dy.transpose(1, 2), x, out=narrow.view(shape))
        grads.copy_(narrow)

    def _take(self, dtype: torch.dtype, size: int, numel: int) -> Tensor:
        # Fresh memory of this size costs more time than the products that fill it.
        room = self._room.get(dtype)
        if room is None or room.numel() < size * numel:
            room = torch.empty(size * numel, dtype=dtype, device=self._device)
            self._room[dtype] = room
        return room[: size * numel].view(size, numel)


def _shares_of(plan: MemoryPlan, rank: int, turn: int) -> list[Piece]:
    # The pieces of each parameter as one: the rows that a process owns in one turn.
    shares: dict[int, Piece] = {}
    for i in plan.owned(rank, turn):
        piece = plan.pieces[i]
        first = shares.get(piece.target, piece)
        shares[piece.target] = replace(first, stop=piece.stop)
    return list(shares.values())


def positions_of(batch: BatchGradients) -> list[int]:
    """Return the positions T of each parameter's signals, or :data:`GRADIENTS`."""
    return [
        part.inputs.shape[1] if isinstance(part, Signals) else GRADIENTS
        for part in batch.parts
    ]


def _portions(held: list[_Held]) -> list[list[_Held]]:
    # Batches that are added at once; a single batch that is too large is cut.
    if len(held) != 1 or held[0].size <= FOLD_SAMPLES:
        return [held] if held else []
    portions = []
    for at in range(0, held[0].size, FOLD_SAMPLES):
        rows = slice(at, at + FOLD_SAMPLES)
        parts = {target: part[rows] for target, part in held[0].parts.items()}
        portions.append([_Held(min(FOLD_SAMPLES, held[0].size - at), parts)])
    return portions
