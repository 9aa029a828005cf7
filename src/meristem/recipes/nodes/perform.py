"""Runs one node in this process. Every executor starts `python -m meristem.recipes DIRECTORY` (see
`__main__.py`).

A node is idempotent. If it has finished, it does not run again. If it was killed, it resumes from its last
checkpoint. A lock on its directory lets only one process work in it, so that a process that an executor has
abandoned cannot disturb the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from meristem.errors import MeristemError
from meristem.orphans import environment_of_child
from meristem.recipes import status
from meristem.recipes.code import code_revision
from meristem.recipes.node import CHECKPOINTS, Job, NodeResult, has_finished
from meristem.recipes.sharding import is_first_process
from meristem.recipes.tasks import Task, open_task

COMMAND = "meristem.recipes"  # python -m


class NodeCrashed(Exception):
    """The process of a node ended unexpectedly. Another attempt resumes from its last checkpoint."""


def perform(directory: Path, task: Task | None = None, callbacks: Sequence[Any] = ()) -> None:
    """Run the node of this directory under its lock, unless it has finished.

    Args:
        directory: the directory of the node.
        task: the task of its recipe, if it is already open.
        callbacks: further TrainerCallbacks for a train node.

    Raises:
        MeristemError: for bad input, or if the data or the code differ from those with which the run was
            planned.
        NodeCrashed: if one of the node's several processes crashed.
    """
    job = Job.load(directory)
    if job.revision != code_revision():
        raise MeristemError(
            f"{job.label} was planned by another revision of Meristem's code ({job.revision[:8]}, here {code_revision()[:8]}); start the "
            "run again, with the same code on all machines"
        )
    with FileLock(directory / ".lock"):  # released by the system when the process ends, however it ends
        if has_finished(directory):
            return
        status.begin(directory)
        if job.node.resources.processes == 1:
            finish(job, task, callbacks)
        elif callbacks:
            raise MeristemError(f"{job.label}: callbacks stay in this process, so they need `processes: 1`")
        else:
            _in_processes(job)


def finish(job: Job, task: Task | None = None, callbacks: Sequence[Any] = ()) -> None:
    """Do the work and write the result, in one process or in each process that torchrun started."""
    from meristem.recipes.nodes.work import work

    outcome = work(job, lambda: task or _checked_task(job), callbacks)
    if is_first_process():
        NodeResult.of(job, outcome).save(job.directory)
        shutil.rmtree(job.directory / CHECKPOINTS, ignore_errors=True)  # not earlier: until then it can be resumed


def _checked_task(job: Job) -> Task:
    task = open_task(job.data)
    if task.fingerprint != job.fingerprint:
        raise MeristemError(
            f"{job.label}: {job.data.source!r} is not the same data on this machine as where the run was planned; "
            "give a file that all machines share"
        )
    return task


def _in_processes(job: Job) -> None:
    """Run the node in several processes on this machine, by torchrun (DDP, or as `trainer` says).

    Raises:
        MeristemError: for bad input.
        NodeCrashed: if torchrun ends with an error.
    """
    command = [sys.executable, "-m", f"{COMMAND}.launch", str(job.node.resources.processes), str(job.directory)]
    environment = {"OMP_NUM_THREADS": "1", **environment_of_child()}
    with subprocess.Popen(command, env=environment, start_new_session=True) as group:
        try:
            code = group.wait()
        except BaseException:
            os.killpg(group.pid, signal.SIGKILL)
            raise
    if code and not has_finished(job.directory):
        said = status.error_of(job.directory)
        raise MeristemError(said) if said else NodeCrashed(f"{job.label}: torchrun ended with code {code}, see above")
