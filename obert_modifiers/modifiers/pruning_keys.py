"""The keys of gradual pruning, and the checks between them."""

from collections.abc import Iterator
from typing import Any

from obert_modifiers.core.pruning.schedule import INTERPOLATIONS
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers import rules
from obert_modifiers.modifiers.keys import Key, KeyedModifier, Values, between
from obert_modifiers.modifiers.rules import FROM_PARAM, read_goals, read_pattern
from obert_modifiers.modifiers.shared_keys import SharedKeys, starts_before_it_ends

_PATTERN_TOLERANCE = 1e-3  # 1:3 cannot be written exactly in decimals
_ROUNDING = 1e-9  # 1 - 0.9 is below 0.1


class PruningKeys(KeyedModifier):
    """When is pruned, how far, and what."""

    init_sparsity = Key(rules.INIT_SPARSITY).means(
        f"Sparsity of the first event, or {FROM_PARAM} for what each parameter has."
    )
    final_sparsity = Key(rules.FINAL_SPARSITY, later=True).means(
        "Sparsity of the last event, or a mapping from sparsities to lists of "
        "parameters."
    )
    start_epoch = SharedKeys.start_epoch.but(meaning="Epoch of the first event.")
    end_epoch = SharedKeys.end_epoch.but(meaning="Epoch of the last event.", later=True)
    update_frequency = Key(rules.FREQUENCY, later=True).means(
        "Epochs from one event to the next; -1 for every step."
    )
    params = SharedKeys.params.but(default=rules.ALL_ENCODER).means(
        "Names, re: patterns or tokens of the parameters to prune."
    )
    leave_enabled = Key(rules.FLAG, True, later=lambda value: value is True).means(
        "True keeps the masks on after end_epoch."
    )
    inter_func = Key(rules.choice(*INTERPOLATIONS), "cubic", later=True).means(
        "Shape of the sparsity schedule."
    )
    global_sparsity = Key(rules.FLAG, True).means(
        "True for one threshold over all parameters that share a target, false to "
        "bring each parameter to it."
    )
    mask_type = Key(rules.MASK_TYPE, "unstructured").means(
        "Structure of the sparsity: unstructured, block4, block:RxC (output rows x "
        "input columns) or N:M (N kept of every M weights along the input dimension, "
        "whose sparsity is (M - N) / M)."
    )
    min_density = Key(rules.FRACTION, 0.0, later=True).means(
        "Share of its weights that each parameter keeps at least, whatever their "
        "saliency."
    )

    @between("start_epoch", "end_epoch")
    def _ends(start: float, end: float) -> Iterator[Fault]:
        yield from starts_before_it_ends(start, end)
        if end < 0.0:
            broken, fix = f"lies before start_epoch={start:g}", "raise it"
            said = f"{end:g}", broken, "a schedule that ends after it starts", fix
            yield Fault.of(Rule.EPOCHS, "end_epoch", *said)

    @between("params", "final_sparsity")
    def _named_once(params: Any, final: Any) -> Iterator[Fault]:
        if isinstance(final, dict) and params not in ([], "", rules.ALL_ENCODER):
            broken = "and a mapping in final_sparsity are both given"
            said = broken, "the parameters in one place", "write params: []"
            yield Fault.of(Rule.BOTH, "params", params, *said)

    @between("init_sparsity", "final_sparsity", "mask_type")
    def _reachable(init: Any, final: Any, mask_type: str) -> Iterator[Fault]:
        pattern, rule = read_pattern("mask_type", mask_type), Rule.SPARSITIES
        limit, exact = pattern.limit, f"{pattern.limit:.4g}"
        goals = [goal for goal, _ in read_goals(None, final)]
        if pattern.n_m is not None:
            for goal in goals:
                if abs(goal - limit) > _PATTERN_TOLERANCE:
                    broken = f"is not the sparsity of mask_type={mask_type}"
                    said = goal, broken, exact, f"write {exact}"
                    yield Fault.of(rule, "final_sparsity", *said)
            if init != FROM_PARAM and init > limit + _PATTERN_TOLERANCE:
                broken = f"is above the sparsity of mask_type={mask_type}"
                fix = f"write {exact} to reach it in one step"
                said = init, broken, f"at most {exact}", fix
                yield Fault.of(rule, "init_sparsity", *said)
        elif init != FROM_PARAM and init > max(goals):
            broken = f"is above final_sparsity={max(goals):g}"
            expected, fix = "a schedule that prunes more and more", "lower it"
            yield Fault.of(rule, "init_sparsity", f"{init:g}", broken, expected, fix)

    @between("min_density", "final_sparsity", "mask_type")
    def _room(density: float, final: Any, mask_type: str) -> Iterator[Fault]:
        highest = max(goal for goal, _ in read_goals(None, final))
        key, value = "min_density", f"{density:g}"
        if density and read_pattern("mask_type", mask_type).n_m is not None:
            broken = f"and mask_type={mask_type} are both given"
            expected, fix = "one of them: N:M prunes all alike", "leave it out"
            yield Fault.of(Rule.BOTH, key, value, broken, expected, fix)
        elif density > 1.0 - highest + _ROUNDING:
            broken = f"leaves no room for final_sparsity={highest:g}"
            expected = f"at most {1.0 - highest:g}"
            yield Fault.of(Rule.SPARSITIES, key, value, broken, expected, "lower it")

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
