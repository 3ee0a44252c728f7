"""Write an old recipe in the keys of our modifiers, with a comment on each change."""

from pathlib import Path
from typing import NamedTuple

from obert_modifiers.compat.replace import replaced
from obert_modifiers.compat.replace_translation import SAME
from obert_modifiers.recipe.load import load_recipe, loads
from obert_modifiers.recipe_text.outline import outline
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.replacing import rewritten, translation_of
from obert_modifiers.recipe_text.text import compose, read_source
from obert_modifiers.recipe_text.values import Resolver


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
        text = read_source(source)
        parts = outline(text, compose(text))
        values = [one.values for one in Resolver(parts, {}).settings]
        found = []
        for node, keys in zip(parts.modifiers, values, strict=True):
            translate = translation_of(node.name)
            found.append((node, translate(keys) if translate else None))
    new = rewritten(text.text, found, values)
    if not loads(new, len(found)):
        new = loaded.text
    count = sum(one is not None for _, one in found)
    return Converted(new, count, loaded.changes)
