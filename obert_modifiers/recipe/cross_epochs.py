"""What a recipe's epochs make of its modifiers: ends, teachers, masks."""

import inspect
import math
from collections.abc import Iterator, Sequence

from obert_modifiers.modifiers.distillation import LogitDistillationModifier
from obert_modifiers.recipe.placed import (
    EPOCH_RANGE,
    KINDS,
    Fault,
    Placed,
    gradual_in,
    kinds_of,
    quantizing_in,
    teacher_of,
)


def after_the_end(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find what would come after the end that EpochRangeModifier sets.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
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
            wrong = f"is not reached: {last.name} ends at epoch {last.end:g}; expected"
            wrong += " an earlier epoch"
        elif end < at < math.inf:
            wrong = f"lies after the end of {last.name}, epoch {last.end:g}; expected"
            wrong += " nothing to last longer"
        elif placed in gradual_in(everyone) and at == end == whole > 0:
            wrong = f"has its last pruning event where {last.name} ends, and no step is"
            wrong += " made there; expected an earlier epoch, so that final_sparsity is"
            wrong += " reached"
        else:
            continue
        fix = "lower it or raise end_epoch there"
        yield placed.modifier, key, f"{key}={at:g} {wrong}; {fix}"


def other_teachers(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find distillation modifiers that name another teacher than the first.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    distillers = [p for p in everyone if KINDS.distillation in kinds_of(p)]
    named = next((t for p in distillers if (t := teacher_of(p))), None)
    for placed in distillers:
        own = teacher_of(placed)
        if own is not None and own != named:
            yield (
                placed.modifier,
                "teacher",
                f"teacher={own} is not the {named} of another modifier; expected one "
                "teacher in a recipe; write the same or distil in a run of its own",
            )


def masks_let_go(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find masks that are dropped while training goes on.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    pruners = [p for p in everyone if KINDS.pruning in kinds_of(p)]
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
                key,
                f"{key}={value} lets go of the masks at epoch {placed.end:g}, "
                f"while training goes on with {goes_on[0].name}; expected masks until "
                f"the end, or pruned weights grow back; write {key}: {fix}",
            )


def _keeps_on(holder: Placed, placed: Placed) -> bool:
    stays = getattr(holder.modifier, "leave_enabled", False)
    return bool(stays) and holder.start <= placed.end


def nothing_to_distil(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find Fishers of a distillation loss that nobody computes.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    distillers = [
        p for p in everyone if isinstance(p.modifier, LogitDistillationModifier)
    ]
    for placed in gradual_in(everyone):
        loss = getattr(placed.modifier, "fisher_loss", "task")
        if loss == "task":
            continue
        if not distillers:
            yield (
                placed.modifier,
                "fisher_loss",
                f"fisher_loss={loss} finds no LogitDistillationModifier in the recipe; "
                "expected one that gives the loss; add it or write fisher_loss: task",
            )
        elif loss == "distillation" and not any(
            d.start <= placed.start and placed.end < d.end for d in distillers
        ):
            yield (
                placed.modifier,
                "fisher_loss",
                "fisher_loss=distillation prunes at epochs at which no modifier "
                f"distils ({distillers[0].name}: from {distillers[0].start:g} to "
                f"{distillers[0].end:g}); expected a teacher at every pruning event; "
                "write fisher_loss: train",
            )


def cut_cycle(placed: Placed) -> Iterator[Fault]:
    """Find a learning rate that ends in the middle of a cycle.

    Args:
        placed: A modifier.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    modifier = placed.modifier
    cycle = getattr(modifier, "cycle_epochs", None)
    if getattr(modifier, "lr_func", "") != "cyclic_linear" or not cycle:
        return
    rest = math.remainder(placed.end - placed.start, cycle)
    if math.isfinite(placed.end) and abs(rest) > 1e-6 * cycle:
        yield (
            modifier,
            "cycle_epochs",
            f"cycle_epochs={cycle:g} does not divide the {placed.end - placed.start:g} "
            "epochs of the modifier: the last cycle is cut off before final_lr",
        )


def never_fixed(placed: Placed, everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find ranges that are to be fixed when the recipe is over.

    Args:
        placed: A modifier.
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    at = getattr(placed.modifier, "disable_observer_epoch", None)
    ends = [p.end for p in everyone if type(p.modifier).__name__ == EPOCH_RANGE]
    if at is not None and ends and at >= math.ceil(max(ends)):
        yield (
            placed.modifier,
            "disable_observer_epoch",
            f"disable_observer_epoch={at:g} is not reached: the recipe ends at epoch "
            f"{max(ends):g}; ranges are fixed there, without training after it",
        )


def pruned_when_fixed(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find pruning events after the ranges of activations were fixed.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    for pruner, qat, fixed in _pruned_while_quantized(everyone):
        if pruner.end > fixed:
            yield (
                pruner.modifier,
                "end_epoch",
                f"end_epoch={pruner.end:g} prunes after {qat.name} has fixed its ranges"
                f", at epoch {fixed:g}; expected masks that are fixed by then; lower "
                f"end_epoch to {qat.start:g} or quantize later",
            )


def pruned_when_quantized(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find pruning events while ranges still move, which is legal.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what to know.
    """
    for pruner, qat, _ in _pruned_while_quantized(everyone):
        yield (
            pruner.modifier,
            "end_epoch",
            f"end_epoch={pruner.end:g} prunes while {qat.name} quantizes, from epoch "
            f"{qat.start:g} on; the papers quantize last, with fixed masks",
        )


def _pruned_while_quantized(
    everyone: Sequence[Placed],
) -> Iterator[tuple[Placed, Placed, float]]:
    for pruner in gradual_in(everyone):
        for qat in quantizing_in(everyone):
            if qat.start < pruner.end < math.inf:
                fixed = getattr(qat.modifier, "disable_observer_epoch", None)
                yield pruner, qat, qat.end if fixed is None else fixed
