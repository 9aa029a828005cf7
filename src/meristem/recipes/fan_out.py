"""Submits the nodes of a graph to an executor, each as soon as its parents have finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from meristem.errors import MeristemError
from meristem.recipes.executors import Executor
from meristem.recipes.node import Job, has_finished
from meristem.recipes.nodes.perform import NodeCrashed
from meristem.recipes.pages.table import NodeTable

REFRESH_SECONDS = 0.5


def fan_out(jobs: Sequence[Job], executor: Executor, failed: dict[str, str] | None = None) -> dict[str, str]:
    """Run all jobs, and show them in one live table. A node that fails stops only the nodes that depend on
    it.

    Args:
        jobs: jobs that have not finished, in the order of the table.
        executor: where they run.
        failed: a dictionary into which failures are written when they occur.

    Returns:
        The messages of the nodes that failed for good, by the names of their directories.
    """
    waiting, running = {job.directory.name: job for job in jobs}, dict[Future[None], Job]()
    failed = {} if failed is None else failed
    table = NodeTable(jobs, failed)
    with executor, table:
        while waiting or running:
            for name, job in list(waiting.items()):
                if any(parent in failed for parent in job.parents):
                    failed[name] = "not run: a parent failed"
                    del waiting[name]
                elif all(map(has_finished, job.parent_directories)):
                    running[_submitted(executor, job)] = waiting.pop(name)
                    table.submitted.add(name)
            if not running:
                time.sleep(REFRESH_SECONDS)  # a parent's result has not reached this machine yet
            done, _ = wait(running, REFRESH_SECONDS, FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                try:
                    future.result()
                except (MeristemError, NodeCrashed) as error:
                    failed[job.directory.name] = str(error)
            table.refresh()
    return failed


def _submitted(executor: Executor, job: Job) -> Future[None]:
    """The future of a job. If the executor refuses it (a node that needs more than there is), only this node
    fails.
    """
    try:
        return executor.submit(job)
    except MeristemError as error:
        refused: Future[None] = Future()
        refused.set_exception(error)
        return refused
