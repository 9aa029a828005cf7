"""The nodes of a recipe at which a network grows."""

from __future__ import annotations

from meristem.errors import MeristemError, nearest
from meristem.recipes.specs.schema import Recipe


def check_grows(recipe: Recipe, node: str) -> None:
    """Check that the node of this name grows or fuses networks.

    Raises:
        MeristemError: if there is no such node, or if it does something else.
    """
    if node not in recipe.nodes:
        raise MeristemError(f"no node {node!r} in this recipe; {nearest(node, recipe.nodes)}")
    spec = recipe.nodes[node]
    if not (spec.grow or spec.fuse):
        raise MeristemError(f"{node!r} is a {spec.kind} node; diagnose needs one that grows or fuses")
