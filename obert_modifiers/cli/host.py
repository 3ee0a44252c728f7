"""The host of ``obert``'s commands: ours, without the seconds of SparseML's import."""

import re
from collections.abc import Sequence
from pathlib import Path

from obert_modifiers import host

_SUFFIXES = (".yaml", ".yml", ".md")
_TAG = re.compile(r"!(?:pytorch\.)?(\w+)")


def settle_host(words: Sequence[str]) -> None:
    """Choose our host, unless a recipe names a modifier that only SparseML has.

    Recipes are the files that the words name, and those of the runs that they name.
    """
    if words[:1] == ["run"]:
        return  # a script of SparseML's
    needed = set(host.ONLY_SPARSEML)
    if words[:2] == ["recipe", "convert"] or any(w[:9] == "--replace" for w in words):
        from obert_modifiers.compat.replace_tables import TABLES

        needed -= set(TABLES)
    found = {tag for word in words for tag in _TAG.findall(_recipe_of(word))}
    if not needed & found:
        host.prefer(host.OWN)


def _recipe_of(word: str) -> str:
    """Return the text of the recipe that a word names, else an empty one."""
    if "\n" in word:
        return word
    path = Path(word.partition("=")[2] if word[:2] == "--" else word).expanduser()
    try:
        path = path / "recipe.yaml" if path.is_dir() else path
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # no path at all
        pass
    return ""
