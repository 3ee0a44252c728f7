"""Hold the modifiers of a recipe against each other, without a model."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import ALL, ALL_ENCODER, TOKENS, unwrap
from obert_modifiers.modifiers._teacher import TeacherModifier
from obert_modifiers.modifiers.averaging import WeightAveragingModifier
from obert_modifiers.modifiers.early_stopping import EarlyStoppingModifier
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.modifiers.qat import QATModifier
from obert_modifiers.recipe.placed import (
    KINDS,
    Found,
    Placed,
    gradual_in,
    of_class,
    of_kind,
    patterns_of,
)

if TYPE_CHECKING:
    from torch import nn

_EPOCH_RANGE = "EpochRangeModifier"
_FIXED = "disable_observer_epoch"


def cross_faults(everyone: Sequence[Placed], complete: bool) -> Iterator[Found]:
    """Find modifiers that conflict.

    ``complete`` is False where some could not be built, so that what seems to be
    missing may be among them.
    """
    yield from _same_weights(everyone)
    yield from _quantized_twice(everyone)
    yield from _dropped_late(everyone)
    yield from _other_teachers(everyone)
    yield from _stopped_too_early(everyone)
    yield from _pruned_when_fixed(everyone)
    yield from _after_the_end(everyone)
    if complete:
        yield from _masks_released_early(everyone)
        yield from _nothing_to_distil(everyone)
        yield from _averaged_in_vain(everyone)


def cross_notes(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find what is legal and may not be meant."""
    distillers = of_kind(everyone, KINDS.distillation)
    if distillers and not any(p.teacher for p in distillers):
        note = "names no teacher; it has to come from outside; pass it, as with "
        note += "--distill_teacher, or write teacher: self"
        yield distillers[0], Fault(Rule.NOTE, broken=note)
    for pruner, qat, _ in _pruned_while_quantized(everyone):
        note = f"prunes while {qat.name} quantizes, from epoch {qat.start:g} on; "
        note += "the papers quantize last, with fixed masks"
        yield pruner, Fault(Rule.NOTE, "end_epoch", f"{pruner.end:g}", note)
    last = max((p.end for p in everyone if p.tag == _EPOCH_RANGE), default=math.inf)
    for placed in everyone:
        if _cuts_a_cycle(placed):
            key, at = "cycle_epochs", placed.modifier.cycle_epochs
            note = f"does not divide the {placed.end - placed.start:g} epochs of the "
            note += "modifier: the last cycle is cut off before final_lr"
            yield placed, Fault(Rule.NOTE, key, f"{at:g}", note)
        at = getattr(placed.modifier, _FIXED, None)
        if at is not None and last < math.inf and at >= math.ceil(last):
            note = f"is not reached: the recipe ends at epoch {last:g}; ranges are "
            note += "fixed there, without training after it"
            yield placed, Fault(Rule.NOTE, _FIXED, f"{at:g}", note)
    for first, late in combinations(everyone, 2):
        if isinstance(late.modifier, LayerDropModifier) and late.stage != first.stage:
            note = "drops layers before all training, that of the stages above it too; "
            note += "to train the whole model first, run that stage alone"
            yield late, Fault(Rule.NOTE, "keep", broken=note)
            return


def shared_weights(everyone: Sequence[Placed], model: nn.Module) -> Iterator[Found]:
    """Find weights of a model that two modifiers prune at the same time."""
    names = [name for name, _ in unwrap(model).named_parameters()]
    for one, two in _at_the_same_time(everyone):
        if not all(isinstance(p.modifier, GradualPruningModifier) for p in (one, two)):
            continue
        mine, others = (p.modifier.resolve_targets(model) for p in (one, two))
        both = [name for name in names if name in {*mine} & {*others}]
        if both and _shared_pattern(one, two) is None:  # else found at loading
            yield _twice(one, two, f"{both[0]} ({len(both)} in all)")


