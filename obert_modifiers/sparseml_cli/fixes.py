"""The fixes of SparseML's own command line, by name, and which of them are needed.

A fix is a function that puts something of its own in the place of an attribute of
SparseML or of a library below it, only in this process. No file is changed.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

Patch = Callable[[Any, str, Any], None]  # sets an attribute
EARLY, LATE = "early", "late"
_FILES = ("environment", "trainer")
_FOUND: dict[str, "Fix"] = {}


@dataclass(frozen=True)
class Fix:
    """What a fix mends, with which versions, and for which of SparseML's scripts."""

    name: str
    mends: str
    versions: str
    scripts: str  # the start of their modules' names
    when: str  # before a script is imported (`EARLY`), or after
    needed: Callable[[], bool]
    apply: Callable[[Patch], None]


def fix(
    name: str,
    *,
    versions: str,
    scripts: str = "sparseml.transformers",
    when: str = LATE,
    needed: Callable[[], bool] = lambda: True,
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a fix; its docstring's first paragraph says what it mends."""

    def register(function: Callable[[Patch], None]) -> Callable[[Patch], None]:
        mends = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        _FOUND[name] = Fix(name, mends, versions, scripts, when, needed, function)
        return function

    return register


def all_fixes() -> list[Fix]:
    """List every fix in the order in which they are applied, early ones first."""
    for file in _FILES:
        import_module(f"obert_modifiers.sparseml_cli.{file}")
    return sorted(_FOUND.values(), key=lambda one: one.when != EARLY)


def check_names(names: Collection[str]) -> None:
    """Raise if there is no fix of a name."""
    known = [one.name for one in all_fixes()]
    for name in set(names) - set(known):
        raise ValueError(
            f"--without={name} is no fix; expected one of {', '.join(known)}; "
            "correct it"
        )


def apply_fixes(
    script: str, when: str, *, without: Collection[str] = (), patch: Patch = setattr
) -> Iterator[Fix]:
    """Apply what a script needs with the installed versions; yield the fixes."""
    for one in all_fixes():
        wanted = one.when == when and one.name not in without
        if wanted and script.startswith(one.scripts) and one.needed():
            one.apply(patch)
            yield one
