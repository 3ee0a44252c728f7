"""The Fisher blocks of an event, collected when they are needed, as planned."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    all_reduce_,
    all_reduce_count,
    raise_on_all_ranks,
    share_of,
    world,
)
from obert_modifiers.core.distributed.sharding import MemoryPlan
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.collect import Collector
from obert_modifiers.core.pruning.exchange import ExchangingCollector
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.gradients import GradientCount, collect_gradients
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import Target, widest_dtype

MAX_SKIPPED_SHARE = 0.1


@dataclass(eq=False)
class FisherState:
    """State of the pieces that this process owns, turn by turn.

    With one turn everything is collected once. With more, a turn is collected when it
    is asked for, and again if it has gone; the samples are the same each time. It is
    made of what :func:`~.pruning_step.second_order_step_` takes, and of the plan of
    :func:`~.event.plan_targets`.
    """

    model: nn.Module
    targets: Sequence[Target]
    masks: Sequence[Tensor]
    plan: MemoryPlan
    config: SecondOrderConfig
    source: GradientSource
    draw: int = 0

    def __post_init__(self) -> None:
        """Collect nothing yet."""
        self.count = GradientCount()  # of all processes; none before the first turn
        self.device = self.targets[0].parameter.device
        self._layouts = [t.layout(self.config.pattern) for t in self.targets]
        self._kept = [
            None if bool(mask.all()) else layout.arrange(mask.reshape(-1))
            for layout, mask in zip(self._layouts, self.masks, strict=True)
        ]
        self._batches: _Remembered | None = None
        self._turns: dict[int, dict[int, BlockFisher]] = {}
        self._last: int | None = None

    def sweep(self) -> Iterator[dict[int, BlockFisher]]:
        """Go through all turns once, first the one that is at hand.

        Every process has to go through all of it.

        Yields:
            The pieces of this process in one turn, by their position in the plan.
        """
        order = list(range(self.plan.turns))
        if self._last == order[-1]:
            order.reverse()
        for turn in order:
            if turn not in self._turns:
                if self.plan.keeps == "nothing":
                    self._turns.clear()  # before the next one is allocated
                self._turns[turn] = self._collect(turn)
            self._last = turn
            found = self._turns[turn]
            yield {i: fisher.to(self.device) for i, fisher in found.items()}

    def release(self) -> None:
        """Let go of all sums; they are collected again when they are asked for."""
        self._turns.clear()
        self._last = None

    def traces(self) -> tuple[list[float], int]:
        """Return each piece's sum of the diagonal over living weights, and the number.

        Of the pieces of all processes.
        """
        # A number of each piece comes from only one process, so that no sum depends
        # on how many there are.
        sums = torch.zeros(2, len(self.plan.pieces), dtype=torch.float64)
        for fishers in self.sweep():
            for i, fisher in fishers.items():
                piece = self.plan.pieces[i]
                kept = self._kept[piece.target]
                mine = None if kept is None else piece.of(kept)
                sums[0, i], sums[1, i] = fisher.living_trace(mine)
        sums = all_reduce_(sums.to(self.device)).cpu()
        return sums[0].tolist(), int(sums[1].sum())

    def _collect(self, turn: int) -> dict[int, BlockFisher]:
        with raise_on_all_ranks(self.device):
            fishers = self.allocate(turn)
        self.count = collect_blocks(self, self.collector(turn, fishers))
        total = self.count.used + self.count.skipped
        if self.count.skipped > MAX_SKIPPED_SHARE * total:
            raise FloatingPointError(
                f"{self.count.skipped} of {total} sampled gradients are not finite; "
                f"expected at most {MAX_SKIPPED_SHARE:.0%}; lower the learning rate or "
                "check the data; nothing was pruned"
            )
        where = "cpu" if self.plan.keeps == "host" else self.device
        return {i: fisher.to(where) for i, fisher in fishers.items()}

    def allocate(self, turn: int) -> dict[int, BlockFisher]:
        """Return memory for the pieces of this process in one turn."""
        return {
            i: BlockFisher(
                self.plan.pieces[i].numel,
                self.config.fisher_block_size,
                device=self.device,
                dtype=self.plan.fisher_dtype,
                with_mean=self.config.first_order,
            )
            for i in self.plan.owned(world()[0], turn)
        }

    def collector(self, turn: int, fishers: dict[int, BlockFisher]) -> Collector:
        """Return what adds batches to the Fisher of one turn."""
        kind = Collector if world()[1] == 1 else ExchangingCollector
        dtype = widest_dtype(t.parameter for t in self.targets)
        like = torch.empty(0, dtype=dtype, device=self.device)
        return kind(self.plan, turn, self._layouts, self._kept, fishers, like)

    def batches(self) -> tuple[Any, int | None]:
        """Return the batches of the draw, and how many gradients to take of them."""
        config, source = self.config, self.source
        request = request_of(
            config.num_grads, self.draw, dict(config.options), config.grad_granularity
        )
        limit = None if source.divides else request.share
        if self.plan.turns == 1 and config.update != "row":
            return source.batches(request), limit
        if self._batches is None:  # a source may give others when asked again
            self._batches = _Remembered(source.batches(request))
        return self._batches, limit


class _Remembered:
    """Batches to go through several times, made as far as somebody has gone.

    A source of which a process takes its share may have no end.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._rest, self._seen = iter(batches), list[Any]()

    def __iter__(self) -> Iterator[Any]:
        yield from tuple(self._seen)
        for batch in self._rest:
            self._seen.append(batch)
            yield batch


def collect_blocks(state: FisherState, collector: Collector) -> GradientCount:
    """Return the count, over all processes, of gradients that a collector was given."""
    # Every process calls it, with batches of its own; if one fails, all raise.
    try:
        batches, limit = state.batches()
        count = collect_gradients(
            state.model,
            [target.parameter for target in state.targets],
            batches,
            state.source.sample_losses,
            collector.add,
            granularity=state.config.grad_granularity,
            limit=limit,
        )
    except OtherProcessFailed:
        raise
    except Exception as error:
        collector.abort(error)
        raise
    collector.finish()
    return GradientCount(
        all_reduce_count(count.used, state.device),
        all_reduce_count(count.skipped, state.device),
    )


def request_of(
    num_grads: int, draw: int, options: dict[str, Any], granularity: str
) -> SampleRequest:
    """Return the request for a draw of samples, with the share of this process."""
    share = share_of(num_grads, *world())
    return SampleRequest(num_grads, share, draw, options, granularity)
