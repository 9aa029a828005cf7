"""Guards that end a run that has gone wrong, before it is saved as a result."""

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
    """A loss that is not finite or that jumps. Another attempt would end in the same way."""


class LossGuard(TrainerCallback):
    """Ends a run whose loss is not finite, before any of it is saved, and reports the step and the last good
    checkpoint.

    Losses are checked on their own device. The result is read, which waits for the device, only when the run
    logs, evaluates or saves.
    """

    def __init__(self, label: str, directory: Path) -> None:
        self.label, self.directory = label, directory
        (directory / DIVERGED).unlink(missing_ok=True)  # of an earlier attempt
        self._worst: Tensor | None = None  # the first step whose loss is not finite; infinity without one

    def see(self, loss: Tensor, step: int) -> None:
        """Check the loss of a micro-batch in optimizer step `step` (from 1)."""
        now = torch.where(torch.isfinite(loss.detach()), math.inf, float(step))
        self._worst = now if self._worst is None else torch.minimum(self._worst, now)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = (
            control.should_save or control.should_evaluate or control.should_log or state.global_step == state.max_steps
        )
        if due and self._worst is not None and math.isfinite(worst := float(self._worst)):
            self.end(int(worst), "training loss is not finite")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if metrics is not None and not any(name.endswith("loss") for name in metrics):
            raise MeristemError(f"{self.label}: its evaluation at step {state.global_step} measured no loss")
        for name, value in (metrics or {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                self.end(state.global_step, "evaluation loss is not finite")

    def end(self, step: int, what: str) -> None:
        """Write the step and the last good checkpoint to the node's directory, and end the run.

        Raises:
            Diverged: always.
        """
        good = last_whole_checkpoint(self.directory / "trainer")
        write_json(self.directory / DIVERGED, {"step": step, "checkpoint": good})
        left = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
        raise Diverged(f"{self.label} diverged: its {what} at step {step}; {left}")


def diverged(directory: Path) -> bool:
    """Whether the node of this directory ended because its loss was not finite or jumped."""
    return (directory / DIVERGED).exists()


def last_whole_checkpoint(directory: Path) -> str | None:
    """The latest checkpoint of a Trainer with a readable trainer state, which is written last."""
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
    """Within this context, a checkpoint that cannot be written gives one sentence.

    Raises:
        MeristemError: in place of the errors of safetensors (its own), torch.save (a RuntimeError) and files.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, OSError) as error:
        if not any(words in str(error) for words in UNWRITTEN):
            raise
        raise MeristemError(
            f"{label}: {directory} cannot be written ({first_line(error)}); free some space there and run the same command again to continue"
        ) from error