def _at_the_same_time(everyone: Sequence[Placed]) -> Iterator[tuple[Placed, Placed]]:
    """Pair the gradual pruning modifiers that overlap, in the order of the recipe.

    One may begin where the other ends.
    """
    for pair in combinations(gradual_in(everyone), 2):
        first, second = sorted(pair, key=lambda p: p.start)
        if first.start == second.start or second.start < first.end:
            yield pair


def _same_weights(everyone: Sequence[Placed]) -> Iterator[Found]:
    for one, two in _at_the_same_time(everyone):
        if one.modifier.identifier() == two.modifier.identifier():
            continue  # reported as a repetition
        pattern = _shared_pattern(one, two)
        if pattern is not None:
            yield _twice(one, two, pattern)


def _twice(one: Placed, two: Placed, what: str) -> Found:
    wrong = f"params={what} is pruned by {one.name} at the same time, from epoch "
    wrong += f"{one.start:g} to {one.end:g}; expected one at a time; name other "
    wrong += "parameters, or begin where the other ends"
    in_mapping = isinstance(two.modifier.final_sparsity, dict)
    key = "final_sparsity" if in_mapping else "params"
    return two, Fault(Rule.CONFLICT, key, broken=wrong)


def _shared_pattern(one: Placed, two: Placed) -> str | None:
    """Return a pattern of the second that meets one of the first in every model."""
    others, mine = (
        [pattern for _, pattern in patterns_of(p.modifier)] or [ALL_ENCODER]
        for p in (one, two)
    )
    meet = (p for p in mine if any(_surely_meet(p, other) for other in others))
    return next(meet, None)


def _surely_meet(one: str, two: str) -> bool:
    tokens = [pattern for pattern in (one, two) if pattern.upper() in TOKENS]
    if one == two or len(tokens) == 2 or ALL in (one.upper(), two.upper()):
        return True
    if tokens or one.startswith("re:") == two.startswith("re:"):
        return False
    pattern, name = (one, two) if one.startswith("re:") else (two, one)
    return re.match(pattern[len("re:") :], name) is not None


def _quantized_twice(everyone: Sequence[Placed]) -> Iterator[Found]:
    quantizers = of_kind(everyone, KINDS.quantization)
    for late in quantizers[1:]:
        first = quantizers[0]
        if any(isinstance(p.modifier, QATModifier) for p in (first, late)):
            wrong = f"the model is quantized by {first.name} already; expected one "
            wrong += "modifier that quantizes; remove one of the two"
            yield late, Fault(Rule.CONFLICT, broken=wrong)


def _dropped_late(everyone: Sequence[Placed]) -> Iterator[Found]:
    drops = of_class(everyone, LayerDropModifier)
    for one, two in combinations(drops, 2):
        if one.stage == two.stage:
            wrong = f"drops layers after {one.name} did; expected one LayerDropModifier"
            wrong += " in a stage; write what is to be left in one"
            yield two, Fault(Rule.CONFLICT, "keep", str(two.modifier.keep), wrong)
    for drop in drops:
        changing = {KINDS.pruning, KINDS.quantization}
        above = [p for p in everyone[: everyone.index(drop)] if p.stage != drop.stage]
        before = [p for p in above if changing & {*p.modifier.sparsification_types}]
        if before:
            wrong = (
                f"drops layers before all training, but stands after {before[0].name}"
            )
            wrong += (
                "; expected no pruning or quantization before; move it to the first"
            )
            wrong += " stage"
            yield drop, Fault(Rule.CONFLICT, "keep", str(drop.modifier.keep), wrong)


def _other_teachers(everyone: Sequence[Placed]) -> Iterator[Found]:
    distillers = of_kind(everyone, KINDS.distillation)
    named = next((p.teacher for p in distillers if p.teacher), None)
    for placed in distillers:
        if placed.teacher is not None and placed.teacher != named:
            wrong = f"is not the {named} of another modifier; expected one teacher in a"
            wrong += " recipe; write the same or distil in a run of its own"
            yield placed, Fault(Rule.CONFLICT, "teacher", placed.teacher, wrong)


