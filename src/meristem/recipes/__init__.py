"""Recipes: graphs of runs whose nodes are checkpoints."""

from meristem.recipes.race import race
from meristem.recipes.run import run
from meristem.recipes.schema import Recipe

__all__ = ["Recipe", "race", "run"]
