"""The keys of gradual pruning, and the checks between them."""

from collections.abc import Iterator
from typing import Any

from obert_modifiers.core.pruning.schedule import INTERPOLATIONS
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers.keys import Key, KeyedModifier, Values, between
from obert_modifiers.modifiers.rules import (
    ALL_ENCODER,
    FINAL_SPARSITY,
    FLAG,
    FRACTION,
    FREQUENCY,
    FROM_PARAM,
    INIT_SPARSITY,
    MASK_TYPE,
    choice,
    read_goals,
    read_pattern,
)
from obert_modifiers.modifiers.shared_keys import SharedKeys, starts_before_it_ends

_PATTERN_TOLERANCE = 1e-3  # 1:3 cannot be written exactly in decimals


class PruningKeys(KeyedModifier):
    """When is pruned, how far, and what."""

    init_sparsity = Key(
        INIT_SPARSITY,
        meaning=f"Sparsity of the first event, or {FROM_PARAM} for what each parameter "
        "has.",
    )
    final_sparsity = Key(
        FINAL_SPARSITY,
        meaning="Sparsity of the last event, or a mapping from sparsities to lists of "
        "parameters.",
        later=True,
    )
    start_epoch = SharedKeys.start_epoch.but(meaning="Epoch of the first event.")
    end_epoch = SharedKeys.end_epoch.but(meaning="Epoch of the last event.", later=True)
    update_frequency = Key(
        FREQUENCY,
        meaning="Epochs from one event to the next; -1 for every step.",
        later=True,
    )
    params = SharedKeys.params.but(
        default=ALL_ENCODER,
        meaning="Names, re: patterns or tokens of the parameters to prune.",
    )
    leave_enabled = Key(
        FLAG,
        True,
        "True keeps the masks on after end_epoch.",
        later=lambda value: value is True,
    )
    inter_func = Key(
        choice(*INTERPOLATIONS), "cubic", "Shape of the sparsity schedule.", later=True
    )
    global_sparsity = Key(
        FLAG,
        True,
        "True for one threshold over all parameters that share a target, false to "
        "bring each parameter to it.",
    )
    mask_type = Key(
        MASK_TYPE,
        "unstructured",
        "Structure of the sparsity: unstructured, block4, block:RxC (output rows x "
        "input columns) or N:M (N kept of every M weights along the input dimension, "
        "whose sparsity is (M - N) / M).",
    )
    min_density = Key(
        FRACTION,
        0.0,
        "Share of its weights that each parameter keeps at least, however cheap they "
        "are.",
        later=True,
    )

    @between("start_epoch", "end_epoch")
    def _ends(start: float, end: float) -> Iterator[Fault]:
        yield from starts_before_it_ends(start, end)
        if end < 0.0:
            yield Fault.of(
                Rule.EPOCHS,
                "end_epoch",
                f"{end:g}",
                f"lies before start_epoch={start:g}",
                "a schedule that ends after it starts",
                "raise it",
            )

    @between("params", "final_sparsity")
    def _named_once(params: Any, final: Any) -> Iterator[Fault]:
        if isinstance(final, dict) and params not in ([], "", ALL_ENCODER):
            yield Fault.of(
                Rule.BOTH,
                "params",
                params,
                "and a mapping in final_sparsity are both given",
                "the parameters in one place",
                "write params: []",
            )

    @between("init_sparsity", "final_sparsity", "mask_type")
    def _reachable(init: Any, final: Any, mask_type: str) -> Iterator[Fault]:
        pattern = read_pattern("mask_type", mask_type)
        limit, exact = pattern.limit, f"{pattern.limit:.4g}"
        goals = [goal for goal, _ in read_goals(None, final)]
        if pattern.n_m is not None:
            for goal in goals:
                if abs(goal - limit) > _PATTERN_TOLERANCE:
                    broken = f"is not the sparsity of mask_type={mask_type}"
                    key, fix = "final_sparsity", f"write {exact}"
                    yield Fault.of(Rule.SPARSITIES, key, goal, broken, exact, fix)
            if init != FROM_PARAM and init > limit + _PATTERN_TOLERANCE:
                yield Fault.of(
                    Rule.SPARSITIES,
                    "init_sparsity",
                    init,
                    f"is above the sparsity of mask_type={mask_type}",
                    f"at most {exact}",
                    f"write {exact} to reach it in one step",
                )
        elif init != FROM_PARAM and init > max(goals):
            yield Fault.of(
                Rule.SPARSITIES,
                "init_sparsity",
                f"{init:g}",
                f"is above final_sparsity={max(goals):g}",
                "a schedule that prunes more and more",
                "lower it or raise final_sparsity",
            )

    @between("min_density", "final_sparsity", "mask_type")
    def _room(density: float, final: Any, mask_type: str) -> Iterator[Fault]:
        highest = max(goal for goal, _ in read_goals(None, final))
        if density and read_pattern("mask_type", mask_type).n_m is not None:
            yield Fault.of(
                Rule.BOTH,
                "min_density",
                f"{density:g}",
                f"and mask_type={mask_type} are both given",
                "one of them: N:M prunes all parameters alike",
                "leave min_density out",
            )
        elif density > 1.0 - highest:
            yield Fault.of(
                Rule.SPARSITIES,
                "min_density",
                f"{density:g}",
                f"leaves no room for final_sparsity={highest:g}",
                f"at most {1.0 - highest:g}",
                "lower it",
            )

    @classmethod
    def derive(cls, values: Values) -> None:
        """Add the structure, and bring sparsities of N:M to the exact ones."""
        pattern = values.pattern = read_pattern("mask_type", values.mask_type)
        n_m = pattern.n_m is not None
        goals = read_goals(values.params, values.final_sparsity)
        values.goals = [
            (pattern.limit if n_m else goal, names) for goal, names in goals
        ]
        if not isinstance(values.final_sparsity, dict):
            values.final_sparsity = values.goals[0][0]
        if n_m and values.init_sparsity != FROM_PARAM:
            values.init_sparsity = min(values.init_sparsity, pattern.limit)
