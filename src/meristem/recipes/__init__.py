"""Recipes: graphs of runs whose nodes are checkpoints."""

from typing import TYPE_CHECKING

from meristem.lazily import load_when_used

if TYPE_CHECKING:
    from meristem.recipes.race import race
    from meristem.recipes.run import run
    from meristem.recipes.specs.schema import Recipe

load_when_used(
    __name__,
    {
        "race": "meristem.recipes.race",
        "run": "meristem.recipes.run",
        "Recipe": "meristem.recipes.specs.schema",
    },
)

__all__ = ["Recipe", "race", "run"]
