"""What a recipe does when, worked out without training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obert_modifiers.core.pruning.schedule import interpolate_sparsity
from obert_modifiers.host.bases import Modifier, ScheduledModifierManager
from obert_modifiers.modifiers.rules import FROM_PARAM
from obert_modifiers.recipe.clock import event_epochs, learning_rates, rewinds
from obert_modifiers.recipe.counts import (
    PoolCount,
    fisher_memory,
    pool_counts,
    second_order,
    targets_of,
)
from obert_modifiers.recipe.environment import step_faults
from obert_modifiers.recipe.load import LoadedRecipe
from obert_modifiers.recipe.placed import KINDS, has_schedule
from obert_modifiers.recipe_text.problems import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan


@dataclass(frozen=True)
class Event:
    """One pruning event.

    Attributes:
        epoch: When.
        sparsities: Target of each goal, in [0, 1]; None where the first sparsity is
            that of the weights as they are loaded.
    """

    epoch: float
    sparsities: tuple[float | None, ...]


@dataclass(frozen=True)
class PruningPlan:
    """What one pruning modifier does.

    Attributes:
        modifier: Its name.
        line: Its line in the recipe.
        goals: Its final sparsities, one unless the recipe maps sparsities to names.
        events: Its events; None where they depend on steps that are not given.
        num_grads: Gradients of an event; 0 where it needs none.
        grad_granularity: ``"sample"``, ``"batch"`` or empty.
        pools: With a model, what will be pruned of which parameters.
        memory: With a model, the Fisher state of an event on one process.
    """

    modifier: str
    line: int
    goals: tuple[float, ...]
    events: tuple[Event, ...] | None
    num_grads: int = 0
    grad_granularity: str = ""
    pools: tuple[PoolCount, ...] = ()
    memory: MemoryPlan | None = None

    @property
    def reaches_goal(self) -> bool:
        """Whether the last event prunes to the final sparsities."""
        if self.events is None:
            return True
        return bool(self.events) and self.events[-1].sparsities == self.goals


@dataclass(frozen=True)
class Span:
    """A modifier between two epochs.

    Attributes:
        modifier: Its name.
        start: First epoch.
        end: Epoch at which it stops; that of the recipe's end where it is left open.
        hardness: Of a distillation modifier, else None.
        temperature: Of a distillation modifier, else None.
        fixed: Epoch from which on the ranges of a quantizing modifier are fixed, None
            for its end and for other modifiers.
        quantizes: Whether it quantizes.
    """

    modifier: str
    start: float
    end: float
    hardness: float | None = None
    temperature: float | None = None
    fixed: float | None = None
    quantizes: bool = False


@dataclass(frozen=True)
class Phase:
    """Epochs in which one set of modifiers is at work.

    Attributes:
        start: First epoch.
        end: Last epoch, where the next phase starts.
        first_rate: Learning rate of its first step; None where no modifier sets it.
        last_rate: Learning rate of its last step.
        events: Pruning events in it.
        sparsities: Latest targets of each pruning modifier at its end; None before
            its first event.
        distillation: The distillation at work.
        others: Further modifiers at work.
    """

    start: float
    end: float
    first_rate: float | None
    last_rate: float | None
    events: int
    sparsities: tuple[tuple[float | None, ...] | None, ...]
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe does when.

    Attributes:
        file: The recipe.
        num_epochs: Epochs of the recipe; None where it sets none.
        steps_per_epoch: Optimizer steps of an epoch, where they are known.
        phases: The recipe from its start to its end.
        pruning: Its pruning modifiers that have a schedule.
        distillation: Its distillation.
        others: Modifiers beside pruning, distillation, learning rate and epochs.
        rates: Epochs and learning rates.
        notes: What will not go as the recipe says.
    """

    file: str
    num_epochs: float | None
    steps_per_epoch: int | None
    phases: tuple[Phase, ...]
    pruning: tuple[PruningPlan, ...]
    distillation: tuple[Span, ...]
    others: tuple[Span, ...]
    rates: tuple[tuple[float, float | None], ...]
    notes: tuple[str, ...]

    @property
    def num_events(self) -> int | None:
        """Pruning events of all modifiers; None where they depend on the steps."""
        counts = [None if p.events is None else len(p.events) for p in self.pruning]
        return None if None in counts else sum(counts)

    @property
    def end(self) -> float:
        """Where the last phase ends."""
        return self.phases[-1].end


