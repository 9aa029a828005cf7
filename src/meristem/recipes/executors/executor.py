"""The interface of executors: run the command of a node, several at a time, and run it again if it
crashes.
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from meristem.errors import MeristemError
from meristem.orphans import environment_of_child
from meristem.recipes import status
from meristem.recipes.node import Job
from meristem.recipes.nodes.perform import COMMAND, NodeCrashed

LOG = "log.txt"
BAD_INPUT = 2  # exit code: another attempt would end the same way


class Executor(ABC):
    """A context in which jobs are submitted. Leaving it ends the jobs that still run."""

    @abstractmethod
    def __enter__(self) -> Executor: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    @abstractmethod
    def submit(self, job: Job) -> Future[None]:
        """Run a job whose parents have finished. The future raises MeristemError for bad input. It raises
        `NodeCrashed` if the node crashed more often than the executor's `retries`.
        """


def with_retries(attempt: Callable[[], None], retries: int, over: Callable[[], bool]) -> None:
    """Call `attempt`, and again after each of up to `retries` crashes, unless `over()` is true."""
    for number in range(retries + 1):
        try:
            return attempt()
        except NodeCrashed:
            if over() or number == retries:
                raise


def check_count(name: str, value: object, least: int) -> None:
    """Check a whole number.

    Raises:
        MeristemError: unless `value` is a whole number of at least `least`.
    """
    if not isinstance(value, int) or value < least:
        raise MeristemError(f"{name} is a whole number of at least {least}, got {value!r}")


def run_node(
    directory: str,
    environment: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> None:
    """Run the node of this directory in its own process on this machine. Its output goes to its `log.txt`.
    The process ends when the calling process ends.

    Raises:
        MeristemError: for bad input, with which another attempt would fail again.
        NodeCrashed: for every other end except success.
    """
    place = Path(directory)
    with open(place / LOG, "ab") as log:
        command = [sys.executable, "-m", COMMAND, directory]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment_of_child(environment))
        started(process)
        code = process.wait()
    if code == BAD_INPUT:
        raise MeristemError(status.error_of(place) or _last_line(place / LOG))
    if code != 0:
        raise NodeCrashed(f"{place.name} ended with code {code}: {_last_line(place / LOG)} (all of it: {place / LOG})")


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
