"""The Fisher blocks of an event, collected when they are needed, as planned."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.parallel import (
    all_reduce_,
    share_of,
    together,
    world,
)
from obert_modifiers.core.distributed.sharding import MemoryPlan
from obert_modifiers.core.pruning.blocks import GroupLayout
from obert_modifiers.core.pruning.collect import Collector, collect_blocks
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.gradients import (
    MAX_SKIPPED_SHARE,
    GradientCount,
)
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import widest_dtype

_LOGGER = logging.getLogger(__name__)


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
        parameters: Sequence[nn.Parameter],
        layouts: Sequence[GroupLayout],
        kept: Sequence[Tensor],
        plan: MemoryPlan,
        source: GradientSource,
        request: SampleRequest,
        *,
        fisher_block_size: int,
        with_mean: bool = False,
    ) -> None:
        """Collect nothing yet.

        Args:
            model: The model, not wrapped for distributed training.
            parameters: All parameters of the event.
            layouts: Of each parameter.
            kept: Mask of each parameter, ``(groups, Q)``, True = kept.
            plan: The plan of the event.
            source: Where the gradients come from.
            request: What is asked of it.
            fisher_block_size: Width B of a Fisher block.
            with_mean: True keeps the mean gradient too.
        """
        self.plan = plan
        self.count = GradientCount()
        self._model, self._parameters, self._layouts = model, parameters, layouts
        self._kept = [None if bool(mask.all()) else mask.reshape(-1) for mask in kept]
        self._source, self._request = source, request
        self._width, self._with_mean = fisher_block_size, with_mean
        self._rank = world()[0]
        self._batches: list[Any] | None = None
        self._turns: dict[int, dict[int, BlockFisher]] = {}
        self._last: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the state lives."""  # noqa: DOC201 property
        return self._parameters[0].device

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
        return {i: fisher.to(self.device) for i, fisher in found.items()}

    def _collect(self, turn: int) -> dict[int, BlockFisher]:
        plan = self.plan
        with together(self.device):
            fishers = {
                i: BlockFisher(
                    plan.pieces[i].numel,
                    self._width,
                    device=self.device,
                    dtype=plan.fisher_dtype,
                    with_mean=self._with_mean,
                )
                for i in plan.owned(self._rank, turn)
            }
        dtype = widest_dtype(self._parameters)
        collector = Collector(
            plan,
            turn,
            self._layouts,
            self._kept,
            fishers,
            torch.empty(0, dtype=dtype, device=self.device),
        )
        count = collect_blocks(
            self._model,
            self._parameters,
            self._samples(),
            self._source.sample_losses,
            collector,
            granularity=self._request.granularity,
            limit=None if self._source.divides else self._request.share,
        )
        self.count = _checked(count)
        if plan.keeps == "host":
            fishers = {i: fisher.to("cpu") for i, fisher in fishers.items()}
        return fishers

    def _samples(self) -> Any:
        if self.plan.turns == 1:
            return self._source.batches(self._request)
        if self._batches is None:  # a source may give others when asked again
            self._batches = list(self._source.batches(self._request))
        return self._batches

    def traces(self) -> tuple[list[float], int]:
        """Sum the Fisher's diagonal over the living weights.

        Returns:
            The sum of each piece of all processes, and the number of living weights.
        """
        # A number of each piece comes from one process alone, so that no sum depends
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


def request_of(
    num_grads: int, draw: int, options: dict[str, Any], granularity: str
) -> SampleRequest:
    """Ask for the gradient samples of a draw, as this process has to.

    Args:
        num_grads: Gradients over all processes.
        draw: Number of the draw.
        options: ``grad_sampler_kwargs`` of the recipe.
        granularity: ``"sample"`` or ``"batch"``.

    Returns:
        The request.
    """
    rank, ranks = world()
    share = share_of(num_grads, rank, ranks)
    return SampleRequest(num_grads, share, draw, options, granularity)


def _checked(count: GradientCount) -> GradientCount:
    if count.skipped > MAX_SKIPPED_SHARE * (count.used + count.skipped):
        raise FloatingPointError(
            f"{count.skipped} of {count.used + count.skipped} sampled gradients are "
            f"not finite; expected at most {MAX_SKIPPED_SHARE:.0%}; lower the learning "
            "rate or check the data; nothing was pruned"
        )
    return count
