"""Hold the modifiers of a recipe against each other, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import ALL, ALL_ENCODER, TOKENS, unwrap
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.modifiers.qat import QATModifier
from obert_modifiers.recipe.cross_epochs import (
    after_the_end,
    cut_cycle,
    masks_released_early,
    never_fixed,
    nothing_to_distil,
    other_teachers,
    pruned_when_fixed,
    pruned_when_quantized,
    stopped_too_early,
)
from obert_modifiers.recipe.placed import (
    KINDS,
    Found,
    Placed,
    gradual_in,
    of_kind,
)

if TYPE_CHECKING:
    from torch import nn


def cross_faults(everyone: Sequence[Placed], complete: bool) -> Iterator[Found]:
    """Find modifiers that conflict.

    ``complete`` is False where some could not be built, so that what seems to be
    missing may be among them.
    """
    yield from stopped_too_early(everyone)
    yield from _same_weights(everyone)
    yield from _quantized_twice(everyone)
    yield from _dropped_late(everyone)
    yield from pruned_when_fixed(everyone)
    yield from after_the_end(everyone)
    yield from other_teachers(everyone)
    if complete:
        yield from masks_released_early(everyone)
        yield from nothing_to_distil(everyone)


def cross_notes(everyone: Sequence[Placed]) -> Iterator[Found]:
    """Find what is legal and may not be meant."""
    distillers = of_kind(everyone, KINDS.distillation)
    if distillers and not any(p.teacher for p in distillers):
        broken = "names no teacher; it has to come from outside"
        fix = "pass it, as with --distill_teacher, or write teacher: self"
        yield distillers[0].modifier, Fault(Rule.NOTE, broken=broken, fix=fix)
    yield from pruned_when_quantized(everyone)
    for one in everyone:
        yield from cut_cycle(one)
        yield from never_fixed(one, everyone)
    for first, late in combinations(everyone, 2):
        if isinstance(late.modifier, LayerDropModifier) and late.stage != first.stage:
            broken = "drops layers before all training, that of the stages above it too"
            fix = "to train the whole model first, run that stage alone"
            yield late.modifier, Fault(Rule.NOTE, "keep", broken=broken, fix=fix)
            return


def shared_weights(everyone: Sequence[Placed], model: nn.Module) -> Iterator[Found]:
    """Find weights of a model that two modifiers prune at the same time."""
    names = [name for name, _ in unwrap(model).named_parameters()]
    for one, two in _together(everyone):
        if not all(isinstance(p.modifier, GradualPruningModifier) for p in (one, two)):
            continue
        mine, others = (p.modifier.resolve_targets(model) for p in (one, two))
        both = [name for name in names if name in {*mine} & {*others}]
        if both and _shared_pattern(one, two) is None:  # else found at loading
            yield _twice(one, two, f"{both[0]} ({len(both)} in all)")


def _together(everyone: Sequence[Placed]) -> Iterator[tuple[Placed, Placed]]:
    """Pair the gradual pruning modifiers that are at work at the same time.

    One may begin where the other ends.

    Yields:
        Two modifiers, in the order of the recipe.
    """
    for pair in combinations(gradual_in(everyone), 2):
        first, second = sorted(pair, key=lambda p: p.start)
        if first.start == second.start or second.start < first.end:
            yield pair


def _same_weights(everyone: Sequence[Placed]) -> Iterator[Found]:
    for one, two in _together(everyone):
        if one.modifier.identifier() == two.modifier.identifier():
            continue  # reported as a repetition
        pattern = _shared_pattern(one, two)
        if pattern is not None:
            yield _twice(one, two, pattern)


def _twice(one: Placed, two: Placed, what: str) -> Found:
    in_mapping = isinstance(two.modifier.final_sparsity, dict)
    fault = Fault(
        Rule.CONFLICT,
        "final_sparsity" if in_mapping else "params",
        broken=f"params={what} is pruned by {one.name} at the same time, from epoch "
        f"{one.start:g} to {one.end:g}",
        expected="one pruning modifier for a weight at a time",
        fix="name other parameters, or begin where the other ends",
    )
    return two.modifier, fault


def _shared_pattern(one: Placed, two: Placed) -> str | None:
    for mine in _patterns(two.modifier):
        for other in _patterns(one.modifier):
            if _surely_meet(mine, other):
                return mine
    return None


def _patterns(modifier: Any) -> list[str]:
    goals = modifier.final_sparsity
    if isinstance(goals, dict):
        return [str(one) for names in goals.values() for one in names]
    params = getattr(modifier, "params", None) or ALL_ENCODER
    return [params] if isinstance(params, str) else [str(one) for one in params]


def _surely_meet(one: str, two: str) -> bool:
    # In every model that has parameters for both.
    tokens = [pattern for pattern in (one, two) if pattern.upper() in TOKENS]
    if one == two or len(tokens) == 2 or ALL in (one.upper(), two.upper()):
        return True
    if tokens or one.startswith("re:") == two.startswith("re:"):
        return False
    pattern, name = (one, two) if one.startswith("re:") else (two, one)
    return re.match(pattern[len("re:") :], name) is not None


def _quantized_twice(everyone: Sequence[Placed]) -> Iterator[Found]:
    found = of_kind(everyone, KINDS.quantization)
    for placed in found[1:]:
        if any(isinstance(p.modifier, QATModifier) for p in (found[0], placed)):
            fault = Fault(
                Rule.CONFLICT,
                broken=f"the model is quantized by {found[0].name} already",
                expected="one modifier that quantizes",
                fix="remove one of the two",
            )
            yield placed.modifier, fault


def _dropped_late(everyone: Sequence[Placed]) -> Iterator[Found]:
    drops = [p for p in everyone if isinstance(p.modifier, LayerDropModifier)]
    for one, two in combinations(drops, 2):
        if one.stage == two.stage:
            broken = f"drops layers after {one.name} did"
            expected = "one LayerDropModifier in a stage"
            yield _keep(two, broken, expected, "write what is to be left in one")
    for drop in drops:
        above = everyone[: everyone.index(drop)]
        above = [p for p in above if p.stage != drop.stage]
        before = of_kind(above, KINDS.pruning) + of_kind(above, KINDS.quantization)
        if before:
            first = min(before, key=everyone.index)
            broken = "drops layers before all training, but stands in a stage after "
            expected = "layers to be dropped before weights are pruned or quantized"
            fix = "move it to the first stage"
            yield _keep(drop, broken + first.name, expected, fix)


def _keep(drop: Placed, broken: str, expected: str, fix: str) -> Found:
    keep = drop.modifier.keep
    return drop.modifier, Fault.of(Rule.CONFLICT, "keep", keep, broken, expected, fix)
