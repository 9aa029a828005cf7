"""Numbers of a train node that are chosen before it runs, in a recipe file."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meristem.recipes.specs.data_specs import Count, Strict


class OnSpec(Strict):
    """How numbers are tuned: on `seeds` that no result uses, and with a shorter budget if `tokens` or
    `examples` is given. The data are the split `tune`.
    """

    seeds: Annotated[list[int], Field(min_length=1)] = [100, 101]
    tokens: Count | None = None
    examples: Count | None = None


class TuneSpec(BaseModel):
    """A grid for each number to choose, by its key ("learning_rate", "subnetwork.full_model"), and how they
    are tried (`on`, see `recipes.tune`).
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)
    on: OnSpec = OnSpec()

    @model_validator(mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        """Accept a bare `on`, which YAML 1.1 reads as a truth value."""
        return {("on" if key is True else key): own for key, own in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _grids(self) -> TuneSpec:
        if not self.grids:
            raise ValueError("tune needs a list of numbers for a key, for example learning_rate: [1e-3, 2e-3, 4e-3]")
        for key, values in self.grids.items():
            numbers = isinstance(values, list) and all(_is_number(value) for value in values)
            if not numbers or len(values) < 2 or sorted(set(map(float, values))) != [float(v) for v in values]:
                raise ValueError(f"tune: {key} needs at least two rising numbers, got {values!r}")
        return self

    @property
    def grids(self) -> dict[str, list[float]]:
        """The numbers to try by key, in rising order."""
        return dict(self.__pydantic_extra__ or {})


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
