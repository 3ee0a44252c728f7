"""A modifier and where it stands in its recipe."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obert_modifiers.host.bases import Modifier, SparsificationTypes

KINDS = SparsificationTypes
EPOCH_RANGE = "EpochRangeModifier"


@dataclass(frozen=True)
class Placed:
    """A modifier and where it stands.

    Attributes:
        modifier: SparseML's or ours.
        stage: Name of its stage; empty in a recipe without stages.
        line: Line of its tag.
    """

    modifier: Any
    stage: str
    line: int

    @property
    def name(self) -> str:
        """Name of its class, with its line."""
        return f"{type(self.modifier).__name__} on line {self.line}"

    @property
    def start(self) -> float:
        """Epoch at which it begins."""
        return max(0.0, self.modifier.start_epoch)

    @property
    def end(self) -> float:
        """Epoch at which it ends; infinite where it is left open."""
        end = self.modifier.end_epoch
        return end if end >= 0.0 else math.inf


# What is wrong: the modifier, the key of the recipe and the message.
Fault = tuple[Modifier, str, str]


def kinds_of(placed: Placed) -> Sequence[Any]:
    """Tell what a modifier does.

    Args:
        placed: A modifier.

    Returns:
        SparseML's kinds of it.
    """
    return placed.modifier.sparsification_types


def teacher_of(placed: Placed) -> str | None:
    """Tell which teacher a modifier names.

    Args:
        placed: A modifier.

    Returns:
        The name, or None.
    """
    named = getattr(placed.modifier, "teacher", None)
    return named if isinstance(named, str) else None


def gradual_in(everyone: Sequence[Placed]) -> list[Placed]:
    """Find the pruning modifiers that have a schedule.

    Args:
        everyone: Any modifiers.

    Returns:
        Those, in their order.
    """
    return [
        p
        for p in everyone
        if KINDS.pruning in kinds_of(p)
        and getattr(p.modifier, "final_sparsity", None) is not None
    ]


def quantizing_in(everyone: Sequence[Placed]) -> list[Placed]:
    """Find the modifiers that quantize.

    Args:
        everyone: Any modifiers.

    Returns:
        Those, in their order.
    """
    return [p for p in everyone if KINDS.quantization in kinds_of(p)]
