"""The Fisher blocks of an event, collected when they are needed, as planned."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    all_reduce_,
    raise_on_all_ranks,
    share_of,
    world,
)
from obert_modifiers.core.distributed.sharding import MemoryPlan
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.collect import Collector, collect_blocks
from obert_modifiers.core.pruning.exchange import ExchangingCollector
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.gradients import MAX_SKIPPED_SHARE, GradientCount
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import Target, widest_dtype


class FisherState:
    """State of the pieces that this process owns, turn by turn.

    With one turn everything is collected once. With more, a turn is collected when it
    is asked for, and again if it has gone; the samples are the same each time.

    Attributes:
        plan: The plan of the event.
        count: Gradients of all processes; none before the first turn.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        kept: Sequence[Tensor],
        plan: MemoryPlan,
        config: SecondOrderConfig,
        source: GradientSource,
        draw: int,
    ) -> None:
        """Collect nothing yet; ``kept`` are the masks ``(d / Q, Q)``, True = kept."""
        self.plan, self.count = plan, GradientCount()
        self._model, self._config, self._source = model, config, source
        self._parameters = [target.parameter for target in targets]
        self._layouts = [target.layout(config.pattern) for target in targets]
        self._kept = [None if bool(mask.all()) else mask.reshape(-1) for mask in kept]
        self._device = self._parameters[0].device
        self._request = request_of(
            config.num_grads, draw, dict(config.options), config.grad_granularity
        )
        self._batches: list[Any] | None = None
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
            yield self._turn(turn)

    def _turn(self, turn: int) -> dict[int, BlockFisher]:
        if turn not in self._turns:
            if self.plan.keeps == "nothing":
                self._turns.clear()  # before the next one is allocated
            self._turns[turn] = self._collect(turn)
        self._last = turn
        found = self._turns[turn]
        if self.plan.keeps != "host":
            return found
        return {i: fisher.to(self._device) for i, fisher in found.items()}

    def _collect(self, turn: int) -> dict[int, BlockFisher]:
        plan, config, device = self.plan, self._config, self._device
        rank, ranks = world()
        with raise_on_all_ranks(device):
            fishers = {
                i: BlockFisher(
                    plan.pieces[i].numel,
                    config.fisher_block_size,
                    device=device,
                    dtype=plan.fisher_dtype,
                    with_mean=config.first_order,
                )
                for i in plan.owned(rank, turn)
            }
        kind = Collector if ranks == 1 else ExchangingCollector
        dtype = widest_dtype(self._parameters)
        collector = kind(plan, turn, self._layouts, self._kept, fishers, dtype, device)
        self.count = collect_blocks(
            self._model,
            self._parameters,
            self._samples(),
            self._source.sample_losses,
            collector,
            granularity=config.grad_granularity,
            limit=None if self._source.divides else self._request.share,
        )
        _check_skipped(self.count)
        if plan.keeps == "host":
            return {i: fisher.to("cpu") for i, fisher in fishers.items()}
        return fishers

    def _samples(self) -> Any:
        if self.plan.turns == 1:
            return self._source.batches(self._request)
        if self._batches is None:  # a source may give others when asked again
            self._batches = list(self._source.batches(self._request))
        return self._batches

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
        sums = all_reduce_(sums.to(self._device)).cpu()
        return sums[0].tolist(), int(sums[1].sum())


def request_of(
    num_grads: int, draw: int, options: dict[str, Any], granularity: str
) -> SampleRequest:
    """Return the request for a draw of samples, with the share of this process."""
    share = share_of(num_grads, *world())
    return SampleRequest(num_grads, share, draw, options, granularity)


def _check_skipped(count: GradientCount) -> None:
    total = count.used + count.skipped
    if count.skipped > MAX_SKIPPED_SHARE * total:
        raise FloatingPointError(
            f"{count.skipped} of {total} sampled gradients are not finite; expected at "
            f"most {MAX_SKIPPED_SHARE:.0%}; lower the learning rate or check the data; "
            "nothing was pruned"
        )
