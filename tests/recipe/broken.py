"""What a row in the tables of broken recipes is."""

from dataclasses import dataclass

import pytest

from obert_modifiers.recipe import RecipeError, load_recipe


@dataclass(frozen=True)
class Broken:
    """A recipe and everything that is wrong with it."""

    name: str
    text: str
    problems: tuple[str, ...]
    args: object = None


def problems_of(source, recipe_args=None) -> list[str]:
    """Load a broken recipe; return the lines of its error."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, recipe_args)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return str(caught.value).split("\n")
