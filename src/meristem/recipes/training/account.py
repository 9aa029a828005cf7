"""What a run has cost, and what came of it."""

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
    """Costs after each optimizer step.

    Args:
        flops: after each step, from 0 on.
    """

    def __init__(self, spec: TrainSpec, task: Task, flops: Sequence[int], stopwatch: Stopwatch) -> None:
        self.spec, self.task, self.flops, self.stopwatch = spec, task, flops, stopwatch

    def at(self, step: int) -> dict[str, float]:
        """Examples, tokens, FLOPs and seconds up to this step."""
        read = step * self.spec.batch_size
        costs = {"step": step, "examples": read, "tokens": read * self.task.tokens_per_example}
        return {**costs, "flops": self.flops[step], "seconds": self.stopwatch.seconds}

    def curve(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """One point for each evaluation of the Trainer's log, the last where a resume has repeated one."""
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
        """What a run of so many steps hands to its `NodeResult`; its metrics are those of the weights that it leaves, of step `left` or of its end."""
        curve = self.curve(history)
        point = next((point for point in curve if point["step"] == left), curve[-1])
        metrics = {name: point[name] for name in MEASURED if name in point and name.startswith("eval")}
        costs = {key: value for key, value in self.at(steps).items() if key != "step"}
        return {**costs, "metrics": metrics, "curve": curve, "details": details}


def saved_parameters(model: nn.Module, modifiers: Sequence[Modifier]) -> int:
    """Of the network that a run leaves, given the one that is trained."""
    for modifier in reversed(modifiers):
        model = modifier.saved_as(model)
    return sum(parameter.numel() for parameter in model.parameters())
