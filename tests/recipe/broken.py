"""What a row in the tables of broken recipes is."""

from dataclasses import dataclass

import pytest

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe_text.problems import Problem, RecipeError


@dataclass(frozen=True)
class Broken:
    """A recipe and everything that is wrong with it, as :func:`brief` has it."""

    name: str
    text: str
    problems: tuple[str, ...]
    args: object = None


def brief(problem: Problem) -> str:
    """Return line, modifier and key, and rule."""
    where = ".".join(part for part in (problem.modifier, problem.key) if part)
    return f"{problem.line} {where or '-'} {problem.fault.rule.name}"


def error_of(source, recipe_args=None) -> RecipeError:
    """Load a broken recipe; return its error."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, recipe_args)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return caught.value


def problems_of(source, recipe_args=None) -> list[str]:
    """Load a broken recipe; return the lines of its error."""
    return str(error_of(source, recipe_args)).split("\n")
