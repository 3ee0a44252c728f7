"""Batches of several processes: each sends its own to those that own the blocks.

Each process runs its own batches. A batch's layer inputs and output gradients go to
the processes that own pieces of the layer, in rounds of one batch from each process
that has one; every process takes what came in the order of the ranks.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    all_gather_row,
    exchange,
    ran_out_of_memory,
)
from obert_modifiers.core.distributed.sharding import Piece
from obert_modifiers.core.pruning.collect import GRADIENTS, Collector, positions_of
from obert_modifiers.core.pruning.layer_signals import Signals
from obert_modifiers.core.pruning.per_sample import BatchGradients

_MORE, _OVER, _FAILED, _OUT_OF_MEMORY = 0, 1, 2, 3


class ExchangingCollector(Collector):
    """A collector that takes its share of every process's batches."""

    _over = False

    def add(self, batch: BatchGradients) -> None:
        """Take a batch of this process, and one of each other that has one."""
        self._round(_MORE, batch)

    def finish(self) -> None:
        """Take what the other processes still have, and add up what is held."""
        while not self._over:
            self._round(_OVER, None)
        super().finish()

    def abort(self, error: Exception) -> None:
        """Tell the other processes that this one failed."""
        self._tell(_OUT_OF_MEMORY if ran_out_of_memory(error) else _FAILED, None)

    def _tell(self, status: int, batch: BatchGradients | None) -> list[list[int]]:
        # Status, samples and positions of each layer, of every process.
        positions = positions_of(batch) if batch else [0] * len(self._layouts)
        row = [status, batch.size if batch else 0, *positions]
        return all_gather_row(torch.tensor(row, device=self._device)).tolist()

    def _round(self, status: int, batch: BatchGradients | None) -> None:
        heads = self._tell(status, batch)
        states = {head[0] for head in heads}
        if states & {_FAILED, _OUT_OF_MEMORY}:
            raise OtherProcessFailed(_OUT_OF_MEMORY in states)
        self._over = states == {_OVER}
        if self._over:
            return
        sent = [self._packed(batch, shares) for shares in self._shares]
        sizes = [
            sum(sum(self._sizes(share, size, positions)) for share in self._own)
            for _, size, *positions in heads
        ]
        came = exchange(sent, sizes)
        for (_, size, *positions), flat in zip(heads, came, strict=True):
            if size:
                self._hold(size, positions, self._unpacked(flat, size, positions))

    def _packed(self, batch: BatchGradients | None, shares: Sequence[Piece]) -> Tensor:
        flat = [torch.empty(0, dtype=self._dtype, device=self._device)]
        for part in self._cut(batch, shares) if batch else ():
            if isinstance(part, Signals):
                flat += [part.inputs.reshape(-1), part.output_grads.reshape(-1)]
            else:
                flat.append(part.reshape(-1))
        return torch.cat(flat)

    def _sizes(
        self, share: Piece, size: int, positions: Sequence[int]
    ) -> tuple[int, ...]:
        # Elements of a share: of the gradients, or of inputs and output gradients.
        count, width = positions[share.target], self._layouts[share.target].shape[1]
        if count == GRADIENTS:
            return (size * share.numel,)
        return size * count * width, size * count * (share.numel // width)

    def _unpacked(
        self, flat: Tensor, size: int, positions: Sequence[int]
    ) -> Iterator[Signals | Tensor]:
        parts = iter(
            flat.split([n for s in self._own for n in self._sizes(s, size, positions)])
        )
        for share in self._own:
            # In memory of their own, aligned as they are in a single process.
            first, count = next(parts).clone(), positions[share.target]
            if count == GRADIENTS:
                yield first.view(size, share.numel)
            else:
                width = self._layouts[share.target].shape[1]
                dy = next(parts).clone()
                yield Signals(
                    first.view(size, count, width),
                    dy.view(size, count, share.numel // width),
                )
