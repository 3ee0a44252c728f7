"""Recipes: read them, say everything that is wrong with them, build their modifiers."""

from typing import Any

from obert_modifiers.recipe.problems import Problem, RecipeError, nearest

__all__ = [
    "LoadedRecipe",
    "Problem",
    "RecipeError",
    "from_modifiers",
    "load_recipe",
    "nearest",
]


def __getattr__(name: str) -> Any:
    """Import on first use what needs modifiers, which need a host that reads texts."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from obert_modifiers.recipe import load

    return getattr(load, name)
