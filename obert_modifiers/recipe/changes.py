"""A recipe that was edited while its run was interrupted: what differs, and is it safe.

Safe means that no weight that is pruned comes back, that no pruning event happens at
another time than the edited recipe says, and that nothing that has been done already
would have to be done otherwise.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from obert_modifiers.host.bases import SCHEDULE_KEY, Modifier
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.recipe.clock import epoch_at, event_epochs

# They compute what they do from the epoch alone.
_BY_EPOCH = ("EpochRangeModifier", "LearningRateFunctionModifier")
_REPLACEABLE = (*_BY_EPOCH, "LogitDistillationModifier")
# Leaving them out takes nothing back but what they would do later.
_REMOVABLE = (*_REPLACEABLE, "SetLearningRateModifier", "SetWeightDecayModifier")
# Keys of what has begun that may be others from now on.
_LATER_KEYS = {
    "QATModifier": {"disable_observer_epoch", "end_epoch", "freeze"},
    "pruning": {
        "damp",
        "damp_fraction",
        "end_epoch",
        "final_sparsity",
        "first_order",
        "fisher_block_size",
        "fisher_dtype",
        "fisher_loss",
        "grad_granularity",
        "grad_sampler_kwargs",
        "inter_func",
        "memory_budget",
        "min_density",
        "num_grads",
        "num_recomputations",
        "selection",
        "update",
        "update_frequency",
    },
}
_CLOSE = 1e-9


@dataclass(frozen=True)
class Pair:
    """A modifier before and after the edit; one of them may be missing.

    Attributes:
        name: Its name in the checkpoint's state; None for a new one.
        old: As it was saved.
        new: As it is now.
    """

    name: str | None
    old: Modifier | None
    new: Modifier | None


@dataclass(frozen=True)
class Now:
    """Where the checkpoint stands.

    Attributes:
        step: Optimizer steps that are made.
        steps_per_epoch: Those of an epoch.
        num_epochs: Epochs of the edited recipe, None where it does not say.
    """

    step: int
    steps_per_epoch: int
    num_epochs: float | None

    @property
    def epoch(self) -> float:
        """Progress in epochs."""
        return epoch_at(self.step, self.steps_per_epoch)


def differences(before: str, after: str) -> str:
    """Show what differs between two recipes.

    Args:
        before: Text of the recipe of the checkpoint.
        after: Text of the recipe now.

    Returns:
        Lines with - and + in front.
    """
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "checkpoint", "now", lineterm="", n=2
    )
    return "\n".join(lines)


def pair_up(old: Mapping[str, Modifier], new: Mapping[str, Modifier]) -> list[Pair]:
    """Find each modifier of a recipe in the edited one.

    Args:
        old: The modifiers of the checkpoint, by their names there.
        new: Those of the edited recipe.

    Returns:
        Equal ones, then changed ones by class in their order, then those without a
        partner.
    """
    pairs = [Pair(name, old[name], new[name]) for name in old if name in new]
    left = {name: one for name, one in old.items() if name not in new}
    for name, one in new.items():
        if name in old:
            continue
        partner = next((n for n, o in left.items() if type(o) is type(one)), None)
        pairs.append(Pair(partner, left.pop(partner, None) if partner else None, one))
    return [*pairs, *(Pair(name, one, None) for name, one in left.items())]


def unsafe_edits(
    pairs: list[Pair], state: Mapping[str, Mapping[str, Any]], now: Now
) -> list[str]:
    """Say which edits cannot be taken up in mid-run.

    Args:
        pairs: As from :func:`pair_up`.
        state: The modifiers' state in the checkpoint, by name.
        now: Where it stands.

    Returns:
        A sentence for each; empty where the run can go on.
    """
    found = []
    if now.num_epochs is not None and now.num_epochs <= now.epoch:
        found.append(
            f"the recipe ends at epoch {now.num_epochs:g}, before the checkpoint's "
            f"{now.epoch:g}"
        )
    for pair in pairs:
        if pair.old is None:
            fault = _added(pair.new, now)
        elif not _started(state[pair.name]):
            fault = None if pair.new is None else _not_begun(pair, now)
        elif pair.new is None:
            fault = _removed(pair.old)
        else:
            fault = _changed(pair, now)
        if fault is not None:
            found.append(fault)
    return found


def _started(state: Mapping[str, Any]) -> bool:
    state = from_tensors(state)
    for place in (state, state.get(SCHEDULE_KEY, {}), state.get("fields", {})):
        for key in ("started", "_started"):
            if key in place:
                return bool(place[key])
    return True


def _kind(modifier: Modifier) -> str:
    return type(modifier).__name__


def _added(modifier: Modifier, now: Now) -> str | None:
    if _kind(modifier) in _REPLACEABLE:
        return _over(modifier, now)
    if modifier.start_epoch >= now.epoch:
        return None
    return (
        f"{_kind(modifier)} is new and starts at epoch {modifier.start_epoch:g}, "
        f"before the checkpoint's {now.epoch:g}"
    )


def _over(modifier: Modifier, now: Now) -> str | None:
    if 0.0 <= modifier.end_epoch <= now.epoch:
        return (
            f"{_kind(modifier)} ends at epoch {modifier.end_epoch:g}, before the "
            f"checkpoint's {now.epoch:g}"
        )
    return None


def _not_begun(pair: Pair, now: Now) -> str | None:
    if pair.old.identifier() == pair.new.identifier():
        return None
    return _added(pair.new, now)


def _removed(modifier: Modifier) -> str | None:
    if _kind(modifier) in _REMOVABLE:
        return None
    return f"{_kind(modifier)} has begun and is gone from the recipe"


def _changed(pair: Pair, now: Now) -> str | None:
    old, new = (one.props(only_serializable=True) for one in (pair.old, pair.new))
    keys = {k for k in {*old, *new} if old.get(k) != new.get(k)}
    if not keys:
        return None
    kind = _kind(pair.new)
    if kind in _REPLACEABLE:
        return _over(pair.new, now)
    pruning = isinstance(pair.new, GradualPruningModifier)
    allowed = _LATER_KEYS["pruning"] if pruning else _LATER_KEYS.get(kind, set())
    if pruning and new.get("leave_enabled") is True:
        allowed = allowed | {"leave_enabled"}
    refused = sorted(keys - allowed)
    if refused:
        return f"{kind} has begun, and {', '.join(refused)} cannot change any more"
    if pruning and new["end_epoch"] < now.epoch:
        return _over(pair.new, now)
    late = new.get("disable_observer_epoch")
    if "disable_observer_epoch" in keys and (late is None or late < now.epoch):
        return f"{kind}'s disable_observer_epoch lies before {now.epoch:g}"
    return None


def keeps_state(pair: Pair) -> bool:
    """Tell whether a modifier takes up the state of its partner.

    Args:
        pair: A modifier before and after the edit.

    Returns:
        False for a new one, and for an edited one that goes by the epoch alone.
    """
    if pair.old is None or pair.new is None:
        return False
    same = pair.old.identifier() == pair.new.identifier()
    return same or _kind(pair.new) not in _BY_EPOCH


def take_up_schedule_(pair: Pair, now: Now) -> str | None:
    """Let a pruning modifier that has begun go on at the events of its new schedule.

    Args:
        pair: A modifier before and after the edit, with its state; changed in place.
        now: Where the checkpoint stands.

    Returns:
        What is wrong with the schedule, None if nothing is.
    """
    one = pair.new
    if not isinstance(one, GradualPruningModifier) or not one.started:
        return None
    if pair.old.identifier() == one.identifier():
        return None
    events = event_epochs(one, now.num_epochs, now.steps_per_epoch) or []
    past = [epoch for epoch in events if epoch < now.epoch - _CLOSE]
    future = events[len(past) :]
    for epoch in future:
        targets = one.sparsities_at(epoch)
        for target, applied in zip(targets, one.applied_sparsity or (), strict=True):
            if target < applied - _CLOSE:
                return (
                    f"{_kind(one)} would go to sparsity {target:.4g} at epoch "
                    f"{epoch:g}, below the {applied:.4g} that is applied"
                )
    one.move_schedule(past[-1] if past else now.epoch, ended=not future)
    return None
