"""A Ray cluster: a running one, or one that is started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from meristem.errors import MeristemError, first_line
from meristem.recipes.executors.executor import Executor, check_count, run_node
from meristem.recipes.executors.with_parent import children_end_with_this_process
from meristem.recipes.node import Job
from meristem.recipes.nodes.perform import NodeCrashed


@contextlib.contextmanager
def cluster(address: str | None = None, slots: int | None = None) -> Iterator[tuple[Any, bool]]:
    """Connect to a cluster within this context. It yields Ray's module, and whether the connection was made
    here. The arguments are those of `Ray`.

    Raises:
        MeristemError: if Ray is not installed, or if no cluster answers or starts.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster started here: as the other executors run
    try:
        import ray
    except ImportError as error:
        raise MeristemError("ray needs: pip install 'meristem-nn[ray]'") from error
    started = not ray.is_initialized()
    try:
        own: dict[str, Any] = {"address": address} if address else {"num_cpus": slots, "include_dashboard": False}
        if started:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises plain ones too, of a node that does not start in time
        hint = "; if it needs a token: RAY_AUTH_MODE=token" if address else ""
        raise MeristemError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}{hint}") from error
    with children_end_with_this_process() if started and not address else contextlib.nullcontext():
        try:
            yield ray, started
        finally:
            if started:
                ray.shutdown()


class Ray(Executor):
    """Nodes as Ray tasks, each with the CPUs and GPUs in its `resources`. All machines need access to the
    directory of the run.

    Args:
        address: the address of a running cluster ("auto", "HOST:PORT"). By default it is the variable
            RAY_ADDRESS. Without either, a cluster is started on this machine and stopped again.
        slots: the CPUs of a cluster that is started here. By default, all cores.
        retries: the number of further attempts for a node that crashed, or whose worker or machine died.
    """

    def __init__(self, address: str | None = None, slots: int | None = None, retries: int = 2) -> None:
        check_count("retries", retries, 0)
        if slots is not None:
            check_count("slots", slots, 1)
        self.address, self.slots, self.retries = address, slots, retries

    def __enter__(self) -> Ray:
        self._cluster = contextlib.ExitStack()
        self._ray, self._started = self._cluster.enter_context(cluster(self.address, self.slots))
        self._tasks: list[Any] = []
        self._task: Any = self._ray.remote(run_node)
        return self

    def __exit__(self, *error: object) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._cluster.close()

    def submit(self, job: Job) -> Future[None]:
        wanted, has = job.node.resources, self._ray.cluster_resources()
        for kind, count in (("CPU", wanted.cpus), ("GPU", wanted.gpus)):
            if count > has.get(kind, 0):
                raise MeristemError(f"{job.label} needs {count} {kind}s; the whole cluster has {has.get(kind, 0):g}")
        options = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "name": job.label}
        again = {"max_retries": self.retries, "retry_exceptions": [NodeCrashed]}
        task = self._task.options(**options, **again).remote(str(job.directory.absolute()))
        self._tasks.append(task)
        return _plain(task.future())


def _plain(theirs: Future[Any]) -> Future[None]:
    """The same future, with errors as the node raised them instead of Ray's wrappers."""
    ours: Future[None] = Future()

    def hand_on(done: Future[Any]) -> None:
        error: Any = done.exception()
        if error is None:
            ours.set_result(None)
            return
        cause = getattr(error, "cause", None)
        ours.set_exception(cause if isinstance(cause, MeristemError | NodeCrashed) else NodeCrashed(str(error).strip()))

    theirs.add_done_callback(hand_on)
    return ours
