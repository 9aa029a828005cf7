"""`--processes ray`: ranks write their share of the files as tasks of a Ray cluster."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meristem.cli.output import Answer
from meristem.errors import MeristemError, first_line

if TYPE_CHECKING:
    from meristem.checkpoints.shares import Processes

ASKED = re.compile(r"^ray(?::([0-9]+))?$")


def wants_ray(processes: str | Processes | None) -> bool:
    """Whether `--processes` is ray or ray:N."""
    return isinstance(processes, str) and ASKED.match(processes) is not None


def on_ray(processes: str, grow: Callable[[Any], Answer], asked: Any) -> Answer:
    """The answer of `grow` as rank 0, in this process.

    The other ranks are tasks of the cluster at RAY_ADDRESS, or of one that is started here. If the worker or
    the machine of a task dies, the task is started again, and writes the files that do not exist yet.

    Args:
        processes: "ray" for as many ranks as the cluster has CPUs, or "ray:N".
        grow: a function that runs one rank of a request, which names the processes that write
            (`asked.processes`).
        asked: the request.

    Raises:
        MeristemError: without Ray or a cluster, and with the error of a rank that fails.
    """
    from meristem.checkpoints.shares import Processes
    from meristem.recipes.executors.ray import cluster

    found = ASKED.match(processes)
    number = int(found[1]) if found and found[1] else None
    if number == 0:
        raise MeristemError("--processes ray:N takes a number of at least 1, got 0")
    with cluster() as (ray, _):
        count = number or max(1, int(ray.cluster_resources().get("CPU", 1)))
        elsewhere = functools.partial(as_rank, grow, seen_from_elsewhere(asked))
        remote: Any = ray.remote(_rank).options(num_cpus=1, max_retries=-1, retry_exceptions=False)
        tasks = [remote.remote(elsewhere, Processes(count, rank)) for rank in range(1, count)]
        try:
            return as_rank(grow, asked, Processes(count, 0, watch=lambda: _check(ray, tasks)))
        finally:
            for task in tasks:
                ray.cancel(task, force=True)


def as_rank(grow: Callable[[Any], Answer], asked: Any, processes: Processes) -> Answer:
    """Run one rank of a request. It is a function of the module, because Ray has to send it."""
    return grow(replace(asked, processes=processes))


def seen_from_elsewhere(asked: Any) -> Any:
    """The same request with absolute paths, for a process that may have another working directory."""
    here = Path(asked.source)
    return replace(asked, out=asked.out.absolute(), source=str(here.absolute()) if here.exists() else asked.source)


def _rank(run: Callable[[Processes], Answer], processes: Processes) -> None:
    run(processes)


def _check(ray: Any, tasks: list[Any]) -> None:
    """Raise the error of a task that has failed.

    Raises:
        MeristemError: with the error of the task.
    """
    done, running = ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
    tasks[:] = running
    for task in done:
        try:
            ray.get(task)
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            raise MeristemError(f"a rank on Ray failed: {first_line(cause)}") from error
