"""A modifier and where it stands in its recipe; what kinds there are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obert_modifiers.faults import Fault
from obert_modifiers.host.bases import SparsificationTypes
from obert_modifiers.recipe_text.values import ModifierSettings

KINDS = SparsificationTypes


@dataclass(frozen=True, eq=False)
class Placed:
    """A modifier, the host's or ours, and what its recipe says about it."""

    modifier: Any
    settings: ModifierSettings

    @property
    def stage(self) -> str:
        return self.settings.stage

    @property
    def line(self) -> int:
        return self.settings.line

    @property
    def tag(self) -> str:
        return type(self.modifier).__name__

    @property
    def name(self) -> str:
        return f"{self.tag} on line {self.line}"

    @property
    def start(self) -> float:
        return max(0.0, self.modifier.start_epoch)

    @property
    def end(self) -> float:
        """Epoch at which it ends; infinite where it is left open."""
        end = self.modifier.end_epoch
        return end if end >= 0.0 else math.inf

    @property
    def teacher(self) -> str | None:
        named = getattr(self.modifier, "teacher", None)
        return named if isinstance(named, str) else None


# A modifier, and what is wrong with it.
Found = tuple[Placed, Fault]


def of_kind(everyone: Sequence[Placed], kind: Any) -> list[Placed]:
    """Find the modifiers that do something, as the host names it."""
    return [p for p in everyone if kind in p.modifier.sparsification_types]


def of_class(everyone: Sequence[Placed], cls: type) -> list[Placed]:
    return [p for p in everyone if isinstance(p.modifier, cls)]


def gradual_in(everyone: Sequence[Placed]) -> list[Placed]:
    """Find the pruning modifiers that have a schedule."""
    return [p for p in of_kind(everyone, KINDS.pruning) if has_schedule(p.modifier)]


def patterns_of(modifier: Any, key: str = "params") -> list[tuple[str, str]]:
    """Return a modifier's names and patterns, each after the key it stands under."""
    goals = getattr(modifier, "final_sparsity", None)
    values = [(key, getattr(modifier, key, None))]
    if key == "params" and isinstance(goals, dict):
        values = [("final_sparsity", names) for names in goals.values()]
    found = []
    for place, value in values:
        names = [value] if isinstance(value, str) else value or ()
        found += [(place, name) for name in names if isinstance(name, str)]
    return found


def has_schedule(modifier: Any) -> bool:
    """Tell whether a modifier prunes to a sparsity."""
    return getattr(modifier, "final_sparsity", None) is not None


def goals_of(modifier: Any) -> tuple[float, ...]:
    """Return the final sparsities, one unless the recipe maps them to names."""
    final = modifier.final_sparsity
    return tuple(float(one) for one in (final if isinstance(final, dict) else [final]))
