"""Run one of SparseML's own scripts with our modifiers and the fixes it needs."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from obert_modifiers.sparseml_cli.fixes import EARLY, LATE, apply_fixes, check_names
from obert_modifiers.sparseml_cli.scripts import find_script
from obert_modifiers.sparseml_cli.stacks import check_can_run

MODES = ("same", "ours")


@dataclass(frozen=True)
class Request:
    """What a command line asks for: SparseML's script, its words, our options."""

    script: EntryPoint
    words: tuple[str, ...]
    replace: str | None
    without: set[str]


def read_words(words: Sequence[str]) -> Request:
    """Part our words, ``--replace[=ours]`` and ``--without=FIX``, from the script's."""
    replace: str | None = None
    without: set[str] = set()
    left: list[str] = []
    for word in words:
        name, given, value = word.partition("=")
        if name == "--replace":
            replace = value if given else MODES[0]
            if replace not in MODES:
                raise ValueError(
                    f"--replace={value} is unknown; expected --replace, which keeps "
                    "SparseML's meaning, or --replace=ours; write one of them"
                )
        elif name == "--without":
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
    return Request(find_script(left[0]), tuple(left[1:]), replace, without)


def run(words: Sequence[str]) -> Any:
    """Run a script of SparseML in this process; return what it returns.

    Our modifiers are registered and early fixes applied before it is imported.
    """
    request = read_words(words)
    script, without = request.script, request.without
    check_can_run(script.module)
    applied = list(apply_fixes(script.module, EARLY, without=without))
    import obert_modifiers.modifiers  # noqa: F401  registers the tags

    if request.replace is not None:
        from obert_modifiers.compat.replace import replace_sparseml_modifiers

        replace_sparseml_modifiers(mode=request.replace)
    main = script.load()
    applied += apply_fixes(script.module, LATE, without=without)
    if os.environ.get("RANK", "0") == "0":
        told = ", ".join(one.name for one in applied) or "none"
        sys.stderr.write(f"obert run: {script.name}; fixes: {told}\n")
        if request.replace is not None:
            sys.stderr.write(f"obert run: SparseML's modifiers: {request.replace}\n")
        sys.stderr.flush()
    before = sys.argv
    sys.argv = [script.name, *request.words]
    try:
        return main()
    finally:
        sys.argv = before
