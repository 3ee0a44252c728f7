"""Recipes: read them, say everything that is wrong with them, build their modifiers.

Light: a recipe's text is read below the modifiers, which this does not import.
"""

from typing import TYPE_CHECKING, Any

from obert_modifiers.recipe.problems import Problem, RecipeError, nearest

if TYPE_CHECKING:
    from obert_modifiers.recipe.load import LoadedRecipe, from_modifiers, load_recipe

__all__ = [
    "LoadedRecipe",
    "Problem",
    "RecipeError",
    "from_modifiers",
    "load_recipe",
    "nearest",
]


def __getattr__(name: str) -> Any:
    """Import what needs the modifiers on first use."""  # noqa: DOC201, DOC501
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from obert_modifiers.recipe import load

    return getattr(load, name)
