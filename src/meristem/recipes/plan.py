"""From a recipe to its jobs."""

from __future__ import annotations

from pathlib import Path

from meristem.recipes.node import Job
from meristem.recipes.specs.schema import Recipe
from meristem.recipes.tasks.task import Split


def plan_jobs(recipe: Recipe, out: Path, fingerprint: str) -> list[Job]:
    """Every node of every seed, parents first."""
    jobs: list[Job] = []
    for seed in recipe.seeds:
        jobs += jobs_of_seed(recipe, out, fingerprint, seed).values()
    return jobs


def jobs_of_seed(recipe: Recipe, out: Path, fingerprint: str, seed: int, split: Split = "eval") -> dict[str, Job]:
    """Every node of one seed, parents first.

    Args:
        split: the split on which the nodes are evaluated.
    """
    own: dict[str, Job] = {}
    for name in recipe.order():
        node = recipe.nodes[name]
        parents, keep = [own[parent] for parent in node.parents], recipe.branching_steps(name)
        own[name] = Job.of(
            out, name, seed, node, recipe.data, fingerprint, parents, split, keep, recipe.steps_between(name)
        )
    return own
