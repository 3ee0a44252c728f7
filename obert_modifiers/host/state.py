"""The state of the host's own modifiers, whose ``state_dict`` has at most the masks.

What has to come back for a run to go on as if it had not been interrupted is named
here for each class; a class that is not named cannot be saved, and is refused by name.
"""

from collections.abc import Sequence
from typing import Any

_SCHEDULE = ("_started", "_ended", "_last_update_epoch")
_PRUNING = ("_applied_sparsity", "_pre_step_completed", "_sparsity_applied")
# What changes beside the schedule while such a modifier trains.
_FIELDS: dict[str, tuple[str, ...]] = {
    "ConstantPruningModifier": _PRUNING,
    "EpochRangeModifier": (),
    "GMPruningModifier": _PRUNING,
    "GlobalMagnitudePruningModifier": _PRUNING,
    "LearningRateFunctionModifier": ("_learning_rate", "_last_logged_lr"),
    "MagnitudePruningModifier": _PRUNING,
    "SetLearningRateModifier": ("_lr_set", "_applied", "_last_logged_lr"),
    "SetWeightDecayModifier": ("_update_since_last_log",),
    "TrainableParamsModifier": ("_original",),
}
# Where the classes are that have no state of their own, in both hosts.
_HOSTS = ("sparseml.", "obert_modifiers.host.")


def known() -> list[str]:
    """Name SparseML's modifiers whose state can be saved."""
    return sorted(_FIELDS)


def cannot_be_saved(modifiers: Sequence[Any]) -> list[str]:
    """Name the modifiers whose state cannot be saved."""
    foreign = {type(m) for m in modifiers if not _saves_itself(m)}
    return sorted(cls.__name__ for cls in foreign if cls.__name__ not in _FIELDS)


def _saves_itself(modifier: Any) -> bool:
    return not type(modifier).__module__.startswith(_HOSTS)


def state_of(modifier: Any) -> dict[str, Any]:
    """Return everything that a modifier needs to go on."""
    if _saves_itself(modifier):
        return modifier.state_dict()
    names = (*_SCHEDULE, *_FIELDS.get(type(modifier).__name__, ()))
    fields = {n: getattr(modifier, n) for n in names if hasattr(modifier, n)}
    state: dict[str, Any] = {"fields": fields}
    masks = getattr(modifier, "module_masks", None)
    if masks is not None:
        state["enabled"] = masks.enabled
        # They are numbers, 0 and 1.
        state["masks"] = {
            name: mask != 0 for name, mask in modifier.state_dict().items()
        }
    return state


def load_state(modifier: Any, state: dict[str, Any]) -> None:
    """Let a modifier go on where :func:`state_of` was taken."""
    if _saves_itself(modifier):
        modifier.load_state_dict(state)
        return
    for name, value in state["fields"].items():
        setattr(modifier, name, value)
    masks = getattr(modifier, "module_masks", None)
    if masks is None:
        return
    data = dict(zip(masks.names, masks.params_data, strict=True))
    modifier.load_state_dict({
        name: mask.to(data[name]) for name, mask in state["masks"].items()
    })
    masks.enabled = state["enabled"]
