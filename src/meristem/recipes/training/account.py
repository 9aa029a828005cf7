"""The costs of a run, and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from meristem.recipes.modifiers import Modifier
from meristem.recipes.specs.train_spec import TrainSpec
from meristem.recipes.tasks import Task
from meristem.recipes.training.callbacks import Stopwatch

MEASURED = ("eval_loss", "eval_accuracy", "tune_loss")


class Account:
    """The costs after each optimizer step.

    Args:
        flops: the FLOPs after each step, from step 0 on.
    """

    def __init__(self, spec: TrainSpec, task: Task, flops: Sequence[int], stopwatch: Stopwatch) -> None:
        self.spec, self.task, self.flops, self.stopwatch = spec, task, flops, stopwatch

    def at(self, step: int) -> dict[str, float]:
        """Examples, tokens, FLOPs and seconds up to this step."""
        read = step * self.spec.batch_size
        costs = {"step": step, "examples": read, "tokens": read * self.task.tokens_per_example}
        return {**costs, "flops": self.flops[step], "seconds": self.stopwatch.seconds}

    def curve(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """One point for each evaluation in the Trainer's log. If a resumed run repeated one, the last
        counts.
        """
        evaluations = {entry["step"]: entry for entry in history if "train_seconds" in entry}
        return [
            {
                **{key: value for key, value in self.at(int(entry["step"])).items() if key != "tokens"},
                "seconds": entry["train_seconds"],
                **{name: entry[name] for name in MEASURED if name in entry},
            }
            for entry in evaluations.values()
        ]

    def outcome(
        self, steps: int, history: Sequence[Mapping[str, Any]], details: dict[str, Any], left: int | None = None
    ) -> dict[str, Any]:
        """The fields of the `NodeResult` of a run of `steps` steps. Its metrics are those of the saved
        weights, which are of step `left` or of the end.
        """
        curve = self.curve(history)
        point = next((point for point in curve if point["step"] == left), curve[-1])
        metrics = {name: point[name] for name in MEASURED if name in point and name.startswith("eval")}
        costs = {key: value for key, value in self.at(steps).items() if key != "step"}
        return {**costs, "metrics": metrics, "curve": curve, "details": details}


def saved_parameters(model: nn.Module, modifiers: Sequence[Modifier]) -> int:
    """The number of parameters of the network that a run saves, given the network that is trained."""
    for modifier in reversed(modifiers):
        model = modifier.saved_as(model)
    return sum(parameter.numel() for parameter in model.parameters())
