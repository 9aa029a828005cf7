"""Run a recipe: parents first, finished nodes never twice, killed ones from where they stood."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meristem.errors import MeristemError
from meristem.recipes.node import Job, NodeResult, directory_name, has_finished, load_result
from meristem.recipes.perform import NodeCrashed, perform
from meristem.recipes.schema import Recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.task import Split

if TYPE_CHECKING:
    from meristem.recipes.executors import Executor

Results = dict[int, dict[str, NodeResult]]  # seed -> node -> result


def run(recipe: Recipe, out: str | Path, callbacks: Sequence[Any] = (), executor: Executor | None = None) -> Results:
    """Run every node of `recipe` for every seed, under `out`.

    Each node is a directory `out/NAME-sSEED-HASH/` with `model/` and, when it has finished, `node.json`. The hash covers
    the node's options, its data and its parents: change a recipe and only what depends on the change runs again.

    Args:
        callbacks: further TrainerCallbacks for the train nodes; in this process only.
        executor: where nodes run, several at a time (see `recipes.executors`); by default one after the other, in this process.

    Raises:
        MeristemError: for bad input, at once where it can be known before training; and if a node fails for good.
    """
    if executor and callbacks:
        raise MeristemError(
            "callbacks stay in this process, and an executor runs nodes elsewhere; give one or the other"
        )
    task = open_task(recipe.data)
    print(task.description, file=sys.stderr, flush=True)
    jobs = plan_jobs(recipe, Path(out), task.fingerprint)
    waiting = []
    for job in jobs:
        if has_finished(job.directory):
            print(f"{job.label}: done before", file=sys.stderr, flush=True)
        else:
            job.save()
            waiting.append(job)
    if executor is None:
        for job in waiting:
            try:
                perform(job.directory, task, callbacks)
            except NodeCrashed as error:
                raise MeristemError(f"{error}; run the same command again to go on") from error
    elif waiting:
        from meristem.recipes.fan_out import fan_out

        failed = fan_out(waiting, executor)
        if failed:
            said = [f"{name}: {message}" for name, message in failed.items()]
            raise MeristemError(f"{len(failed)} of {len(waiting)} nodes did not finish\n" + "\n".join(said))
    results: Results = {seed: {} for seed in recipe.seeds}
    for job in jobs:
        result = load_result(job.directory)
        assert result is not None
        results[job.seed][job.name] = result
    return results


def plan_jobs(recipe: Recipe, out: Path, fingerprint: str) -> list[Job]:
    """Every node of every seed, parents first."""
    jobs: list[Job] = []
    for seed in recipe.seeds:
        jobs += jobs_of_seed(recipe, out, fingerprint, seed).values()
    return jobs


def jobs_of_seed(recipe: Recipe, out: Path, fingerprint: str, seed: int, split: Split = "eval") -> dict[str, Job]:
    """Every node of one seed, parents first."""
    own: dict[str, Job] = {}
    for name in recipe.order():
        node = recipe.nodes[name]
        parents, keep = [own[parent] for parent in node.parents], recipe.branching_steps(name)
        own[name] = Job.of(out, name, seed, node, recipe.data, fingerprint, parents, split, keep)
    return own


def directory_of(out: Path, result: NodeResult) -> Path:
    return out / directory_name(result.name, result.seed, result.hash)
