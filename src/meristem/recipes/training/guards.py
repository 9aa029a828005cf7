"""What ends a run that has gone wrong, before it is kept as a result."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback

from meristem.checkpoints.write import write_json
from meristem.errors import MeristemError, first_line

DIVERGED = "diverged.json"
UNWRITTEN = (
    "No space left",
    "Disk quota exceeded",
    "Read-only file system",
    "PytorchStreamWriter",
)  # of errors of several kinds


class Diverged(MeristemError):
    """A loss that is no number, or one that jumps. Another attempt would end the same way."""


class LossGuard(TrainerCallback):
    """Ends a run whose loss is not finite, before anything of it is saved, and says at which step and what is left.

    Losses are looked at on their own device; they are read, which waits for it, only where the run logs, evaluates or saves.
    """

    def __init__(self, label: str, directory: Path) -> None:
        self.label, self.directory = label, directory
        (directory / DIVERGED).unlink(missing_ok=True)  # of an attempt before
        self._worst: Tensor | None = None  # the first step whose loss is not finite; infinity without one

    def see(self, loss: Tensor, step: int) -> None:
        """A micro-batch's loss in optimizer step `step` (from 1)."""
        now = torch.where(torch.isfinite(loss.detach()), math.inf, float(step))
        self._worst = now if self._worst is None else torch.minimum(self._worst, now)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = (
            control.should_save or control.should_evaluate or control.should_log or state.global_step == state.max_steps
        )
        if due and self._worst is not None and math.isfinite(worst := float(self._worst)):
            self.end(int(worst), "training loss is no finite number")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        for name, value in (metrics or {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                self.end(state.global_step, "evaluation loss is no finite number")

    def end(self, step: int, what: str) -> None:
        """Raises Diverged, and leaves its step and the last good checkpoint in the node's directory."""
        good = last_whole_checkpoint(self.directory / "trainer")
        write_json(self.directory / DIVERGED, {"step": step, "checkpoint": good})
        left = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        raise Diverged(f"{self.label} diverged: its {what} at step {step}; {left}")


def diverged(directory: Path) -> bool:
    """Whether the node of this directory has ended that way."""
    return (directory / DIVERGED).exists()


def last_whole_checkpoint(directory: Path) -> str | None:
    """The latest checkpoint of a Trainer whose trainer state, which is written last, can be read."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, json.JSONDecodeError):  # a kill came between its files
            continue
    return None


@contextlib.contextmanager
def full_disk(label: str, directory: Path) -> Iterator[None]:
    """Within this context, a checkpoint that the system cannot write is said in one sentence.

    Raises:
        MeristemError: in place of the errors of safetensors (its own), torch.save (a RuntimeError) and files.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        if not any(words in str(error) for words in UNWRITTEN):
            raise
        raise MeristemError(
            f"{label}: {directory} cannot be written ({first_line(error)}); make room and run the same command again to continue"
        ) from error
