"""What ends a training early, or leaves out a step, in a recipe file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from meristem.recipes.specs.data_specs import Strict

Positive = Annotated[float, Field(gt=0)]


class EarlyStopSpec(Strict):
    """End a run after `patience` evaluations whose loss on the split `tune` is not lower by `min_delta` than the best one's."""

    patience: Annotated[int, Field(gt=0)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class SpikesSpec(Strict):
    """What becomes of a step whose loss is over `sigma` standard deviations above the mean of the last `window` steps: it is left out
    (`skip`), or ends the node (`end`)."""

    sigma: Positive = 6.0
    window: Annotated[int, Field(gt=1)] = 128
    action: Literal["skip", "end"] = "skip"
