"""What a recipe's epochs make of its modifiers: ends, teachers, masks, best weights."""

import inspect
import math
from collections.abc import Iterator, Sequence

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers.distillation import LogitDistillationModifier
from obert_modifiers.modifiers.early_stopping import EarlyStoppingModifier
from obert_modifiers.recipe.placed import (
    EPOCH_RANGE,
    KINDS,
    Found,
    Placed,
    gradual_in,
    of_kind,
)


def after_the_end(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find what would come after the end that EpochRangeModifier sets."""
    ranges = [p for p in everyone if type(p.modifier).__name__ == EPOCH_RANGE]
    whole = max((math.ceil(p.end) for p in everyone if p.end < math.inf), default=0)
    for placed in everyone:
        own = [r for r in ranges if r.stage == placed.stage and r is not placed]
        last = max(own, key=lambda p: p.end, default=None)
        if last is None or placed in ranges or math.isinf(last.end):
            continue
        # SparseML trains whole epochs, and what begins in a stage may go on in others.
        others = [p.end for p in everyone if p.stage != placed.stage]
        end = math.ceil(max([last.end, *(e for e in others if e < math.inf)]))
        key, at = "end_epoch", placed.end
        if placed.start >= end > 0:
            key, at = "start_epoch", placed.start
            broken = f"is not reached: {last.name} ends at epoch {last.end:g}"
            expected = "an earlier epoch"
        elif end < at < math.inf:
            broken = f"lies after the end of {last.name}, epoch {last.end:g}"
            expected = "nothing to last longer"
        elif placed in gradual_in(everyone) and at == end == whole > 0:
            broken = f"has its last pruning event where {last.name} ends, and no step "
            broken += "is made there"
            expected = "an earlier epoch, so that final_sparsity is reached"
        else:
            continue
        fix = "lower it or raise end_epoch there"
        where = Rule.RECIPE_END, key, f"{at:g}"
        yield placed.modifier, Fault.of(*where, broken, expected, fix)


def other_teachers(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find distillation modifiers that name another teacher than the first."""
    distillers = of_kind(everyone, KINDS.distillation)
    named = next((p.teacher for p in distillers if p.teacher), None)
    for placed in distillers:
        if placed.teacher is not None and placed.teacher != named:
            yield (
                placed.modifier,
                Fault.of(
                    Rule.CONFLICT,
                    "teacher",
                    placed.teacher,
                    f"is not the {named} of another modifier",
                    "one teacher in a recipe",
                    "write the same or distil in a run of its own",
                ),
            )


def masks_released_early(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find masks that are dropped while training goes on."""
    pruners = of_kind(everyone, KINDS.pruning)
    for placed in pruners:
        if getattr(placed.modifier, "leave_enabled", True):
            continue
        goes_on = [p for p in everyone if placed.end < p.end and p is not placed]
        goes_on = [p for p in goes_on if p.end < math.inf or p.start >= placed.end]
        held = any(
            p.start <= placed.end < p.end or _keeps_on(p, placed)
            for p in pruners
            if p is not placed
        )
        if goes_on and not held:
            keys = inspect.signature(type(placed.modifier)).parameters
            key, value, fix = "leave_enabled", "false", "true"
            if key not in keys:  # such a modifier never leaves them
                key, value, fix = "end_epoch", f"{placed.end:g}", "-1"
            yield (
                placed.modifier,
                Fault.of(
                    Rule.CONFLICT,
                    key,
                    value,
                    f"lets go of the masks at epoch {placed.end:g}, while training "
                    f"goes on with {goes_on[0].name}",
                    "masks until the end, or pruned weights grow back",
                    f"write {key}: {fix}",
                ),
            )


def _keeps_on(holder: Placed, placed: Placed) -> bool:
    stays = getattr(holder.modifier, "leave_enabled", False)
    return bool(stays) and holder.start <= placed.end


def nothing_to_distil(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find Fishers of a distillation loss that nobody computes."""
    distillers = [
        p for p in everyone if isinstance(p.modifier, LogitDistillationModifier)
    ]
    for placed in gradual_in(everyone):
        loss = getattr(placed.modifier, "fisher_loss", "task")
        if loss == "task":
            continue
        if not distillers:
            broken = "finds no LogitDistillationModifier in the recipe"
            expected = "one that gives the loss"
            fix = "add it or write fisher_loss: task"
        elif loss == "distillation" and not any(
            d.start <= placed.start and placed.end < d.end for d in distillers
        ):
            first = distillers[0]
            broken = "prunes at epochs at which no modifier distils "
            broken += f"({first.name}: from {first.start:g} to {first.end:g})"
            expected = "a teacher at every pruning event"
            fix = "write fisher_loss: train"
        else:
            continue
        fault = Fault.of(Rule.NEEDS, "fisher_loss", loss, broken, expected, fix)
        yield placed.modifier, fault


def stopped_too_early(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find early stopping that would end a recipe before it has compressed the model.

    Or a second one.
    """
    found = [p.modifier for p in everyone]
    stoppers = [m for m in found if isinstance(m, EarlyStoppingModifier)]
    for again in stoppers[1:]:
        yield (
            again,
            Fault.of(
                Rule.CONFLICT,
                "metric",
                again.metric,
                "is that of a second EarlyStoppingModifier",
                "one in a recipe",
                "remove one",
            ),
        )
    gradual = gradual_in(everyone)
    # The last pruning event, or where quantization begins.
    changes = [(max(p.modifier.start_epoch, p.modifier.end_epoch), p) for p in gradual]
    quantizing = of_kind(everyone, KINDS.quantization)
    changes += [(p.modifier.start_epoch, p) for p in quantizing]
    named = [(at, type(p.modifier).__name__) for at, p in changes]
    last, name = max(named, default=(0.0, ""))
    for stopper in stoppers:
        if last > 0.0 and stopper.start_epoch <= last:
            yield (
                stopper,
                Fault.of(
                    Rule.CONFLICT,
                    "start_epoch",
                    f"{stopper.start_epoch:g}",
                    f"does not lie after epoch {last:g}, at which {name} changes the "
                    "model for the last time",
                    "a later epoch, as the best weights from before would undo it",
                    f"write {last + 1:g}",
                ),
            )


def cut_cycle(placed: Placed) -> Iterator[Found]:
    """Find a learning rate that ends in the middle of a cycle, which is legal."""
    modifier = placed.modifier
    cycle = getattr(modifier, "cycle_epochs", None)
    if getattr(modifier, "lr_func", "") != "cyclic_linear" or not cycle:
        return
    length = placed.end - placed.start
    rest = math.remainder(length, cycle)
    if math.isfinite(placed.end) and abs(rest) > 1e-6 * cycle:
        broken = f"does not divide the {length:g} epochs of the modifier: the last "
        broken += "cycle is cut off before final_lr"
        yield modifier, Fault(Rule.NOTE, "cycle_epochs", f"{cycle:g}", broken)


def never_fixed(placed: Placed, everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find ranges that are to be fixed when the recipe is over, which is legal."""
    key = "disable_observer_epoch"
    at = getattr(placed.modifier, key, None)
    ends = [p.end for p in everyone if type(p.modifier).__name__ == EPOCH_RANGE]
    if at is not None and ends and at >= math.ceil(max(ends)):
        broken = f"is not reached: the recipe ends at epoch {max(ends):g}"
        fix = "ranges are fixed there, without training after it"
        yield placed.modifier, Fault(Rule.NOTE, key, f"{at:g}", broken, fix=fix)


def pruned_when_fixed(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find pruning events after the ranges of activations were fixed."""
    for pruner, qat, fixed in _pruned_while_quantized(everyone):
        if pruner.end > fixed:
            yield (
                pruner.modifier,
                Fault.of(
                    Rule.CONFLICT,
                    "end_epoch",
                    f"{pruner.end:g}",
                    f"prunes after {qat.name} has fixed its ranges, at epoch {fixed:g}",
                    "masks that are fixed by then",
                    f"lower end_epoch to {qat.start:g} or quantize later",
                ),
            )


def pruned_when_quantized(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find pruning events while ranges still move, which is legal."""
    for pruner, qat, _ in _pruned_while_quantized(everyone):
        broken = f"prunes while {qat.name} quantizes, from epoch {qat.start:g} on"
        fix = "the papers quantize last, with fixed masks"
        fault = Fault(Rule.NOTE, "end_epoch", f"{pruner.end:g}", broken, fix=fix)
        yield pruner.modifier, fault


def _pruned_while_quantized(
    everyone: Sequence[Placed],
) -> Iterator[tuple[Placed, Placed, float]]:
    for pruner in gradual_in(everyone):
        for qat in of_kind(everyone, KINDS.quantization):
            if qat.start < pruner.end < math.inf:
                fixed = getattr(qat.modifier, "disable_observer_epoch", None)
                yield pruner, qat, qat.end if fixed is None else fixed
