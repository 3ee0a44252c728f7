"""The fixes of SparseML's own command line, by name, and which of them are needed.

A fix is a function that puts something of its own in the place of an attribute of
SparseML or of a library below it, in this process alone. No file is changed.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

Patch = Callable[[Any, str, Any], None]
EARLY, LATE = "early", "late"
_FILES = ("environment", "trainer")
_FOUND: dict[str, "Fix"] = {}


@dataclass(frozen=True)
class Fix:
    """What one fix is for.

    Attributes:
        name: How it is called on the command line.
        mends: What it mends, one sentence.
        versions: With which versions it is needed.
        scripts: Start of the module names of SparseML's scripts that need it.
        when: ``early``, before SparseML's script is imported, or ``late``.
        needed: Tells whether the installed versions need it.
        apply: Puts it in place, with a function that sets attributes.
    """

    name: str
    mends: str
    versions: str
    scripts: str
    when: str
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
    """Register a fix; its docstring's first paragraph says what it mends.

    Args:
        name: How it is called on the command line.
        versions: With which versions it is needed.
        scripts: Start of the module names of SparseML's scripts that need it.
        when: ``early``, before SparseML's script is imported, or ``late``.
        needed: Tells whether the installed versions need it.

    Returns:
        A decorator that leaves the function as it is.
    """

    def register(function: Callable[[Patch], None]) -> Callable[[Patch], None]:
        first = (function.__doc__ or "").split("\n\n")[0]
        mends = " ".join(first.split())
        _FOUND[name] = Fix(name, mends, versions, scripts, when, needed, function)
        return function

    return register


def all_fixes() -> list[Fix]:
    """List every fix, early ones first.

    Returns:
        The fixes in the order in which they are applied.
    """
    for file in _FILES:
        import_module(f"obert_modifiers.sparseml_cli.{file}")
    return sorted(_FOUND.values(), key=lambda one: one.when != EARLY)


def check_names(names: Collection[str]) -> None:
    """Check that fixes have these names.

    Args:
        names: What a user wrote.

    Raises:
        ValueError: If there is no fix of a name.
    """
    known = [one.name for one in all_fixes()]
    for name in names:
        if name not in known:
            raise ValueError(
                f"--without={name} is no fix; expected one of {', '.join(known)}; "
                "correct it"
            )


def apply_fixes(
    script: str,
    when: str,
    *,
    without: Collection[str] = (),
    patch: Patch = setattr,
) -> Iterator[Fix]:
    """Apply what a script of SparseML needs with the versions that are installed.

    Args:
        script: Name of the module that holds the script's ``main``.
        when: ``early``, before that module is imported, or ``late``.
        without: Names of fixes to leave out.
        patch: Sets an attribute of an object.

    Yields:
        What was applied.
    """
    for one in all_fixes():
        wanted = one.when == when and one.name not in without
        if wanted and script.startswith(one.scripts) and one.needed():
            one.apply(patch)
            yield one
