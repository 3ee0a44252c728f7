"""What a recipe does when, worked out without training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from obert_modifiers.core.pruning.schedule import interpolate_sparsity
from obert_modifiers.host.bases import ScheduledModifierManager
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers.rules import FROM_PARAM
from obert_modifiers.recipe import clock, counts
from obert_modifiers.recipe.environment import step_faults
from obert_modifiers.recipe.load import LoadedRecipe
from obert_modifiers.recipe.placed import KINDS, Placed, goals_of, gradual_in, of_kind

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan

# Target of each goal; None where the first sparsity is that of the loaded weights.
Sparsities = tuple[float | None, ...]


@dataclass(frozen=True)
class Event:
    epoch: float
    sparsities: Sparsities


@dataclass(frozen=True)
class PruningPlan:
    """What one pruning modifier does."""

    modifier: str
    line: int
    goals: tuple[float, ...]  # one, unless the recipe maps sparsities to names
    events: tuple[Event, ...] | None  # None where they depend on unknown steps
    num_grads: int = 0  # of an event after the first
    first_grads: int = 0  # of the first event
    grad_granularity: str = ""  # "sample", "batch" or empty
    pools: tuple[counts.PoolCount, ...] = ()  # with a model, what will be pruned
    memory: MemoryPlan | None = None  # with a model, the Fisher state on one process

    @property
    def reaches_goal(self) -> bool:
        """Whether the last event prunes to the final sparsities."""
        if self.events is None:
            return True
        return bool(self.events) and self.events[-1].sparsities == self.goals


@dataclass(frozen=True)
class Span:
    """A modifier between two epochs."""

    modifier: str
    start: float
    end: float  # that of the recipe where it is left open
    hardness: float | None = None  # of distillation
    temperature: float | None = None  # of distillation
    fixed: float | None = None  # from when on ranges are fixed; None for the end
    quantizes: bool = False

    def covers(self, start: float, end: float) -> bool:
        return self.start <= start and (self.end > start or self.end == end)


@dataclass(frozen=True)
class Phase:
    """Epochs in which one set of modifiers is at work."""

    start: float
    end: float
    first_rate: float | None  # learning rate of its first step, if it is set
    last_rate: float | None
    events: int
    # Latest targets of each pruning modifier at its end; None before its first event.
    sparsities: tuple[Sparsities | None, ...]
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe does when."""

    file: str
    num_epochs: float | None
    steps_per_epoch: int | None
    cuts: tuple[float, ...]  # where a phase begins or ends
    pruning: tuple[PruningPlan, ...]  # of the modifiers with a schedule
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]  # beside pruning, distillation, learning rate and epochs
    rates: tuple[tuple[float, float | None], ...]  # epochs and learning rates
    notes: tuple[str, ...]  # what will not go as the recipe says

    @property
    def num_events(self) -> int | None:
        """Pruning events of all modifiers; None where they depend on the steps."""
        events = [p.events for p in self.pruning]
        return None if None in events else sum(map(len, events))

    @property
    def end(self) -> float:
        return self.cuts[-1]

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The recipe from its start to its end."""
        return tuple(self._phase(start, end) for start, end in pairwise(self.cuts))

    def _phase(self, start: float, end: float) -> Phase:
        rates = [rate for epoch, rate in self.rates if start <= epoch < end]
        count, latest = 0, []
        for plan in self.pruning:
            events = plan.events or ()
            past = [e for e in events if e.epoch < end or end == self.end]
            count += sum(event.epoch >= start for event in past)
            latest.append(past[-1].sparsities if past else None)
        distillation = tuple(s for s in self.distillation if s.covers(start, end))
        others = tuple(s for s in self.others if s.covers(start, end))
        rates = [rates[0], rates[-1]] if rates else [None, None]
        return Phase(start, end, *rates, count, tuple(latest), distillation, others)


def plan_recipe(
    recipe: LoadedRecipe,
    *,
    steps_per_epoch: int | None = None,
    model: nn.Module | None = None,
) -> RecipePlan:
    """Work out what a recipe does when; changes neither recipe nor model."""
    everyone = recipe.placed
    modifiers = [placed.modifier for placed in everyone]
    host = ScheduledModifierManager(modifiers=copy.deepcopy(modifiers))
    num_epochs = float(host.max_epochs) if host.max_epochs > 0.0 else None
    if steps_per_epoch is not None:
        recipe.check(lambda m: step_faults(m, steps_per_epoch, num_epochs))
    end = num_epochs or max(0.0, *(m.end_epoch for m in modifiers), 0.0)
    rated = of_kind(everyone, KINDS.learning_rate)
    rates = clock.learning_rates([p.modifier for p in rated], end, steps_per_epoch)
    gradual = gradual_in(everyone)
    pruning = tuple(
        _pruning(
            placed,
            clock.event_epochs(placed.modifier, num_epochs, steps_per_epoch),
            model,
        )
        for placed in gradual
    )
    distilling = of_kind(everyone, KINDS.distillation)
    shown = {*gradual, *distilling, *rated, *of_kind(everyone, KINDS.epoch)}
    return RecipePlan(
        file=recipe.file,
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        cuts=_cuts(modifiers, clock.rewinds(rates), end),
        pruning=pruning,
        distillation=tuple(_span(p, end) for p in distilling),
        others=tuple(_span(p, end) for p in everyone if p not in shown),
        rates=tuple(rates),
        notes=(*_notes(pruning, num_epochs), *_straddling(everyone, model)),
    )


def _span(placed: Placed, end: float) -> Span:
    modifier = placed.modifier
    return Span(
        placed.tag,
        placed.start,
        modifier.end_epoch if modifier.end_epoch >= 0.0 else end,
        getattr(modifier, "hardness", None),
        getattr(modifier, "temperature", None),
        getattr(modifier, "disable_observer_epoch", None),
        KINDS.quantization in modifier.sparsification_types,
    )


def _pruning(
    placed: Placed, epochs: Sequence[float] | None, model: nn.Module | None
) -> PruningPlan:
    modifier = placed.modifier
    goals = goals_of(modifier)
    config = counts.second_order(modifier)
    num_grads = getattr(modifier, "num_grads", None)
    if isinstance(num_grads, dict):  # SparseML's M-FAC: by sparsity
        num_grads = None
    first_grads = num_grads
    if config is not None:
        num_grads = config.num_grads * config.num_recomputations
        first = getattr(modifier, "first_recomputations", None)
        first_grads = config.num_grads * first if first else num_grads
    events = None
    if epochs is not None:
        events = tuple(Event(e, _sparsities(modifier, goals, e)) for e in epochs)
    return PruningPlan(
        modifier=placed.tag,
        line=placed.line,
        goals=goals,
        events=events,
        num_grads=num_grads or 0,
        first_grads=first_grads or 0,
        grad_granularity="" if config is None else config.grad_granularity,
        pools=() if model is None else counts.pool_counts(modifier, model),
        memory=None if model is None else counts.fisher_memory(modifier, model),
    )


def _sparsities(modifier: Any, goals: Sequence[float], epoch: float) -> Sparsities:
    start, end = max(0.0, modifier.start_epoch), modifier.end_epoch
    init = modifier.init_sparsity
    if init == FROM_PARAM:
        return tuple(goals) if epoch >= end else (None,) * len(goals)
    ours = isinstance(modifier, GradualPruningModifier)
    firsts = [min(init, goal) if ours else init for goal in goals]
    return tuple(
        interpolate_sparsity(epoch, start, end, first, goal, modifier.inter_func)
        for first, goal in zip(firsts, goals, strict=True)
    )


def _cuts(
    modifiers: Sequence[Any], turns: Sequence[float], end: float
) -> tuple[float, ...]:
    """Return the epochs at which something begins or ends, and all whole ones."""
    cuts = {0.0, end, *turns, *(float(epoch) for epoch in range(1, int(end) + 1))}
    for modifier in modifiers:
        fixed = getattr(modifier, "disable_observer_epoch", None)
        cuts |= {modifier.start_epoch, modifier.end_epoch}
        cuts |= set() if fixed is None else {float(fixed)}
    inside = sorted({round(e, 9) for e in cuts if 0.0 <= e <= end})
    return tuple(inside) if len(inside) > 1 else (0.0, end)


def _notes(pruning: Sequence[PruningPlan], num_epochs: float | None) -> Iterator[str]:
    for plan in pruning:
        where = f"{plan.modifier} (line {plan.line})"
        if plan.events is None:
            note = "prunes at every step; their number needs the training samples"
            yield f"{where} {note}"
        elif not plan.reaches_goal:
            goals = ", ".join(f"{goal:g}" for goal in plan.goals)
            note = f"does not reach final_sparsity={goals}: the recipe ends at epoch "
            note += f"{num_epochs:g}, before its last event; expected end_epoch before "
            yield f"{where} {note}the end; lower it or raise the number of epochs"


def _straddling(everyone: Sequence[Placed], model: nn.Module | None) -> Iterator[str]:
    """Find Fisher blocks that hold weights of two rows, which is legal."""
    for placed in everyone:
        config = counts.second_order(placed.modifier)
        if model is None or config is None:
            continue
        width, pattern = config.fisher_block_size, config.pattern
        targets = counts.targets_of(placed.modifier, model)
        rows = {t.name: t.layout(pattern).shape[1] * pattern.rows for t in targets}
        found = [(name, row) for name, row in rows.items() if row % width]
        if found:
            (name, row), *others = found
            note = f"Fisher blocks of fisher_block_size={width} straddle the rows of "
            note += f"{name} ({row} weights) and {len(others)} more parameters; legal, "
            note += "since a block is any run of weights; a divisor of the row keeps to"
            yield f"{placed.tag} (line {placed.line}): {note} one output"
