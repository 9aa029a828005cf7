"""Runs a recipe: parents first. Finished nodes do not run again, and killed nodes resume."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meristem.checkpoints.source import find_source
from meristem.errors import MeristemError, PreservationError, first_line
from meristem.recipes.node import Job, NodeResult, directory_name, has_finished, load_result
from meristem.recipes.nodes.perform import NodeCrashed, perform
from meristem.recipes.pages.watch import Watch
from meristem.recipes.plan import plan_jobs as plan_jobs
from meristem.recipes.specs.schema import Recipe
from meristem.recipes.tasks import Task, open_task
from meristem.recipes.tune import choose_numbers

if TYPE_CHECKING:
    from meristem.recipes.executors import Executor
    from meristem.recipes.specs.nodes import NodeSpec

Results = dict[int, dict[str, NodeResult]]  # seed -> node -> result


def run(
    recipe: Recipe,
    out: str | Path,
    callbacks: Sequence[Any] = (),
    executor: Executor | None = None,
    watch: bool = False,
) -> Results:
    """Run every node of `recipe` for every seed, under `out`.

    Each node is a directory `out/NAME-sSEED-HASH/` with `model/` and, when it has finished, `node.json`. The
    hash covers the node's options, its data and its parents. After a change of the recipe, only the nodes
    that depend on the change run again. `out/report.html` shows the run, also if it has failed.

    Args:
        recipe: the recipe, as from `load_recipe`.
        out: the directory of the run.
        callbacks: further TrainerCallbacks for the train nodes, only without an executor.
        executor: where nodes run, several at a time (see `recipes.executors`). By default they run one after
            another in this process.
        watch: keep `out/report.html` up to date during the run. The page then reloads itself.

    Returns:
        The results of the nodes, by seed and name.

    Raises:
        MeristemError: for bad input, before training if it can be found then, and if a node fails for good.
        PreservationError: if nodes fail, and only because growths do not keep the function.
    """
    if executor and callbacks:
        raise MeristemError(
            "callbacks stay in this process, and an executor runs nodes elsewhere; give one or the other"
        )
    task, out = open_task(recipe.data), Path(out)
    print(task.description, file=sys.stderr, flush=True)

    def execute(jobs: Sequence[Job]) -> dict[str, str]:
        return _execute(jobs, task, callbacks, executor, {}, set())

    for name in recipe.nodes:
        _check_origin(recipe.nodes[name], name, task)
    recipe = choose_numbers(recipe, out, task.fingerprint, execute)
    jobs = plan_jobs(recipe, out, task.fingerprint)
    open_jobs = sum(not has_finished(job.directory) for job in jobs)
    failed, kinds = dict[str, str](), set[type[Exception]]()
    with Watch(jobs, failed, out, watch):
        _execute(jobs, task, callbacks, executor, failed, kinds)
    if failed:
        said = [f"{name}: {message}" for name, message in failed.items()]
        kind = PreservationError if kinds == {PreservationError} else MeristemError
        raise kind(f"{len(failed)} of {open_jobs} nodes did not finish\n" + "\n".join(said))
    results: Results = {seed: {} for seed in recipe.seeds}
    for job in jobs:
        result = load_result(job.directory)
        assert result is not None
        results[job.seed][job.name] = result
    return results


def _check_origin(node: NodeSpec, name: str, task: Task) -> None:
    """Check the checkpoint or the new network of a node before any other node is trained.

    Raises:
        MeristemError: if the checkpoint is missing, or if the network cannot be built.
    """
    import torch

    train = node.train
    if node.checkpoint:
        find_source(node.checkpoint.source)
    if train is None or train.model is None:
        return
    try:
        with torch.device("meta"):
            task.new_model(train.model, 0)
    except MeristemError:  # some classes may not run without values
        try:
            task.new_model(train.model, 0)
        except MeristemError as error:
            raise MeristemError(f"node {name!r}: {error}") from error


def _execute(
    jobs: Sequence[Job],
    task: Task,
    callbacks: Sequence[Any],
    executor: Executor | None,
    failed: dict[str, str],
    kinds: set[type[Exception]],
) -> dict[str, str]:
    """Run the jobs that have not finished, parents first. The messages of failed nodes are written to
    `failed`, by their directories. A node that fails stops only the nodes that depend on it. `kinds` gets
    the types of the errors of nodes that run in this process.
    """
    waiting = []
    for job in jobs:
        if has_finished(job.directory):
            print(f"{job.label}: done before", file=sys.stderr, flush=True)
        else:
            job.save()
            waiting.append(job)
    if executor is not None:
        from meristem.recipes.fan_out import fan_out

        return fan_out(waiting, executor, failed) if waiting else failed
    for job in waiting:
        if failed.keys() & set(job.parents):
            failed[job.directory.name] = "not run: a parent failed"
            continue
        try:
            perform(job.directory, task, callbacks)
        except NodeCrashed as error:
            kinds.add(type(error))
            said = f"{error}; run the same command again to continue"
        except MeristemError as error:
            kinds.add(type(error))
            said = str(error)
        except ValueError as error:  # of a library, for an option that it refuses
            traceback.print_exc()
            kinds.add(type(error))
            said = f"{job.label}: {first_line(error)}"
        else:
            continue
        failed[job.directory.name] = said
    return failed


def directory_of(out: Path, result: NodeResult) -> Path:
    return out / directory_name(result.name, result.seed, result.hash)
