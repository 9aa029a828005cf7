"""The progress of a running node: a small file in its directory, which tables and pages read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from transformers import TrainerCallback

from meristem.checkpoints.write import write_json

FILE, ERROR = "status.json", "error.txt"
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Status:
    """The number of the attempt, the host, and for a train node its steps and its present losses."""

    attempt: int
    host: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)  # evaluations so far: step, flops, eval_loss


def begin(directory: Path) -> None:
    """Record that an attempt at the node begins."""
    before = read(directory)
    (directory / ERROR).unlink(missing_ok=True)
    write_json(directory / FILE, asdict(Status((before.attempt if before else 0) + 1, socket.gethostname())))


def read(directory: Path) -> Status | None:
    """The node's status, or None if no attempt has begun."""
    try:
        return Status(**json.loads((directory / FILE).read_text()))
    except FileNotFoundError:
        return None


def write_error(directory: Path, message: str) -> None:
    """Write the reason why the node cannot run."""
    (directory / ERROR).write_text(message)


def error_of(directory: Path) -> str | None:
    """The message that `write_error` wrote in the last attempt."""
    file = directory / ERROR
    return file.read_text() if file.exists() else None


class StatusFile(TrainerCallback):
    """Keeps the status of a train node up to date, at most once a second.

    Args:
        flops: the FLOPs of the node's training after each step.
    """

    def __init__(self, directory: Path, flops: Sequence[int] = ()) -> None:
        self.directory, self.status, self.flops = directory, read(directory), flops
        self.written = 0.0

    def _note(self, at_once: bool, state, **changes) -> None:
        if self.status is None or not state.is_world_process_zero:
            return
        self.status = replace(self.status, **changes)
        if at_once or time.monotonic() - self.written > EVERY_SECONDS:
            write_json(self.directory / FILE, asdict(self.status))
            self.written = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._note(False, state, step=state.global_step, steps=state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self._note(False, state, loss=float(logs["loss"]))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        curve = [
            {"step": step, "flops": self.flops[step], "eval_loss": loss}
            for step, loss in losses.items()
            if step < len(self.flops)
        ]
        eval_loss = (metrics or {}).get("eval_loss")
        self._note(True, state, step=state.global_step, steps=state.max_steps, eval_loss=eval_loss, curve=curve)
