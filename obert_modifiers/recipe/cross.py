"""Hold the modifiers of a recipe against each other, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from obert_modifiers.modifiers import LayerDropModifier, QATModifier
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._targets import ALL, ALL_ENCODER, TOKENS, unwrap
from obert_modifiers.recipe.cross_epochs import (
    after_the_end,
    cut_cycle,
    masks_let_go,
    never_fixed,
    nothing_to_distil,
    other_teachers,
    pruned_when_fixed,
    pruned_when_quantized,
)
from obert_modifiers.recipe.placed import (
    KINDS,
    Fault,
    Placed,
    gradual_in,
    kinds_of,
    quantizing_in,
    teacher_of,
)

if TYPE_CHECKING:
    from torch import nn


def cross_faults(everyone: Sequence[Placed], complete: bool) -> Iterator[Fault]:
    """Find modifiers that go against each other.

    Args:
        everyone: The modifiers in the order of the recipe.
        complete: False where some could not be built, so that what seems to be
            missing may be among them.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
    yield from _same_weights(everyone)
    yield from _quantized_twice(everyone)
    yield from _dropped_late(everyone)
    yield from pruned_when_fixed(everyone)
    yield from after_the_end(everyone)
    yield from other_teachers(everyone)
    if complete:
        yield from masks_let_go(everyone)
        yield from nothing_to_distil(everyone)


def cross_notes(everyone: Sequence[Placed]) -> Iterator[Fault]:
    """Find what is legal and may not be meant.

    Args:
        everyone: The modifiers in the order of the recipe.

    Yields:
        The modifier, the key of the recipe, and what to know.
    """
    distillers = [p for p in everyone if KINDS.distillation in kinds_of(p)]
    if distillers and not any(teacher_of(p) for p in distillers):
        yield (
            distillers[0].modifier,
            "",
            "names no teacher; it has to come from outside; pass it, as with "
            "--distill_teacher, or write teacher: self",
        )
    yield from pruned_when_quantized(everyone)
    for one in everyone:
        yield from cut_cycle(one)
        yield from never_fixed(one, everyone)
    for first, late in combinations(everyone, 2):
        if isinstance(late.modifier, LayerDropModifier) and late.stage != first.stage:
            yield (
                late.modifier,
                "keep",
                "drops layers before all training, that of the stages above it too; "
                "to train the whole model first, run that stage alone",
            )
            return


def shared_weights(everyone: Sequence[Placed], model: nn.Module) -> Iterator[Fault]:
    """Find weights of a model that two modifiers prune at the same time.

    Args:
        everyone: The modifiers in the order of the recipe.
        model: The model; nothing is initialized.

    Yields:
        The modifier, the key of the recipe, and what is wrong.
    """
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


def _same_weights(everyone: Sequence[Placed]) -> Iterator[Fault]:
    for one, two in _together(everyone):
        if one.modifier.identifier() == two.modifier.identifier():
            continue  # reported as a repetition
        pattern = _shared_pattern(one, two)
        if pattern is not None:
            yield _twice(one, two, pattern)


def _twice(one: Placed, two: Placed, what: str) -> Fault:
    in_mapping = isinstance(two.modifier.final_sparsity, dict)
    return (
        two.modifier,
        "final_sparsity" if in_mapping else "params",
        f"params={what} is pruned by {one.name} at the same time, from epoch "
        f"{one.start:g} to {one.end:g}; expected one pruning modifier for a weight at "
        "a time; name other parameters, or begin where the other ends",
    )


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


def _quantized_twice(everyone: Sequence[Placed]) -> Iterator[Fault]:
    found = quantizing_in(everyone)
    for placed in found[1:]:
        if any(isinstance(p.modifier, QATModifier) for p in (found[0], placed)):
            yield (
                placed.modifier,
                "",
                f"the model is quantized by {found[0].name} already; expected one "
                "modifier that quantizes; remove one of the two",
            )


def _dropped_late(everyone: Sequence[Placed]) -> Iterator[Fault]:
    drops = [p for p in everyone if isinstance(p.modifier, LayerDropModifier)]
    for one, two in combinations(drops, 2):
        if one.stage == two.stage:
            yield (
                two.modifier,
                "keep",
                f"keep={two.modifier.keep} drops layers after {one.name} did; expected "
                "one LayerDropModifier in a stage; write what is to be left in one",
            )
    for drop in drops:
        before = [
            p
            for p in everyone[: everyone.index(drop)]
            if p.stage != drop.stage
            and {KINDS.pruning, KINDS.quantization} & {*kinds_of(p)}
        ]
        if before:
            yield (
                drop.modifier,
                "keep",
                f"keep={drop.modifier.keep} drops layers before all training, but "
                f"stands in a stage after {before[0].name}; expected layers to be "
                "dropped before weights are pruned or quantized; move it to the first "
                "stage",
            )
