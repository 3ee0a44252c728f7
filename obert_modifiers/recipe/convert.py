"""Write an old recipe in the keys of our modifiers, with a comment on each change."""

from pathlib import Path
from typing import NamedTuple

from obert_modifiers.compat.replace import replaced
from obert_modifiers.compat.replace_translation import SAME
from obert_modifiers.recipe.load import load_recipe, rewrite
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.text import read_source


class Converted(NamedTuple):
    """A recipe in its new form; it loads without anything replaced."""

    text: str
    modifiers: int  # how many were rewritten
    changes: tuple[Problem, ...]  # of meaning, with lines of the old recipe


def convert_recipe(source: str | Path, mode: str = SAME) -> Converted:
    """Rewrite the modifiers of SparseML's that ours stand in for.

    Variables and ``eval(...)`` stay where a value stays the same, and so does
    everything outside of those modifiers; of ``.md`` files only the recipe is left.
    Raises `RecipeError` with everything that is wrong or not supported.
    """
    with replaced(mode):
        loaded = load_recipe(source)
    new = rewrite(read_source(source), loaded.written)
    count = sum(one.translated is not None for one in loaded.written)
    return Converted(loaded.text if new is None else new, count, loaded.changes)
