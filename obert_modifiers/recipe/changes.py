"""A recipe that was edited while its run was interrupted: what differs, and is it safe.

Safe means that no weight that is pruned comes back, that no pruning event happens at
another time than the edited recipe says, and that nothing that has been done already
would have to be done otherwise.
"""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from obert_modifiers.host.bases import SCHEDULE_KEY, Modifier
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.modifiers.keys import KeyedModifier
from obert_modifiers.recipe.clock import CLOSE, epoch_at, event_epochs

# They compute what they do from the epoch only.
_BY_EPOCH = ("EpochRangeModifier", "LearningRateFunctionModifier")
# Leaving them out takes nothing back but what they would do later.
_REMOVABLE = ("SetLearningRateModifier", "SetWeightDecayModifier")


class Pair(NamedTuple):
    """A modifier before and after the edit; one of them may be missing."""

    name: str | None  # in the checkpoint's state; None for a new modifier
    old: Modifier | None
    new: Modifier | None

    @property
    def same(self) -> bool:
        """Whether there are both, with the same settings."""
        both = self.old is not None and self.new is not None
        return both and self.old.identifier() == self.new.identifier()


class Now(NamedTuple):
    """Where the checkpoint stands, and how long the edited recipe is."""

    step: int  # optimizer steps that are made
    steps_per_epoch: int
    num_epochs: float | None  # None where the recipe does not say

    @property
    def epoch(self) -> float:
        """Progress in epochs."""
        return epoch_at(self.step, self.steps_per_epoch)


def differences(before: str, after: str) -> str:
    """Show what differs between two recipes."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "checkpoint", "now", lineterm="", n=2
    )
    return "\n".join(lines)


def pair_up(old: Mapping[str, Modifier], new: Mapping[str, Modifier]) -> list[Pair]:
    """Find each modifier of a recipe in the edited one."""
    pairs = [Pair(name, old[name], new[name]) for name in old if name in new]
    left = {name: one for name, one in old.items() if name not in new}
    for name, one in new.items():
        if name in old:
            continue
        partner = next((n for n, o in left.items() if type(o) is type(one)), None)
        pairs.append(Pair(partner, left.pop(partner, None), one))
    return [*pairs, *(Pair(name, one, None) for name, one in left.items())]


def unsafe_edits(
    pairs: list[Pair], state: Mapping[str, Mapping[str, Any]], now: Now
) -> list[str]:
    """Say which edits cannot be taken up in mid-run."""
    found = []
    if now.num_epochs is not None and now.num_epochs <= now.epoch:
        found.append(_before("the recipe ends", now.num_epochs, now))
    faults = (_unsafe(pair, state, now) for pair in pairs if not pair.same)
    return [*found, *filter(None, faults)]


def _unsafe(pair: Pair, state: Mapping[str, Mapping[str, Any]], now: Now) -> str | None:
    old, new = pair.old, pair.new
    begun = old is not None and _started(state[pair.name])
    if new is None:
        if not begun or _replaceable(old) or _kind(old) in _REMOVABLE:
            return None
        return f"{_kind(old)} has begun and is gone from the recipe"
    if begun:
        return _changed(old, new, now)
    if _replaceable(new):
        return _over(new, now)
    if new.start_epoch >= now.epoch:
        return None
    return _before(f"{_kind(new)} is new and starts", new.start_epoch, now)


def _before(what: str, epoch: float, now: Now) -> str:
    return f"{what} at epoch {epoch:g}, before the checkpoint's {now.epoch:g}"


def _started(state: Mapping[str, Any]) -> bool:
    state = from_tensors(state)
    for place in (state, state.get(SCHEDULE_KEY, {}), state.get("fields", {})):
        for key in ("started", "_started"):
            if key in place:
                return bool(place[key])
    return True


def _kind(modifier: Modifier) -> str:
    return type(modifier).__name__


def _replaceable(modifier: Modifier) -> bool:
    return getattr(modifier, "replaceable", _kind(modifier) in _BY_EPOCH)


def _over(modifier: Modifier, now: Now) -> str | None:
    if 0.0 <= modifier.end_epoch <= now.epoch:
        return _before(f"{_kind(modifier)} ends", modifier.end_epoch, now)
    return None


def _changed(old: Modifier, new: Modifier, now: Now) -> str | None:
    before, after = (one.props(only_serializable=True) for one in (old, new))
    keys = {k for k in {*before, *after} if before.get(k) != after.get(k)}
    if not keys:
        return None
    if _replaceable(new):
        return _over(new, now)
    known = new.KEYS if isinstance(new, KeyedModifier) else {}
    refused = sorted(
        key
        for key in keys
        if key not in known or not known[key].may_become(after.get(key))
    )
    if refused:
        return (
            f"{_kind(new)} has begun, and {', '.join(refused)} cannot change any more"
        )
    if isinstance(new, GradualPruningModifier) and new.end_epoch < now.epoch:
        return _over(new, now)
    late = after.get("disable_observer_epoch")
    if "disable_observer_epoch" in keys and (late is None or late < now.epoch):
        return f"{_kind(new)}'s disable_observer_epoch lies before {now.epoch:g}"
    return None


def keeps_state(pair: Pair) -> bool:
    """Tell whether a modifier takes up the state of its partner."""
    old, new = pair.old, pair.new
    if old is None or new is None or pair.same:
        return pair.same
    # What it keeps of a teacher is its hash, to find that it is another one.
    taught = getattr(old, "teacher", None) == getattr(new, "teacher", None)
    return taught and _kind(new) not in _BY_EPOCH


def resume_schedule_(pair: Pair, now: Now) -> str | None:
    """Let a pruning modifier that has begun go on at the events of its new schedule."""
    one = pair.new
    if not isinstance(one, GradualPruningModifier) or not one.started or pair.same:
        return None
    events = event_epochs(one, now.num_epochs, now.steps_per_epoch) or []
    past = [epoch for epoch in events if epoch < now.epoch - CLOSE]
    future = events[len(past) :]
    for epoch in future:
        targets = one.sparsities_at(epoch)
        for target, applied in zip(targets, one.applied_sparsity or (), strict=True):
            if target < applied - CLOSE:
                return (
                    f"{_kind(one)} would go to sparsity {target:.4g} at epoch "
                    f"{epoch:g}, below the {applied:.4g} that is applied"
                )
    one.move_schedule(past[-1] if past else now.epoch, ended=not future)
    return None
