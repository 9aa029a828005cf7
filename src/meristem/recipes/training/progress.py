"""The progress of a train node: a live bar on a terminal, otherwise a line at each evaluation."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressLine(TrainerCallback):
    """Shows the step, the training loss, the evaluation loss and the remaining time of one node."""

    def __init__(self, label: str) -> None:
        self.label, self.loss, self.eval_loss = label, "", ""
        self.live = sys.stderr.isatty()
        self.bar: Progress | None = None
        self.task: Any = None
        self.began = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.live and state.is_world_process_zero:
            columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=state.max_steps, completed=state.global_step, note="")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, note=f"loss {self.loss} eval {self.eval_loss}")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.loss = f"{float(logs['loss']):.3f}"

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        self.eval_loss = f"{(metrics or {}).get('eval_loss', float('nan')):.4f}"
        if not self.live and state.is_world_process_zero:
            spent = time.perf_counter() - self.began
            line = (
                f"{self.label}: step {state.global_step}/{state.max_steps}, eval loss {self.eval_loss}, {spent:.0f} s"
            )
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.stop()
