"""Find the recipes that are shipped with the package."""

import difflib
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """List the shipped recipes, without ``.yaml``."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Find a shipped recipe, in a checkout and in an installed wheel.

    The name may end in ``.yaml``.
    """
    stem = name.removesuffix(".yaml")
    names = recipe_names()
    if stem not in names:
        near = difflib.get_close_matches(stem, names) or names
        raise FileNotFoundError(
            f"recipe={name!r} is not shipped; expected one of the recipes in {RECIPES};"
            f" use {', '.join(near) or 'a path to a file'}"
        )
    return RECIPES / f"{stem}.yaml"