def plan_recipe(
    recipe: LoadedRecipe,
    *,
    steps_per_epoch: int | None = None,
    model: nn.Module | None = None,
) -> RecipePlan:
    """Work out what a recipe does when; changes neither recipe nor model."""
    modifiers = [m for group in recipe.groups.values() for m in group]
    copies = copy.deepcopy(modifiers)
    epochs = float(ScheduledModifierManager(modifiers=copies).max_epochs)
    num_epochs = epochs if epochs > 0.0 else None
    if steps_per_epoch is not None:
        check_steps(recipe, steps_per_epoch, num_epochs)
    end = num_epochs or max(0.0, *(m.end_epoch for m in modifiers), 0.0)
    rates = learning_rates(
        _of_kind(modifiers, KINDS.learning_rate), end, steps_per_epoch
    )
    gradual = [m for m in _of_kind(modifiers, KINDS.pruning) if has_schedule(m)]
    pruning = tuple(
        _pruning(m, recipe.settings[id(m)].line, num_epochs, (steps_per_epoch, model))
        for m in gradual
    )
    distilling = _of_kind(modifiers, KINDS.distillation)
    shown = [*gradual, *distilling, *_of_kind(modifiers, KINDS.learning_rate)]
    shown += _of_kind(modifiers, KINDS.epoch)
    distillation = tuple(_span(m, end) for m in distilling)
    others = tuple(_span(m, end) for m in modifiers if m not in shown)
    cuts = _cuts(modifiers, rewinds(rates), end)
    return RecipePlan(
        file=recipe.file,
        num_epochs=num_epochs,
        steps_per_epoch=steps_per_epoch,
        phases=tuple(
            _phase(start, stop, stop == end, rates, pruning, distillation, others)
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ),
        pruning=pruning,
        distillation=distillation,
        others=others,
        rates=tuple(rates),
        notes=(*_notes(pruning, num_epochs), *_straddling(recipe, model)),
    )


def check_steps(
    recipe: LoadedRecipe, steps_per_epoch: int, num_epochs: float | None
) -> None:
    """Check that what a recipe does has the steps."""
    problems = [
        recipe.problem(modifier, fault)
        for group in recipe.groups.values()
        for modifier in group
        for fault in step_faults(modifier, steps_per_epoch, num_epochs)
    ]
    if problems:
        raise RecipeError(problems)


def _straddling(recipe: LoadedRecipe, model: nn.Module | None) -> Iterator[str]:
    """Find Fisher blocks that hold weights of two rows, which is legal."""
    for placed in recipe.placed:
        config = second_order(placed.modifier)
        if model is None or config is None:
            continue
        width = config.fisher_block_size
        found = []
        for target in targets_of(placed.modifier, model):
            row = target.layout(config.pattern).shape[1] * config.pattern.rows
            if row % width:
                found.append((target.name, row))
        if found:
            (name, row), others = found[0], len(found) - 1
            yield (
                f"{type(placed.modifier).__name__} (line {placed.line}): Fisher blocks "
                f"of fisher_block_size={width} straddle the rows of {name} "
                f"({row} weights) and {others} more parameters; legal, since a block is"
                " any run of weights; a divisor of the row keeps to one output"
            )


def _of_kind(modifiers: Sequence[Modifier], kind: Any) -> list[Modifier]:
    return [m for m in modifiers if kind in m.sparsification_types]


def _span(modifier: Any, end: float) -> Span:
    stop = modifier.end_epoch if modifier.end_epoch >= 0.0 else end
    return Span(
        type(modifier).__name__,
        max(0.0, modifier.start_epoch),
        stop,
        getattr(modifier, "hardness", None),
        getattr(modifier, "temperature", None),
        getattr(modifier, "disable_observer_epoch", None),
        KINDS.quantization in modifier.sparsification_types,
    )


