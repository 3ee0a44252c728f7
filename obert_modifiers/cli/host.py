"""The host of ``obert``'s commands: ours, without the seconds of SparseML's import."""

import re
from collections.abc import Sequence
from pathlib import Path

from obert_modifiers import host

_TAG = re.compile(r"!(?:pytorch\.)?(\w+)")


def settle_host(words: Sequence[str]) -> None:
    """Choose our host, unless a recipe names a modifier that only SparseML has.

    Recipes are the files that the words name, and those of the runs that they name.
    """
    if words[:1] == ["run"]:
        return  # a script of SparseML's
    needed = set(host.ONLY_SPARSEML)
    replaced = any(word.startswith("--replace") for word in words)
    if replaced or words[:2] == ["recipe", "convert"]:
        from obert_modifiers.compat.replace_tables import TABLES

        needed -= set(TABLES)
    if needed.isdisjoint(tag for word in words for tag in _TAG.findall(_text_of(word))):
        host.prefer(host.OWN)


def _text_of(word: str) -> str:
    """Return the text of the recipe that a word names, else an empty one."""
    if "\n" in word:
        return word
    name = word.partition("=")[2] if word.startswith("--") else word
    try:
        path = Path(name).expanduser()
        path = path / "recipe.yaml" if path.is_dir() else path
        if path.suffix.lower() in (".yaml", ".yml", ".md") and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError, RuntimeError):  # no path at all
        pass
    return ""
