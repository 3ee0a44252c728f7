"""N:M sparsity in one modifier: by magnitude or second order, at once or gradually."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers.keys import Key, Values, between, recipe_modifier
from obert_modifiers.modifiers.rules import Reader, choice, read_pattern, refuse
from obert_modifiers.modifiers.second_order import (
    SecondOrder,
    SecondOrderKeys,
    block_size_faults,
)
from obert_modifiers.modifiers.shared_keys import starts_before_it_ends

MAGNITUDE, OBS = "magnitude", "obs"
ONE_SHOT, BY_FRACTION, BY_N = "one_shot", "by_fraction", "by_n"
_ROUNDING = 1e-9  # of an epoch that is a sum of fractions
# Checkpoints from before these keys are resumed, by the identifier of the others.
_LATER_KEYS = "grad_sampler_kwargs num_recomputations grad_granularity fisher_dtype "
_LATER_KEYS += "first_recomputations fisher_loss first_order"


def _n_m(key: str, value: Any) -> str:
    pattern = read_pattern(key, value)
    if pattern.n_m is None:
        expected = "N kept of every M weights, as in 2:4"
        said = "is not N:M", expected, "use OBERTPruningModifier for it"
        refuse(Rule.MASK_TYPE, key, pattern.name, *said)
    return pattern.name


@recipe_modifier(
    without="init_sparsity final_sparsity inter_func global_sparsity min_density",
    order="start_epoch end_epoch update_frequency mask_type params leave_enabled score "
    "gradual num_grads fisher_block_size damp damp_fraction selection update "
    "memory_budget",
    silent=_LATER_KEYS,
)
class NMPruningModifier(SecondOrderKeys, GradualPruningModifier):
    """Keep N of every M weights along the input dimension.

    A preset: patterns, saliencies, selection and update are those of
    ``OBERTPruningModifier`` (``score: obs``, with the same keys) and
    ``GMPStarPruningModifier`` (``score: magnitude``) with the same ``mask_type``.
    ``min_density`` is not among its keys, as N:M prunes all parameters alike, nor is
    what follows from the structure: the sparsities and the shape of the schedule.
    ``gradual`` is one of

    - ``one_shot``: everything at ``start_epoch``;
    - ``by_fraction``: at each event the same number of groups comes into the pattern,
      those of the lowest saliency first, the last ones at ``end_epoch``;
    - ``by_n``: each group loses one weight more at each step, 4:4 -> 3:4 -> 2:4. Every
      step is an exact pattern; the first is at ``start_epoch``, the last at
      ``end_epoch``, and the others are spread evenly between them.

    Hooks run in the order of
    :class:`~obert_modifiers.modifiers._gradual.GradualPruningModifier`.

    Sample YAML::

        !NMPruningModifier
            mask_type: "2:4"
            start_epoch: 1.0
            end_epoch: 3.0
            update_frequency: 0.5
            gradual: by_n
            score: obs
            num_grads: 1024
    """

    end_epoch = GradualPruningModifier.KEYS["end_epoch"].but(default=None)
    update_frequency = GradualPruningModifier.KEYS["update_frequency"].but(default=None)
    mask_type = GradualPruningModifier.mask_type.but(
        rule=Reader("N:M", _n_m), default="2:4", meaning="N:M, as in 2:4."
    )
    score = Key(choice(MAGNITUDE, OBS), MAGNITUDE).means(
        "magnitude, or obs for the second-order saliency, whose keys go with it only."
    )
    gradual = Key(choice(ONE_SHOT, BY_FRACTION, BY_N), ONE_SHOT).means(
        "How the pattern is reached."
    )

    @classmethod
    def read_keys(
        cls, given: Mapping[str, Any], faulty: Iterable[str] = ()
    ) -> tuple[Values, list[Fault]]:
        """Read and check what a recipe gives; None stands for the default."""
        given = {key: value for key, value in given.items() if value is not None}
        return super().read_keys(given, faulty)

    @between("score", "given")
    def _keys_of_obs(score: str, given: Mapping[str, Any]) -> Iterator[Fault]:
        said = "is a key of score: obs", "none with score: magnitude", "leave it out"
        for key in given if score == MAGNITUDE else ():
            if key in SecondOrderKeys.KEYS:
                yield Fault.of(Rule.NEEDS, key, given[key], *said)

    @between("score", "fisher_block_size", "mask_type")
    def _whole_groups(score: str, width: int, mask_type: str) -> Iterator[Fault]:
        if score == OBS:
            yield from block_size_faults(width, mask_type)

    @between("start_epoch", "end_epoch", "gradual", "update_frequency")
    def _ends(
        start: float, end: float | None, gradual: str, often: float | None
    ) -> Iterator[Fault]:
        end, begin = start if end is None else end, max(start, 0.0)
        if gradual != ONE_SHOT and (end < 0.0 or end == begin):
            broken = f"has no time between start_epoch={start:g} and end_epoch={end:g}"
            said = broken, "a later end_epoch", "raise it or write gradual: one_shot"
            yield Fault.of(Rule.EPOCHS, "gradual", gradual, *said)
        elif end < begin:
            yield from starts_before_it_ends(start, end)
        elif gradual == ONE_SHOT and end != start:
            broken = f"is after start_epoch={start:g} with gradual: one_shot"
            said = broken, "one event", "leave end_epoch out or write gradual: by_n"
            yield Fault.of(Rule.EPOCHS, "end_epoch", f"{end:g}", *said)
        elif gradual == BY_FRACTION and often is None:
            broken, fix = (
                "comes without update_frequency",
                "write update_frequency: 0.5",
            )
            said = broken, "the epochs between two events", fix
            yield Fault.of(Rule.NEEDS, "gradual", gradual, *said)

    @classmethod
    def derive(cls, values: Values) -> None:
        """Add the sparsities and the schedule, which follow from the structure."""
        final = read_pattern("mask_type", values.mask_type)
        if values.end_epoch is None:
            values.end_epoch = values.start_epoch
        begin = max(values.start_epoch, 0.0)  # -1 is the start of the training
        span = max(values.end_epoch - begin, 0.0)
        often = values.update_frequency
        if often is None:
            by_n = values.gradual == BY_N
            often = span / max(final.unit - 1, 1) if by_n else -1.0
        first = often / (span + often) if 0.0 < often < math.inf else 0.0
        by_fraction = values.gradual == BY_FRACTION
        values.update(
            update_frequency=often,
            init_sparsity=final.limit * first if by_fraction else 0.0,
            final_sparsity=final.limit,
            inter_func="linear",
            # Only on the way: at the end every group is in the pattern.
            global_sparsity=values.score == OBS,
            min_density=0.0,
        )
        super().derive(values)
        if values.score == MAGNITUDE:
            values.update(
                dict.fromkeys({*SecondOrderKeys.KEYS} - {*_LATER_KEYS.split()})
            )

    def begin(self) -> None:
        """Make the engine for ``score: obs``."""
        super().begin()
        self._end_pattern = self._pattern
        if self.score == OBS:
            self._engine = SecondOrder(self, self._pattern)

    def sparsities_at(self, epoch: float) -> list[float]:
        """Ask the schedule for the targets of an event.

        With ``gradual: by_n`` it sets the pattern of the event too: the sparsity of
        n:M is (M - n) / M, which every group has to have.
        """
        if self.gradual != BY_N:
            return super().sparsities_at(epoch)
        final = self._end_pattern
        lost = final.unit
        if epoch < self.end_epoch:
            begin = max(self.start_epoch, 0.0)
            share = (epoch - begin) / (self.end_epoch - begin)
            lost = 1 + math.floor((final.unit - 1) * max(share, 0.0) + _ROUNDING)
        kept = final.group_size - lost
        self._pattern = replace(
            final, name=f"{kept}:{final.group_size}", n_m=(kept, final.group_size)
        )
        return [self._pattern.limit] * len(self._ends)