def _pruning(
    modifier: Any,
    line: int,
    num_epochs: float | None,
    surroundings: tuple[int | None, nn.Module | None],
) -> PruningPlan:
    steps_per_epoch, model = surroundings
    final = modifier.final_sparsity
    goals = tuple(float(one) for one in (final if isinstance(final, dict) else [final]))
    epochs = event_epochs(modifier, num_epochs, steps_per_epoch)
    config = second_order(modifier)
    num_grads = getattr(modifier, "num_grads", None)
    if isinstance(num_grads, dict):  # SparseML's M-FAC: by sparsity
        num_grads = None
    if config is not None:
        num_grads = config.num_grads * config.num_recomputations
    return PruningPlan(
        modifier=type(modifier).__name__,
        line=line,
        goals=goals,
        events=None if epochs is None else _events(modifier, goals, epochs),
        num_grads=num_grads or 0,
        grad_granularity="" if config is None else config.grad_granularity,
        pools=() if model is None else pool_counts(modifier, model),
        memory=None if model is None else fisher_memory(modifier, model),
    )


def _events(
    modifier: Any, goals: Sequence[float], epochs: Sequence[float]
) -> tuple[Event, ...]:
    start, end = max(0.0, modifier.start_epoch), modifier.end_epoch
    found = []
    for epoch in epochs:
        targets: list[float | None] = []
        for goal in goals:
            init = modifier.init_sparsity
            known = init != FROM_PARAM
            between = interpolate_sparsity(
                epoch, start, end, init if known else goal, goal, modifier.inter_func
            )
            targets.append(between if known or epoch >= end else None)
        found.append(Event(epoch, tuple(targets)))
    return tuple(found)


def _cuts(modifiers: Sequence[Any], turns: Sequence[float], end: float) -> list[float]:
    """Return the epochs at which something begins or ends, and all whole ones."""
    cuts = {0.0, end, *turns, *(float(epoch) for epoch in range(1, int(end) + 1))}
    cuts |= {e for m in modifiers for e in (m.start_epoch, m.end_epoch)}
    fixed = (getattr(m, "disable_observer_epoch", None) for m in modifiers)
    cuts |= {float(epoch) for epoch in fixed if epoch is not None}
    inside = sorted({round(e, 9) for e in cuts if 0.0 <= e <= end})
    return inside if len(inside) > 1 else [0.0, end]


def _phase(
    start: float,
    end: float,
    last: bool,
    rates: Sequence[tuple[float, float | None]],
    pruning: Sequence[PruningPlan],
    distillation: Sequence[Span],
    others: Sequence[Span],
) -> Phase:
    inside = [rate for epoch, rate in rates if start <= epoch < end]
    count = 0
    latest: list[tuple[float | None, ...] | None] = []
    for plan in pruning:
        past = [e for e in plan.events or () if e.epoch < end or last]
        count += sum(event.epoch >= start for event in past)
        latest.append(past[-1].sparsities if past else None)
    at_work = [
        tuple(s for s in spans if s.start <= start and (s.end > start or s.end == end))
        for spans in (distillation, others)
    ]
    return Phase(
        start=start,
        end=end,
        first_rate=inside[0] if inside else None,
        last_rate=inside[-1] if inside else None,
        events=count,
        sparsities=tuple(latest),
        distillation=at_work[0],
        others=at_work[1],
    )


def _notes(pruning: Sequence[PruningPlan], num_epochs: float | None) -> list[str]:
    found = []
    for plan in pruning:
        where = f"{plan.modifier} (line {plan.line})"
        if plan.events is None:
            found.append(
                f"{where} prunes at every step; their number needs the training samples"
            )
        elif not plan.reaches_goal:
            goals = ", ".join(f"{goal:g}" for goal in plan.goals)
            found.append(
                f"{where} does not reach final_sparsity={goals}: the recipe ends at "
                f"epoch {num_epochs:g}, before its last event; expected end_epoch "
                "before the end; lower it or raise the number of epochs"
            )
    return found
