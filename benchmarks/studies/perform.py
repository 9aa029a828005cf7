"""Runs the nodes of a recipe in one process, evaluated on the split that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def perform_recipe(content: Mapping[str, Any], out: Path, task: Any, seed: int, split: str) -> dict[str, Any] | None:
    """The recipe's jobs by the names of their nodes, all finished; None if one diverged. What is finished in `out` is not run again.

    Args:
        task: the opened data, or None to open them.
    """
    from meristem.errors import MeristemError
    from meristem.recipes.node import has_finished
    from meristem.recipes.nodes.perform import perform
    from meristem.recipes.plan import jobs_of_seed
    from meristem.recipes.specs.schema import parse_recipe
    from meristem.recipes.tasks import open_task
    from meristem.recipes.training.guards import diverged

    recipe = parse_recipe(dict(content))
    task = task or open_task(recipe.data)
    jobs: dict[str, Any] = jobs_of_seed(recipe, out, task.fingerprint, seed, split)  # type: ignore[arg-type]
    for job in jobs.values():
        if has_finished(job.directory):
            continue
        job.save()
        try:
            perform(job.directory, task)
        except MeristemError:
            if not diverged(job.directory):
                raise
            return None
    return jobs
