"""Recipes: read them, say everything that is wrong with them, build their modifiers."""

from obert_modifiers.recipe.load import LoadedRecipe, from_modifiers, load_recipe
from obert_modifiers.recipe_text.problems import Problem, RecipeError

__all__ = ["LoadedRecipe", "Problem", "RecipeError", "from_modifiers", "load_recipe"]
