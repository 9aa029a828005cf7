"""One live table of all nodes of a run: waiting, queued, running (step, losses), done, failed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

from meristem.recipes import status
from meristem.recipes.node import Job, has_finished

State = Literal["waiting", "queued", "running", "done", "failed"]
COLOURS = {"waiting": "dim", "queued": "yellow", "running": "cyan", "done": "green", "failed": "red"}


class NodeTable:
    """Shows the nodes of a run. It reads the files in their directories, so it shows nodes on any machine. If
    stderr is not a terminal, it prints a line for each change of a node's state.

    Args:
        jobs: the jobs in the order of the rows.
        failed: the messages of failed nodes, by directory name. The caller keeps it up to date.
    """

    def __init__(self, jobs: Sequence[Job], failed: Mapping[str, str]) -> None:
        self.jobs, self.failed = jobs, failed
        self.submitted: set[str] = set()
        self._before = {job.directory.name: status.read(job.directory) for job in jobs}  # of runs that were killed
        self._shown: dict[str, State] = {}
        self._live = Live(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> NodeTable:
        if self._live is not None:
            self._live.start()
        self.refresh()
        return self

    def __exit__(self, *error: object) -> None:
        self.refresh()
        if self._live is not None:
            self._live.stop()

    def state(self, job: Job) -> State:
        name = job.directory.name
        if name in self.failed:
            return "failed"
        if has_finished(job.directory):
            return "done"
        if name not in self.submitted:
            return "waiting"
        return "running" if status.read(job.directory) != self._before[name] else "queued"

    def refresh(self) -> None:
        """Show the present states."""
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            return
        for job in self.jobs:
            state = self.state(job)
            if state != self._shown.get(job.directory.name, "waiting"):
                said = self.failed.get(job.directory.name)
                print(f"{job.label}: {state}" + (f", {said}" if said else ""), file=sys.stderr, flush=True)
            self._shown[job.directory.name] = state

    def render(self) -> Table:
        """The table."""
        table = Table("node", "seed", "state", "step", "loss", "eval loss", "attempt", "host")
        for job in self.jobs:
            state = self.state(job)
            cells = _cells(status.read(job.directory) if state not in ("waiting", "queued") else None)
            table.add_row(job.name, str(job.seed), f"[{COLOURS[state]}]{state}", *cells)
        return table


def _cells(known: Any) -> tuple[str, ...]:
    if known is None:
        return ("",) * 5
    step = f"{known.step}/{known.steps}" if known.steps else ""
    loss, eval_loss = ("" if value is None else f"{value:.4f}" for value in (known.loss, known.eval_loss))
    return step, loss, eval_loss, str(known.attempt), known.host
