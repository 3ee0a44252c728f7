"""Names of classes as a person reads them, and classes in another order."""

import re
from collections.abc import Sequence
from typing import Any

_BETWEEN = re.compile(r"(?<=[^\W_])[-_\s]+(?=[^\W_])")


def places_of(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Find names among others, as a person reads them.

    Names that are there as they are written come first. Otherwise case, space around
    a name, and what joins its words (``-``, ``_``, space) make no difference, unless
    two of the known names differ in nothing else. A sign before a number counts.
    """
    for read in (str, _as_read):
        places = {read(name): place for place, name in enumerate(known)}
        if len(places) == len(known) and all(read(name) in places for name in names):
            return [places[read(name)] for name in names]
    return None


def class_names(config: Any) -> list[str]:
    """Return the names of a model's classes by number, none where it tells none."""
    found = getattr(config, "id2label", None) or {}
    return [str(found[number]) for number in sorted(found)]


def order_for(student: Sequence[str], teacher: Sequence[str]) -> list[int] | None:
    """Find the order in which a teacher's classes are the student's."""
    found = places_of(student, teacher)
    # Two of the student's names may be read alike.
    return found if sorted(found or []) == list(range(len(teacher))) else None


def _as_read(name: str) -> str:
    return _BETWEEN.sub(" ", name.strip().casefold())
