"""A run that ends when it no longer gets better on the split that numbers are chosen by; never on the one that results are reported on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from meristem.recipes.spikes import attributes_of

if TYPE_CHECKING:
    from meristem.recipes.guard_specs import EarlyStopSpec


class EarlyStop(TrainerCallback, ExportableState):
    """At each evaluation the loss on the split `tune` is measured too; after `patience` evaluations that are not better by `min_delta` than the
    best one, the run ends, with the weights that it then has. Best, count and step are saved with every checkpoint.

    Args:
        spec: the options.
        examples: of the split `tune`.
    """

    def __init__(self, spec: EarlyStopSpec, examples: Dataset) -> None:
        self.spec, self.examples, self.trainer = spec, examples, None
        self.best, self.waited, self.judged, self.stopped = math.inf, 0, -1, None

    trainer: Any
    stopped: int | None  # the step at which the run ended

    def state(self) -> dict[str, Any]:
        best = self.best if math.isfinite(self.best) else None
        return {"args": {}, "attributes": {
            "best": best, "waited": self.waited, "judged": self.judged, "stopped": self.stopped,
        }}  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, value in attributes_of(state, self).items():
            setattr(self, name, math.inf if name == "best" and value is None else value)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step <= self.judged:  # a run that resumes is evaluated once more where it stood
            return
        self.judged = state.global_step
        loader = self.trainer.get_eval_dataloader(self.examples)
        measured = self.trainer.evaluation_loop(loader, "tune", prediction_loss_only=True, metric_key_prefix="tune")
        loss = measured.metrics["tune_loss"]
        state.log_history[-1]["tune_loss"] = loss
        if loss < self.best - self.spec.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited >= self.spec.patience:
            self.stopped, control.should_training_stop = state.global_step, True


def stopped_at(checkpoint: str | None) -> int | None:
    """The step at which the run of this checkpoint had ended early, if it had."""
    if checkpoint is None:
        return None
    saved = json.loads((Path(checkpoint) / "trainer_state.json").read_text()).get("stateful_callbacks", {})
    return saved.get(EarlyStop.__name__, {}).get("attributes", {}).get("stopped")
