"""Early stopping: a run ends when its loss stops falling, and saves its best weights. The loss is that on the
split for choices, never on the one for results.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from meristem.recipes.training.left import MODEL, OPTIMIZER, whole_or_not_at_all
from meristem.recipes.training.spikes import attributes_of

if TYPE_CHECKING:
    from meristem.recipes.specs.guard_specs import EarlyStopSpec

BEST = "best"


class EarlyStop(TrainerCallback, ExportableState):
    """At each evaluation the loss on the split `tune` is measured too. If it is the lowest so far, model and
    optimizer are written to `place`. The run ends after `patience` evaluations that are not lower by
    `min_delta` than the last one that was. The state of the decision is saved with every checkpoint, and the
    best weights before the checkpoint of the same step. A resumed run therefore finds both, or makes both
    again.

    Args:
        spec: the options.
        examples: the examples of the split `tune`.
        place: the directory of the best weights, next to the checkpoints.
        write: a function that writes the present model and optimizer to a directory.
    """

    def __init__(
        self, spec: EarlyStopSpec, examples: Dataset, place: Path, write: Callable[[Any, Any, Path], None]
    ) -> None:
        self.spec, self.examples, self.place, self.write = spec, examples, place, write
        self.best, self.best_at, self.aim, self.waited, self.judged = math.inf, None, math.inf, 0, -1
        self.stopped, self.trainer = None, None

    trainer: Any
    best_at: int | None  # the step whose weights are the best
    stopped: int | None  # the step at which the run ended

    def state(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("best", "best_at", "aim", "waited", "judged", "stopped")}
        return {
            "args": {},
            "attributes": {name: None if value == math.inf else value for name, value in known.items()},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, value in attributes_of(state, self).items():
            setattr(self, name, math.inf if name in ("best", "aim") and value is None else value)

    def on_evaluate(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step <= self.judged:  # a resumed run is evaluated once more at its last step
            return
        self.judged = state.global_step
        loader = self.trainer.get_eval_dataloader(self.examples)
        measured = self.trainer.evaluation_loop(loader, "tune", prediction_loss_only=True, metric_key_prefix="tune")
        loss = measured.metrics["tune_loss"]
        state.log_history[-1]["tune_loss"] = loss
        if loss < self.best:
            self.best, self.best_at = loss, state.global_step
            model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
            with whole_or_not_at_all(self.place, state.is_world_process_zero) as partial:
                self.write(model, optimizer or self.trainer.optimizer, partial)
        if loss < self.aim - self.spec.min_delta:
            self.aim, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited >= self.spec.patience:
            self.stopped, control.should_training_stop = state.global_step, True

    def leave(self, directory: Path) -> None:
        """Copy the best model and its optimizer state into the node's directory."""
        shutil.copytree(self.place / MODEL, directory / MODEL)
        if (self.place / OPTIMIZER).exists():
            shutil.copyfile(self.place / OPTIMIZER, directory / OPTIMIZER)


def stopped_at(checkpoint: str | None) -> int | None:
    """The step at which the run of this checkpoint ended early, or None."""
    if checkpoint is None:
        return None
    saved = json.loads((Path(checkpoint) / "trainer_state.json").read_text()).get("stateful_callbacks", {})
    return saved.get(EarlyStop.__name__, {}).get("attributes", {}).get("stopped")
