"""A Slurm cluster, through submitit."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from meristem.errors import MeristemError, first_line
from meristem.recipes.executors.executor import Executor, check_count, run_node, with_retries
from meristem.recipes.node import Job
from meristem.recipes.nodes.perform import NodeCrashed


class Slurm(Executor):
    """Nodes as Slurm jobs, each with the CPUs and GPUs in its `resources`. All machines need access to the
    directory of the run.

    A job that is preempted or reaches its time limit is queued again and resumes from its last checkpoint.

    Args:
        folder: the directory for submitit's scripts and logs, on a disk that all machines can access.
        cluster: "slurm", or submitit's "local" for processes on this machine, to test a recipe.
        retries: the number of further attempts for a node that crashed.
        timeout_min: the limit of each attempt, in minutes.
        parameters: further parameters of submitit (slurm_partition, slurm_account, mem_gb, ...).
    """

    def __init__(
        self,
        folder: str | Path = "slurm",
        cluster: str = "slurm",
        retries: int = 2,
        timeout_min: int = 24 * 60,
        poll_seconds: float = 2.0,
        **parameters: Any,
    ) -> None:
        check_count("retries", retries, 0)
        check_count("timeout_min", timeout_min, 1)
        self.folder, self.cluster, self.retries = Path(folder), cluster, retries
        self.timeout_min, self.poll_seconds, self.parameters = timeout_min, poll_seconds, parameters

    def __enter__(self) -> Slurm:
        try:
            import submitit
        except ImportError as error:
            raise MeristemError("the executor slurm needs: pip install 'meristem-nn[slurm]'") from error
        try:
            self._executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            self._executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        except Exception as error:
            raise MeristemError(f"submitit cannot use cluster {self.cluster!r}: {first_line(error)}") from error
        self._pool, self._one_at_a_time = ThreadPoolExecutor(max_workers=1024), threading.Lock()
        self._jobs, self._over = set(), False
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        for job in list(self._jobs):
            job.cancel()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, job: Job) -> Future[None]:
        return self._pool.submit(with_retries, lambda: self._attempt(job), self.retries, lambda: self._over)

    def _attempt(self, job: Job) -> None:
        wanted = job.node.resources
        own = {"cpus_per_task": wanted.cpus, "gpus_per_node": wanted.gpus, "tasks_per_node": 1}
        with self._one_at_a_time:
            self._executor.update_parameters(name=job.directory.name, **own)
            submitted = self._executor.submit(Attempt(), str(job.directory.absolute()))
        self._jobs.add(submitted)
        try:
            while not submitted.done():
                time.sleep(self.poll_seconds)
            self._hand_on(submitted, job)
        finally:
            self._jobs.discard(submitted)

    def _hand_on(self, submitted: Any, job: Job) -> None:
        try:
            said = submitted.result()
        except Exception as error:  # submitit's own, for a job that left no result
            raise NodeCrashed(f"{job.directory.name}: {first_line(error)}") from error
        if said:
            kind, message = said
            raise (MeristemError if kind == "input" else NodeCrashed)(message)


class Attempt:
    """The function that runs in the Slurm job. It is queued again when Slurm takes its machine away."""

    def __call__(self, directory: str) -> tuple[str, str] | None:
        try:
            run_node(directory)
        except MeristemError as error:
            return "input", str(error)
        except NodeCrashed as error:
            return "crash", str(error)
        return None

    def checkpoint(self, directory: str) -> Any:
        """submitit calls this before a preemption or at the time limit. The checkpoints of the node hold its
        state.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, directory)
