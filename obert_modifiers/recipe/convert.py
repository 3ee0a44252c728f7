"""Write an old recipe in the keys of our modifiers, with a comment on each change."""

from dataclasses import dataclass
from pathlib import Path

from obert_modifiers.compat.replace import replaced
from obert_modifiers.compat.replace_translation import SAME
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe_text.outline import outline
from obert_modifiers.recipe_text.problems import Problem, RecipeError
from obert_modifiers.recipe_text.replacing import rewritten, translation_of
from obert_modifiers.recipe_text.text import compose, read_source
from obert_modifiers.recipe_text.values import Resolver


@dataclass(frozen=True)
class Converted:
    """A recipe in its new form; it loads without anything replaced.

    `changes` are what means something else now, with lines of the old recipe.
    """

    text: str
    modifiers: int
    changes: tuple[Problem, ...]


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
        settings = Resolver(parts, {}).settings
        found = []
        for node, one in zip(parts.modifiers, settings, strict=True):
            translate = translation_of(one.name)
            values = {k: v for k, v in one.values.items() if k != "log_types"}
            found.append((node, translate(values) if translate else None))
    new = rewritten(text.text, found, [one.values for one in settings])
    try:
        load_recipe(new)
    except RecipeError:  # a modifier in brackets, or one that shares values by an alias
        new = loaded.text
    count = sum(one is not None for _, one in found)
    return Converted(new, count, loaded.changes)
