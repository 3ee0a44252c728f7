"""Gradients of all processes, added to the Fisher blocks that this process owns.

Each process runs its own batches. A batch's layer inputs and output gradients go to
the processes that own pieces of the layer, which form the per-sample gradients of
their rows and add them up. Batches are added in one order and in the same portions on
any number of processes, so that every block is summed in the same way: equal bits
wherever the owner's arithmetic is the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    all_gather_row,
    all_reduce_count,
    exchange,
    ran_out_of_memory,
    together,
    world,
)
from obert_modifiers.core.distributed.sharding import FOLD_SAMPLES, MemoryPlan, Piece
from obert_modifiers.core.pruning.blocks import GroupLayout
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.gradients import (
    BatchGradients,
    GradientCount,
    Signals,
    collect_gradients,
)

_MORE, _OVER, _FAILED, _OUT_OF_MEMORY = 0, 1, 2, 3
_GRADIENTS = -1  # in place of a number of positions: the gradients themselves
# Up to so many positions it costs less to form a gradient in float64 than to copy it.
_WIDE_POSITIONS = 64


@dataclass(frozen=True)
class Share:
    """The part of one parameter that a process owns in one turn.

    Attributes:
        target: Position of the parameter.
        start: First weight, in the order of the groups; whole output rows.
        stop: One past the last weight.
    """

    target: int
    start: int
    stop: int


def shares_of(plan: MemoryPlan, rank: int, turn: int) -> list[Share]:
    """Join the pieces of a process and a turn, parameter by parameter.

    Args:
        plan: The plan.
        rank: The process.
        turn: The turn.

    Returns:
        One share for each parameter of which the process owns a piece.
    """
    found: dict[int, Share] = {}
    for i in plan.owned(rank, turn):
        piece = plan.pieces[i]
        start = found[piece.target].start if piece.target in found else piece.start
        found[piece.target] = Share(piece.target, start, piece.stop)
    return list(found.values())


def collect_blocks(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Any],
    losses: Callable[[nn.Module, Any], Tensor],
    collector: "Collector",
    *,
    granularity: str = "sample",
    limit: int | None = None,
) -> GradientCount:
    """Collect the gradients of all processes into the blocks of a collector.

    Every process has to call it, with its own batches; if one fails, all raise.

    Args:
        model: The model, not wrapped for distributed training.
        parameters: All parameters of the event.
        batches: Batches of this process.
        losses: Called with model and batch; gives the loss of each sample, ``(k,)``.
        collector: Where they go.
        granularity: ``"sample"`` or ``"batch"``.
        limit: Gradients of this process, finite or not; None takes all batches.

    Returns:
        Gradients of all processes.

    Raises:
        OtherProcessFailed: If another process failed.
    """
    try:
        count = collect_gradients(
            model,
            parameters,
            batches,
            losses,
            collector.add,
            granularity=granularity,
            limit=limit,
        )
    except OtherProcessFailed:
        raise
    except Exception as error:
        collector.abort(error)
        raise
    collector.finish()
    device = parameters[0].device
    return GradientCount(
        all_reduce_count(count.used, device), all_reduce_count(count.skipped, device)
    )


@dataclass
class _Held:
    """A batch that waits to be added: the parts of the shares, by parameter."""

    size: int
    parts: dict[int, Signals | Tensor]


class Collector:
    """Adds the batches of all processes to the blocks of one process and turn.

    Memory: what :class:`~obert_modifiers.core.distributed.sharding.MemoryPlan` counts
    as working
    bytes for gradients.
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

        Args:
            plan: The plan of the event.
            turn: The turn to collect.
            layouts: Of each parameter.
            kept: Mask of each parameter, ``(d,)`` in the order of the groups, or None
                where all weights are kept.
            fishers: State of each piece of this process and turn, by its position in
                the plan.
            like: Has the dtype in which gradients travel, and a device where the
                process group can work.
        """
        self._rank, self._ranks = world()
        self._plan = plan
        self._layouts, self._kept, self._fishers = layouts, kept, fishers
        self._device, self._dtype = like.device, like.dtype
        self._shares = [shares_of(plan, r, turn) for r in range(self._ranks)]
        self._held: list[_Held] = []
        self._held_size, self._held_bytes = 0, 0
        self._over = False
        self._room: dict[torch.dtype, Tensor] = {}

    def add(self, batch: BatchGradients) -> None:
        """Take a batch of this process, and one of each other that has one.

        Args:
            batch: The batch.
        """
        if self._ranks == 1:
            mine = self._cuts(batch, self._shares[0])
            self._hold(batch.size, self._bytes(batch.size, _positions(batch)), mine)
            return
        self._round(_MORE, batch)

    def finish(self) -> None:
        """Take what the other processes still have, and add up what is held."""
        while self._ranks > 1 and not self._over:
            self._round(_OVER, None)
        with together(self._device):
            self._fold()

    def abort(self, error: Exception) -> None:
        """Tell the other processes that this one failed.

        Args:
            error: What was raised.
        """
        if self._ranks > 1:
            status = _OUT_OF_MEMORY if ran_out_of_memory(error) else _FAILED
            self._head(status, None)

    def _head(self, status: int, batch: BatchGradients | None) -> list[list[int]]:
        positions = _positions(batch) if batch else [0] * len(self._layouts)
        row = [status, batch.size if batch else 0, *positions]
        found = all_gather_row(torch.tensor(row, device=self._device))
        return found.tolist()

    def _round(self, status: int, batch: BatchGradients | None) -> None:
        heads = self._head(status, batch)
        states = {head[0] for head in heads}
        if states & {_FAILED, _OUT_OF_MEMORY}:
            raise OtherProcessFailed(_OUT_OF_MEMORY in states)
        self._over = all(head[0] == _OVER for head in heads)
        if self._over:
            return
        found = self._exchange(batch, heads)
        for head, flat in zip(heads, found, strict=True):
            if head[1]:
                parts = self._unpack(flat, head[1], head[2:])
                self._hold(head[1], self._bytes(head[1], head[2:]), parts)

    def _exchange(
        self, batch: BatchGradients | None, heads: list[list[int]]
    ) -> list[Tensor]:
        sent = []
        for shares in self._shares:
            flat = [torch.empty(0, dtype=self._dtype, device=self._device)]
            for part in self._cuts(batch, shares):
                if isinstance(part, Signals):
                    flat += [part.inputs.reshape(-1), part.output_grads.reshape(-1)]
                else:
                    flat.append(part.reshape(-1))
            sent.append(torch.cat(flat))
        mine = self._shares[self._rank]
        sizes = [
            sum(self._elements(share, head[1], head[2:]) for share in mine)
            for head in heads
        ]
        return exchange(sent, sizes)

    def _elements(self, share: Share, size: int, positions: Sequence[int]) -> int:
        count = positions[share.target]
        if count == _GRADIENTS:
            return size * (share.stop - share.start)
        width = self._layouts[share.target].shape[1]
        return size * count * (width + (share.stop - share.start) // width)

    def _unpack(
        self, flat: Tensor, size: int, positions: Sequence[int]
    ) -> list[Signals | Tensor]:
        found: list[Signals | Tensor] = []
        for share in self._shares[self._rank]:
            count = positions[share.target]
            if count == _GRADIENTS:
                numel = share.stop - share.start
                mine, flat = flat[: size * numel], flat[size * numel :]
                found.append(mine.reshape(size, numel).clone())
                continue
            width = self._layouts[share.target].shape[1]
            rows = (share.stop - share.start) // width
            x, flat = flat[: size * count * width], flat[size * count * width :]
            dy, flat = flat[: size * count * rows], flat[size * count * rows :]
            # In memory of their own, aligned as they are in a single process.
            found.append(
                Signals(
                    x.reshape(size, count, width).clone(),
                    dy.reshape(size, count, rows).clone(),
                )
            )
        return found

    def _cuts(
        self, batch: BatchGradients | None, shares: Sequence[Share]
    ) -> list[Signals | Tensor]:
        if batch is None:
            return []
        return [self._cut(batch.parts, share) for share in shares]

    def _cut(self, parts: Sequence[Signals | Tensor], share: Share) -> Signals | Tensor:
        part, layout = parts[share.target], self._layouts[share.target]
        if isinstance(part, Signals):
            width = layout.shape[1]
            rows = slice(share.start // width, share.stop // width)
            dy = part.output_grads[..., rows]
            return Signals(part.inputs.to(self._dtype), dy.to(self._dtype))
        return layout.arrange(part)[:, share.start : share.stop].to(self._dtype)

    def _bytes(self, size: int, positions: Sequence[int]) -> int:
        values = 0
        for layout, count in zip(self._layouts, positions, strict=True):
            out, width = layout.shape
            values += out * width if count == _GRADIENTS else count * (out + width)
        return 4 * size * values

    def _hold(
        self, size: int, size_bytes: int, parts: Sequence[Signals | Tensor]
    ) -> None:
        full = self._held_size + size > FOLD_SAMPLES
        if full or self._held_bytes + size_bytes > self._plan.held_bytes:
            self._fold()
        mine = self._shares[self._rank]
        by_target = {s.target: part for s, part in zip(mine, parts, strict=True)}
        self._held.append(_Held(size, by_target))
        self._held_size += size
        self._held_bytes += size_bytes

    def _fold(self) -> None:
        starts = {s.target: s.start for s in self._shares[self._rank]}
        for i, fisher in self._fishers.items():
            piece = self._plan.pieces[i]
            kept = self._kept[piece.target]
            mine = None if kept is None else piece.of(kept)
            for held in _portions(self._held):
                grads = self._form(piece, held, starts[piece.target], fisher)
                fisher.add_(grads, mine)
        self._held, self._held_size, self._held_bytes = [], 0, 0

    def _form(
        self, piece: Piece, held: list[_Held], start: int, fisher: BlockFisher
    ) -> Tensor:
        """Form the gradients of a piece, ``(k, numel)``, in the precision of its sums.

        Returns:
            Memory that is used again for the next piece.
        """
        layout = self._layouts[piece.target]
        size = sum(one.size for one in held)
        wide = self._take(fisher.sums.dtype, size, piece.numel)
        at = 0
        for one in held:
            rows = wide[at : at + one.size]
            part = one.parts[piece.target]
            if isinstance(part, Signals):
                self._form_rows(rows, part, piece, start, layout.shape[1])
            else:
                rows.copy_(part[:, piece.start - start : piece.stop - start])
            at += one.size
        if layout.pattern.rows > 1 and isinstance(held[0].parts[piece.target], Signals):
            return layout.band(piece.numel).arrange(wide)
        return wide

    def _form_rows(
        self, found: Tensor, part: Signals, piece: Piece, start: int, width: int
    ) -> None:
        first, last = (piece.start - start) // width, (piece.stop - start) // width
        x, dy = part.inputs, part.output_grads[..., first:last].contiguous()
        shape = (len(x), last - first, width)  # (k, out, in)
        if found.dtype == x.dtype or x.shape[1] <= _WIDE_POSITIONS:
            x, dy = x.to(found.dtype), dy.to(found.dtype)
            torch.bmm(dy.transpose(1, 2), x, out=found.view(shape))
            return
        narrow = self._take(x.dtype, len(x), found.shape[1])
        torch.bmm(dy.transpose(1, 2), x, out=narrow.view(shape))
        found.copy_(narrow)

    def _take(self, dtype: torch.dtype, size: int, numel: int) -> Tensor:
        # Fresh memory of this size costs more time than the products that fill it.
        kept = self._room.get(dtype)
        if kept is None or kept.numel() < size * numel:
            kept = torch.empty(size * numel, dtype=dtype, device=self._device)
            self._room[dtype] = kept
        return kept[: size * numel].view(size, numel)


def _positions(batch: BatchGradients) -> list[int]:
    return [
        part.inputs.shape[1] if isinstance(part, Signals) else _GRADIENTS
        for part in batch.parts
    ]


def _portions(held: list[_Held]) -> list[list[_Held]]:
    """Cut a single batch that is too large to be added at once.

    Returns:
        Lists of batches that are added together.
    """
    if len(held) != 1 or held[0].size <= FOLD_SAMPLES:
        return [held] if held else []
    found = []
    for at in range(0, held[0].size, FOLD_SAMPLES):
        rows = slice(at, at + FOLD_SAMPLES)
        parts = {
            target: Signals(part.inputs[rows], part.output_grads[rows])
            if isinstance(part, Signals)
            else part[rows]
            for target, part in held[0].parts.items()
        }
        found.append([_Held(len(range(held[0].size)[rows]), parts)])
    return found
