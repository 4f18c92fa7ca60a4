"""The recipe: one YAML file that says everything about a distillation."""

from distill.recipe.load import load_recipe, recipe_schema
from distill.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "recipe_schema"]
