"""Run one of SparseML's own scripts with our modifiers and the fixes it needs."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from obert_modifiers.sparseml_cli.fixes import EARLY, LATE, apply_fixes, check_names
from obert_modifiers.sparseml_cli.scripts import Script, find_script
from obert_modifiers.sparseml_cli.stacks import check_can_run

_REPLACE, _WITHOUT = "--replace", "--without"
MODES = ("same", "ours")


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        script: SparseML's script.
        words: What it gets.
        replace: None, ``same`` or ``ours``.
        without: Fixes to leave out.
    """

    script: Script
    words: tuple[str, ...]
    replace: str | None = None
    without: frozenset[str] = field(default_factory=frozenset)


def read_words(words: Sequence[str]) -> Request:
    """Part our words from those of SparseML's script.

    Args:
        words: ``[--replace[=ours]] [--without=FIX] SCRIPT ...``; ours may also stand
            behind the script's name.

    Returns:
        What is asked for.

    Raises:
        ValueError: If the script is missing or unknown, or a word of ours is wrong.
    """
    replace, without, left = None, set(), []
    for word in words:
        name, given, value = word.partition("=")
        if name == _REPLACE:
            replace = value if given else MODES[0]
            if replace not in MODES:
                raise ValueError(
                    f"{_REPLACE}={value} is unknown; expected {_REPLACE}, which keeps "
                    f"SparseML's meaning, or {_REPLACE}=ours; write one of them"
                )
        elif name == _WITHOUT:
            without |= set(filter(None, value.split(",")))
        else:
            left.append(word)
    if not left or left[0].startswith("-"):
        raise ValueError(
            f"script={left[0] if left else ''} is missing; expected the name of one of "
            "SparseML's console scripts first; write obert run "
            "sparseml.transformers.train.text_classification --help"
        )
    check_names(without)
    return Request(find_script(left[0]), tuple(left[1:]), replace, frozenset(without))


def prepare(
    request: Request, patch: Callable[[Any, str, Any], None] = setattr
) -> tuple[Callable[[], Any], list[str]]:
    """Register our modifiers, apply the fixes, and import the script.

    Args:
        request: What is asked for.
        patch: Sets an attribute of an object.

    Returns:
        SparseML's function, and the names of the fixes.
    """
    name, without = request.script.module, request.without
    applied = list(apply_fixes(name, EARLY, without=without, patch=patch))
    import obert_modifiers.modifiers  # noqa: F401  registers the tags

    if request.replace is not None:
        from obert_modifiers.compat.replace import replace_sparseml_modifiers

        replace_sparseml_modifiers(mode=request.replace)
    main = request.script.load()
    applied += apply_fixes(name, LATE, without=without, patch=patch)
    return main, [one.name for one in applied]


def run(words: Sequence[str]) -> Any:
    """Run a script of SparseML in this process.

    Args:
        words: As for :func:`read_words`.

    Returns:
        What the script returns.
    """
    request = read_words(words)
    check_can_run(request.script.module)
    main, applied = prepare(request)
    if os.environ.get("RANK", "0") == "0":
        told = ", ".join(applied) or "none"
        sys.stderr.write(f"obert run: {request.script.name}; fixes: {told}\n")
        if request.replace is not None:
            sys.stderr.write(f"obert run: SparseML's modifiers: {request.replace}\n")
        sys.stderr.flush()
    before = sys.argv
    sys.argv = [request.script.name, *request.words]
    try:
        return main()
    finally:
        sys.argv = before
