"""Hold the modifiers of a recipe against each other, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import ALL, ALL_ENCODER, TOKENS, unwrap
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.modifiers.qat import QATModifier
from obert_modifiers.recipe.cross_epochs import epoch_faults, epoch_notes
from obert_modifiers.recipe.placed import (
    KINDS,
    Found,
    Placed,
    gradual_in,
    of_kind,
    patterns_of,
)

if TYPE_CHECKING:
    from torch import nn


def cross_faults(everyone: Sequence[Placed], complete: bool) -> Iterator[Found]:
    """Find modifiers that conflict.

    ``complete`` is False where some could not be built, so that what seems to be
    missing may be among them.
    """
    yield from _same_weights(everyone)
    yield from _quantized_twice(everyone)
    yield from _dropped_late(everyone)
    yield from _other_teachers(everyone)
    yield from epoch_faults(everyone, complete)


def cross_notes(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find what is legal and may not be meant."""
    distillers = of_kind(everyone, KINDS.distillation)
    if distillers and not any(p.teacher for p in distillers):
        note = "names no teacher; it has to come from outside; pass it, as with "
        note += "--distill_teacher, or write teacher: self"
        yield distillers[0], Fault(Rule.NOTE, broken=note)
    yield from epoch_notes(everyone)
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
    in_mapping = isinstance(two.modifier.final_sparsity, dict)
    wrong = f"params={what} is pruned by {one.name} at the same time, from epoch "
    wrong += f"{one.start:g} to {one.end:g}; expected one pruning modifier for a weight"
    wrong += " at a time; name other parameters, or begin where the other ends"
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
    drops = [p for p in everyone if isinstance(p.modifier, LayerDropModifier)]
    for one, two in combinations(drops, 2):
        if one.stage == two.stage:
            wrong = f"drops layers after {one.name} did; expected one LayerDropModifier"
            wrong += " in a stage; write what is to be left in one"
            yield two, Fault(Rule.CONFLICT, "keep", str(two.modifier.keep), wrong)
    for drop in drops:
        above = everyone[: everyone.index(drop)]
        changing = {KINDS.pruning, KINDS.quantization}
        before = [
            p
            for p in above
            if p.stage != drop.stage and changing & {*p.modifier.sparsification_types}
        ]
        if before:
            wrong = "drops layers before all training, but stands in a stage after "
            wrong += f"{before[0].name}; expected layers to be dropped before weights "
            wrong += "are pruned or quantized; move it to the first stage"
            yield drop, Fault(Rule.CONFLICT, "keep", str(drop.modifier.keep), wrong)


def _other_teachers(everyone: Sequence[Placed]) -> Iterator[Found]:
    distillers = of_kind(everyone, KINDS.distillation)
    named = next((p.teacher for p in distillers if p.teacher), None)
    for placed in distillers:
        if placed.teacher is not None and placed.teacher != named:
            wrong = f"is not the {named} of another modifier; expected one teacher in a"
            wrong += " recipe; write the same or distil in a run of its own"
            yield placed, Fault(Rule.CONFLICT, "teacher", placed.teacher, wrong)
