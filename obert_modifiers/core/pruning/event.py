"""One pruning event: a Fisher, and what is selected and updated with it."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from obert_modifiers.core.distributed.memory import available_memory
from obert_modifiers.core.distributed.parallel import (
    all_reduce_,
    raise_on_all_ranks,
    world,
)
from obert_modifiers.core.distributed.sharding import MemoryPlan, plan_event
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import check_block_size
from obert_modifiers.core.pruning.fisher import BlockFisher, resolve_damp
from obert_modifiers.core.pruning.fisher_state import FisherState, request_of
from obert_modifiers.core.pruning.gradients import sum_losses
from obert_modifiers.core.pruning.saliency import greedy_candidates, obs_candidates
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.selection import Candidates, Pool, choose, make_quotas
from obert_modifiers.core.pruning.targets import (
    Target,
    restore_shapes,
    restored,
    widest_dtype,
    write_parameters_,
)
from obert_modifiers.core.pruning.update import UPDATES

CANDIDATES = {"independent": obs_candidates, "greedy": greedy_candidates}
_HELD_OUT_SAMPLES = 256
_HELD_OUT_DRAWS = 2**20  # numbers of the draws that choose the dampening
_MEMORY_SHARE = 0.9  # of the free memory, where no budget is given

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


def plan_targets(
    targets: Sequence[Target], config: SecondOrderConfig, ranks: int | None = None
) -> MemoryPlan:
    """Plan the Fisher state of an event, before anything is allocated.

    With ``ranks=None`` torch is asked for their number and every process has to call
    it; the plan is the same on all.

    Returns:
        The plan; raises if the budget is below what one piece takes.
    """
    check_block_size(config.fisher_block_size, config.pattern)
    device = targets[0].parameter.device
    budget, host = config.memory_budget, 0
    if ranks is None:
        free = available_memory(device)
        if budget is None and free is not None:
            budget = int(_MEMORY_SHARE * free)
        if device.type != "cpu":
            host = int(_MEMORY_SHARE * (available_memory("cpu") or 0))
        # The smallest of all, so that all plan alike; 2**62 stands for no limit.
        limits = torch.tensor([2**62 if budget is None else budget, host])
        least = all_reduce_(limits.to(device), least=True).tolist()
        budget, host = (None if least[0] == 2**62 else least[0]), least[1]
        ranks = world()[1]
    return plan_event(
        [t.layout(config.pattern) for t in targets],
        config.fisher_block_size,
        fisher_dtype=torch.promote_types(
            widest_dtype(t.parameter for t in targets),
            getattr(torch, config.fisher_dtype),
        ),
        ranks=ranks,
        memory_budget=budget,
        host_budget=host,
    )


@dataclass(frozen=True)
class Outcome:
    """What an event would do.

    Attributes:
        masks: New mask of each target, True = kept.
        values: New weights of each target, zero where pruned.
        predicted_loss_increase: In units of the loss.
    """

    masks: list[Tensor]
    values: list[Tensor]
    predicted_loss_increase: float


class PruningEvent:
    """One Fisher of the selected parameters, and what could be pruned with it.

    Nothing is written. Every process of a distributed run has to make the same calls.

    Attributes:
        state: The Fisher, collected when it is first needed.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        masks: Sequence[Tensor],
        plan: MemoryPlan,
        config: SecondOrderConfig,
        source: GradientSource,
        draw: int,
        *,
        state: FisherState | None = None,
    ) -> None:
        """Collect nothing yet.

        Args:
            model: Model that holds the targets, not wrapped for distributed training.
            targets: Parameters to prune.
            masks: Current mask of each, True = kept.
            plan: As from :func:`plan_targets`.
            config: How to prune.
            source: Where the gradients come from.
            draw: Number of the draw of samples.
            state: That of another event with the same model, masks, plan and draw,
                in which the weights have the same order; None for one of its own.
        """
        self.model, self.targets, self.masks = model, targets, masks
        self.plan, self.config, self.source, self.draw = plan, config, source, draw
        self.device = targets[0].parameter.device
        self.layouts = [t.layout(config.pattern) for t in targets]
        self.kept = [
            layout.groups(mask)
            for layout, mask in zip(self.layouts, masks, strict=True)
        ]
        self.state = state or FisherState(
            model, targets, self.kept, plan, config, source, draw
        )

    def best_outcome(self, pools: Sequence[Pool]) -> tuple[Outcome, float]:
        """Return what is pruned to the pools' counts, and the dampening.

        The dampening is as configured; with a grid, the one of lowest held-out loss.
        """
        if self.config.damp_grid:
            return self._best_of_grid(pools)
        damp = self.config.damp
        traces, living = ([], 0) if damp is not None else self.state.traces()
        damp = resolve_damp(traces, living, damp, self.config.damp_fraction)
        return self.outcome(pools, damp), damp

    def outcome(self, pools: Sequence[Pool], damp: float) -> Outcome:
        """Return what is pruned to the pools' counts with one dampening."""
        masks = self._select(pools, damp)  # steps 2 to 5
        return self._update(masks, damp)  # step 6

    def _best_of_grid(self, pools: Sequence[Pool]) -> tuple[Outcome, float]:
        if self.plan.keeps == "nothing":
            raise ValueError(
                "damp=auto tries several dampenings on one Fisher state, which does "
                f"not stay in memory ({self.plan.describe()}); expected a budget for "
                "all of it; raise memory_budget or give damp_fraction"
            )
        traces, living = self.state.traces()
        tried = []
        for fraction in self.config.damp_grid:
            damp = resolve_damp(traces, living, None, fraction)
            found = self.outcome(pools, damp)
            with restored(self.targets, after_success=True):
                write_parameters_(self.targets, found.values, found.masks)
                loss = self._held_out_loss()
            tried.append((loss, found, damp, fraction))
        _, best, damp, best_fraction = min(tried, key=lambda row: row[0])
        if world()[0] == 0:
            _LOGGER.info(
                "damp: auto takes %g x the mean diagonal; held-out loss %s",
                best_fraction,
                ", ".join(f"{row[3]:g}: {row[0]:.4f}" for row in tried),
            )
        return best, damp

    def _held_out_loss(self) -> float:
        draw, options = _HELD_OUT_DRAWS + self.draw, dict(self.config.options)
        request = request_of(_HELD_OUT_SAMPLES, draw, options, "sample")
        limit = None if self.source.divides else request.share
        with raise_on_all_ranks(self.device):
            total, count = sum_losses(
                self.model, self.source.batches(request), self.source, limit
            )
        sums = torch.tensor([total, count], dtype=torch.float64)
        total, count = all_reduce_(sums.to(self.device)).tolist()
        return total / count

    def _select(self, pools: Sequence[Pool], damp: float) -> list[Tensor]:
        """Return the new masks, ``(d,)`` in the order of the groups."""
        config, pieces = self.config, self.plan.pieces
        size = config.pattern.group_size

        def candidates_of(i: int, fisher: BlockFisher) -> Candidates:
            weights, _ = self._weights(i, fisher, damp)
            kept = self._piece(self.kept, i).reshape(-1, size)
            rule = CANDIDATES[config.selection]
            return rule(weights.reshape(-1, size), kept, fisher, damp, config.pattern)

        quotas = make_quotas(
            pools,
            self.kept,
            config.pattern,
            by_weight=config.selection == "greedy",
            min_density=config.min_density,
        )
        found = self._for_pieces(candidates_of)
        mine = sorted(found)
        chosen = choose(
            [found[i] for i in mine],
            [(pieces[i].target, i) for i in mine],
            len(pieces),
            quotas,
            self.device,
        )
        pruned = {
            i: found[i].pruned(part, pieces[i].numel).to(torch.uint8)
            for i, part in zip(mine, chosen, strict=True)
        }
        return [
            mask.reshape(-1) & ~(lost == 1)
            for mask, lost in zip(
                self.kept, self._join(pruned, torch.uint8), strict=True
            )
        ]

    def _update(self, masks: list[Tensor], damp: float) -> Outcome:
        """Return the masks with the new weights, in the parameters' shapes."""
        update, size = UPDATES[self.config.update], self.config.pattern.group_size
        wide = widest_dtype(t.parameter for t in self.targets)
        increases = torch.zeros(len(self.plan.pieces), dtype=torch.float64)

        def values_of(i: int, fisher: BlockFisher) -> Tensor:
            weights, change = self._weights(i, fisher, damp)
            mask = self._piece(masks, i)
            values, increase = update(weights, fisher, damp, mask, size)
            increases[i] = increase + change
            own = self.targets[self.plan.pieces[i].target].parameter.dtype
            return values.to(own).to(wide)

        values = self._join(self._for_pieces(values_of), wide)
        total = math.fsum(all_reduce_(increases.to(self.device)).tolist())
        return Outcome(
            restore_shapes(self.layouts, masks, self.masks),
            restore_shapes(self.layouts, values, self.masks),
            total,
        )

    def _for_pieces(self, work: Callable[[int, BlockFisher], _T]) -> dict[int, _T]:
        """Return what ``work`` makes of each piece of this process and its Fisher."""
        done: dict[int, _T] = {}
        for fishers in self.state.sweep():
            with raise_on_all_ranks(self.device):
                for i, fisher in fishers.items():
                    done[i] = work(i, fisher)
        return done

    def _weights(
        self, i: int, fisher: BlockFisher, damp: float
    ) -> tuple[Tensor, float]:
        # (numel,), where first_order is on after a step to the minimum of the
        # quadratic model, and the change of that model's value by the step.
        piece = self.plan.pieces[i]
        parameter = self.targets[piece.target].parameter.detach()
        flat = piece.of(self.layouts[piece.target].arrange(parameter.reshape(-1)))
        if not self.config.first_order:
            return flat, 0.0
        step, change = fisher.newton_step(damp)
        return flat.double() + step, change

    def _piece(self, values: Sequence[Tensor], i: int) -> Tensor:
        piece = self.plan.pieces[i]
        return piece.of(values[piece.target])

    def _join(self, parts: Mapping[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
        # The pieces of all processes, on every process: (d,) of each parameter.
        joined = [
            torch.zeros(layout.numel, dtype=dtype, device=self.device)
            for layout in self.layouts
        ]
        for i, part in parts.items():
            self._piece(joined, i).copy_(part)
        # Each weight comes from one process; the others add zero.
        return [all_reduce_(whole) for whole in joined]