def _cuts_a_cycle(placed: Placed) -> bool:
    """Tell whether a learning rate ends in the middle of a cycle."""
    cycle = getattr(placed.modifier, "cycle_epochs", None)
    if getattr(placed.modifier, "lr_func", "") != "cyclic_linear" or not cycle:
        return False
    if placed.end == math.inf:
        return False
    return abs(math.remainder(placed.end - placed.start, cycle)) > 1e-6 * cycle


def _pruned_while_quantized(
    everyone: Sequence[Placed],
) -> Iterator[tuple[Placed, Placed, float]]:
    for pruner in gradual_in(everyone):
        for qat in of_kind(everyone, KINDS.quantization):
            if qat.start < pruner.end < math.inf:
                fixed = getattr(qat.modifier, _FIXED, None)
                yield pruner, qat, qat.end if fixed is None else fixed


def _pruned_when_fixed(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find pruning events after the ranges of activations were fixed."""
    for pruner, qat, fixed in _pruned_while_quantized(everyone):
        if pruner.end > fixed:
            wrong = (
                f"prunes after {qat.name} has fixed its ranges, at epoch {fixed:g}; "
            )
            wrong += (
                f"expected fixed masks; lower it to {qat.start:g} or quantize later"
            )
            yield pruner, Fault(Rule.CONFLICT, "end_epoch", f"{pruner.end:g}", wrong)


def _after_the_end(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find what would come after the end that EpochRangeModifier sets."""
    ranges = [p for p in everyone if p.tag == _EPOCH_RANGE]
    gradual = gradual_in(everyone)
    whole = max((math.ceil(p.end) for p in everyone if p.end < math.inf), default=0)
    for placed in everyone:
        own = [r for r in ranges if r.stage == placed.stage]
        last = max(own, key=lambda p: p.end, default=None)
        if last is None or placed in ranges or math.isinf(last.end):
            continue
        # SparseML trains whole epochs, and what begins in a stage may go on in others.
        others = [p.end for p in everyone if p.stage != placed.stage]
        end = math.ceil(max([last.end, *(e for e in others if e < math.inf)]))
        key, at = "end_epoch", placed.end
        if placed.start >= end > 0:
            key, at = "start_epoch", placed.start
            wrong = f"is not reached: {last.name} ends at epoch {last.end:g}"
        elif end < at < math.inf:
            wrong = f"lies after the end of {last.name}, epoch {last.end:g}"
        elif placed in gradual and at == end == whole > 0:
            wrong = (
                f"has its last pruning event where {last.name} ends, after all steps"
            )
        else:
            continue
        wrong += "; expected an earlier epoch; lower it or raise end_epoch there"
        yield placed, Fault(Rule.RECIPE_END, key, f"{at:g}", wrong)


def _masks_released_early(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find masks that are dropped while training goes on."""
    pruners = of_kind(everyone, KINDS.pruning)
    for placed in pruners:
        if getattr(placed.modifier, "leave_enabled", True):
            continue
        end = placed.end
        after = [p for p in everyone if p is not placed and end < p.end]
        goes_on = [p for p in after if p.end < math.inf or end <= p.start]
        held = any(
            p.start <= end
            and (end < p.end or getattr(p.modifier, "leave_enabled", False))
            for p in pruners
            if p is not placed
        )
        if goes_on and not held:
            key, value, fix = "leave_enabled", "false", "true"
            if key not in inspect.signature(type(placed.modifier)).parameters:
                key, value, fix = "end_epoch", f"{end:g}", "-1"  # it never leaves them
            wrong = f"lets go of the masks at epoch {end:g}, before {goes_on[0].name} "
            wrong += "ends; expected masks until the end, or pruned weights grow back; "
            wrong += f"write {key}: {fix}"
            yield placed, Fault(Rule.CONFLICT, key, value, wrong)


def _nothing_to_distil(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find Fishers of a distillation loss that nobody computes."""
    distillers = of_class(everyone, TeacherModifier)
    for placed in gradual_in(everyone):
        loss = getattr(placed.modifier, "fisher_loss", "task")
        if loss == "task":
            continue
        if not distillers:
            wrong = "finds no distillation modifier; expected one that gives the "
            wrong += "loss; add it or write fisher_loss: task"
        elif loss == "distillation" and not any(
            d.start <= placed.start and placed.end < d.end for d in distillers
        ):
            first = distillers[0]
            wrong = f"is computed from epoch {first.start:g} to {first.end:g} only, by "
            wrong += (
                f"{first.name}; expected it at every event; write fisher_loss: train"
            )
        else:
            continue
        yield placed, Fault(Rule.NEEDS, "fisher_loss", loss, wrong)


def _stopped_too_early(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find a second early stopping, or one before the model is compressed."""
    stoppers = of_class(everyone, EarlyStoppingModifier)
    for again in stoppers[1:]:
        wrong = "is that of a second EarlyStoppingModifier; expected one in a recipe; "
        metric = again.modifier.metric
        yield again, Fault(Rule.CONFLICT, "metric", metric, f"{wrong}remove one")
    last, name = _last_change(everyone)
    for stopper in stoppers:
        start = stopper.modifier.start_epoch
        if last > 0.0 and start <= last:
            wrong = f"does not lie after epoch {last:g}, at which {name} last changes "
            wrong += "the model; expected a later epoch, as the best weights from "
            wrong += f"before would undo it; write {last + 1:g}"
            yield stopper, Fault(Rule.CONFLICT, "start_epoch", f"{start:g}", wrong)


def _last_change(everyone: Sequence[Placed]) -> tuple[float, str]:
    """Find the last pruning event or the begin of quantization, and what does it."""
    gradual, quantizing = gradual_in(everyone), of_kind(everyone, KINDS.quantization)
    changes = [(max(p.start, p.modifier.end_epoch), p.tag) for p in gradual]
    changes += [(p.modifier.start_epoch, p.tag) for p in quantizing]
    return max(changes, default=(0.0, ""))


def _averaged_in_vain(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find averages of weights on other masks, or that nothing would use."""
    averages = of_class(everyone, WeightAveragingModifier)
    for again in averages[1:]:
        wrong = "is a second WeightAveragingModifier; expected one in a recipe; remove "
        yield again, Fault(Rule.CONFLICT, broken=f"{wrong}one")
    last, name = _last_change(everyone)
    ends = [math.ceil(e) for p in everyone for e in (p.start, p.end) if e < math.inf]
    length = max(ends, default=0)  # as the host has it
    for placed in averages:
        start = placed.start
        where = "start_epoch", f"{start:g}"
        if start < last:
            wrong = f"lies before epoch {last:g}, at which {name} last changes the "
            wrong += "model; expected fixed masks, as other states cannot be averaged; "
            yield placed, Fault(Rule.CONFLICT, *where, f"{wrong}write {last:g}")
        elif 0 < length <= start and all(p.tag != _EPOCH_RANGE for p in everyone):
            wrong = "is where the recipe ends, so that nothing is averaged; expected "
            wrong += "an earlier epoch; lower it or add EpochRangeModifier"
            yield placed, Fault(Rule.RECIPE_END, *where, wrong)
        for stopper in of_class(everyone, EarlyStoppingModifier):
            if stopper.modifier.restore_best:
                wrong = "goes back to the weights of an evaluation, so that the average"
                wrong += f" of {placed.name} is lost; expected one of the two; write "
                where = "restore_best", "true", f"{wrong}restore_best: false"
                yield stopper, Fault(Rule.CONFLICT, *where)
