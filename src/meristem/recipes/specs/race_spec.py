"""The `race` section of a recipe file."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from meristem.recipes.specs.data_specs import Strict


class RaceSpec(Strict):
    """The node that challenges, the node that it is compared with, and the metric."""

    challenger: str
    baseline: str
    metric: Literal["eval_loss"] = "eval_loss"

    @model_validator(mode="after")
    def _two(self) -> RaceSpec:
        if self.challenger == self.baseline:
            raise ValueError(f"a race is between two nodes; {self.challenger!r} cannot challenge itself")
        return self
