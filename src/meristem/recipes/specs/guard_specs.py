"""Options that end a training early or skip a step, in a recipe file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from meristem.recipes.specs.data_specs import Strict

Positive = Annotated[float, Field(gt=0)]


class EarlyStopSpec(Strict):
    """End a run after `patience` evaluations whose loss on the split `tune` is not lower than the best one by
    `min_delta`.
    """

    patience: Annotated[int, Field(gt=0)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class SpikesSpec(Strict):
    """Handle a step whose loss is more than `sigma` standard deviations above the mean of the last `window`
    steps. `action` is `skip` to leave out the step, or `end` to end the node.
    """

    sigma: Positive = 6.0
    window: Annotated[int, Field(gt=1)] = 128
    action: Literal["skip", "end"] = "skip"
