"""One pruning event: a Fisher, and what is selected and updated with it."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from obert_modifiers.core.distributed.memory import available_memory
from obert_modifiers.core.distributed.parallel import (
    all_reduce_,
    raise_on_all_ranks,
    world,
)
from obert_modifiers.core.distributed.sharding import MemoryPlan, plan_event
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import check_block_size
from obert_modifiers.core.pruning.fisher import BlockFisher, resolve_damp, sums_shape
from obert_modifiers.core.pruning.fisher_state import FisherState, request_of
from obert_modifiers.core.pruning.gradients import sum_losses
from obert_modifiers.core.pruning.saliency import greedy_candidates, obs_candidates
from obert_modifiers.core.pruning.selection import Candidates, Pool, choose, make_quotas
from obert_modifiers.core.pruning.targets import (
    Target,
    group_masks,
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
_NO_LIMIT = 2**62  # bytes

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
        # The smallest of all, so that all plan alike.
        limits = torch.tensor([_NO_LIMIT if budget is None else budget, host])
        budget, host = all_reduce_(limits.to(device), least=True).tolist()
        budget = None if budget == _NO_LIMIT else budget
        ranks = world()[1]
    dtype = torch.promote_types(
        widest_dtype(t.parameter for t in targets), getattr(torch, config.fisher_dtype)
    )
    return plan_event(
        [t.layout(config.pattern) for t in targets],
        config.fisher_block_size,
        block_values=math.prod(sums_shape(config.fisher_block_size, device, dtype)),
        fisher_dtype=dtype,
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
    """What could be pruned with the Fisher of the selected parameters.

    Nothing is written. Every process of a distributed run has to make the same calls.

    Attributes:
        state: The Fisher, collected when it is first needed.
        config: How to prune.
    """

    def __init__(
        self, state: FisherState, config: SecondOrderConfig | None = None
    ) -> None:
        """Collect nothing yet.

        Another ``config`` than that of the state has the same gradients and blocks, and
        a pattern in which the weights have the same order.
        """
        self.state, self.config = state, config or state.config
        self.targets, self.plan, self.device = state.targets, state.plan, state.device
        self.layouts = [t.layout(self.config.pattern) for t in state.targets]
        self.kept = group_masks(self.layouts, state.masks)

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

    def _select(self, pools: Sequence[Pool], damp: float) -> list[Tensor]:
        """Return the new masks, ``(d,)`` in the order of the groups."""
        config, pieces = self.config, self.plan.pieces
        size = config.pattern.group_size

        def candidates_of(i: int, fisher: BlockFisher) -> Candidates:
            weights, _ = self._weights(i, fisher, damp)
            kept = pieces[i].of(self.kept[pieces[i].target]).reshape(-1, size)
            rule = CANDIDATES[config.selection]
            return rule(weights.reshape(-1, size), kept, fisher, damp, config.pattern)

        candidates = self._for_pieces(candidates_of)
        quotas = make_quotas(
            pools,
            self.kept,
            config.pattern,
            by_weight=config.selection == "greedy",
            min_density=config.min_density,
        )
        owners = [piece.target for piece in pieces]
        chosen = choose(candidates, owners, quotas, self.device)
        pruned = {
            i: candidates[i].pruned(part, pieces[i].numel).to(torch.uint8)
            for i, part in chosen.items()
        }
        gone = self._join(pruned, torch.uint8)
        return [m.reshape(-1) & (g == 0) for m, g in zip(self.kept, gone, strict=True)]

    def _update(self, masks: list[Tensor], damp: float) -> Outcome:
        """Return the masks with the new weights, in the parameters' shapes."""
        update, size = UPDATES[self.config.update], self.config.pattern.group_size
        wide = widest_dtype(t.parameter for t in self.targets)
        increases = torch.zeros(len(self.plan.pieces), dtype=torch.float64)

        def values_of(i: int, fisher: BlockFisher) -> Tensor:
            piece = self.plan.pieces[i]
            weights, change = self._weights(i, fisher, damp)
            mask = piece.of(masks[piece.target])
            values, increase = update(weights, fisher, damp, mask, size)
            increases[i] = increase + change
            return values.to(self.targets[piece.target].parameter.dtype).to(wide)

        values = self._join(self._for_pieces(values_of), wide)
        total = math.fsum(all_reduce_(increases.to(self.device)).tolist())
        return Outcome(
            restore_shapes(self.layouts, masks, self.state.masks),
            restore_shapes(self.layouts, values, self.state.masks),
            total,
        )

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
        finite = [row for row in tried if math.isfinite(row[0])]
        if not finite:
            raise FloatingPointError(
                "damp=auto finds no held-out loss that is finite, with any of "
                f"{', '.join(f'{row[3]:g}' for row in tried)}; expected numbers; lower "
                "the learning rate or check the data; nothing was pruned"
            )
        _, best, damp, best_fraction = min(finite, key=lambda row: row[0])
        if world()[0] == 0:
            _LOGGER.info(
                "damp: auto takes %g x the mean diagonal; held-out loss %s",
                best_fraction,
                ", ".join(f"{row[3]:g}: {row[0]:.4f}" for row in tried),
            )
        return best, damp

    def _held_out_loss(self) -> float:
        state, source = self.state, self.state.source
        draw, options = _HELD_OUT_DRAWS + state.draw, dict(self.config.options)
        request = request_of(_HELD_OUT_SAMPLES, draw, options, "sample")
        limit = None if source.divides else request.share
        with raise_on_all_ranks(self.device):
            sums = sum_losses(state.model, source.batches(request), source, limit)
        both = torch.tensor(sums, dtype=torch.float64, device=self.device)
        total, count = all_reduce_(both).tolist()
        return total / count

    def _for_pieces(self, work: Callable[[int, BlockFisher], _T]) -> dict[int, _T]:
        """Return what ``work`` makes of each piece of this process and its Fisher."""
        done: dict[int, _T] = {}
        for fishers in self.state.sweep():
            with raise_on_all_ranks(self.device):
                done |= {i: work(i, fisher) for i, fisher in fishers.items()}
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

    def _join(self, parts: Mapping[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
        # The pieces of all processes, on every process: (d,) of each parameter.
        joined = [
            torch.zeros(layout.numel, dtype=dtype, device=self.device)
            for layout in self.layouts
        ]
        for i, part in parts.items():
            piece = self.plan.pieces[i]
            piece.of(joined[piece.target]).copy_(part)
        # Each weight comes from one process; the others add zero.
        return [all_reduce_(whole) for whole in joined]
