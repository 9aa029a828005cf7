"""A decay that branches off from a train node, in a recipe file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from meristem.recipes.specs.data_specs import Count, Strict
from meristem.recipes.specs.train_spec import DecayShape, TrainSpec


class DecaySpec(Strict):
    """The end of a run with a stable learning rate. It branches off after `at` tokens (or examples, as in the
    budget of the run). Its learning rate falls to zero over further `tokens` or `examples` in the form
    `shape`. Everything else is as in the run.
    """

    from_: str = Field(alias="from")
    at: Count
    tokens: Count | None = None
    examples: Count | None = None
    shape: DecayShape = "1-sqrt"
    evaluations: Annotated[int, Field(gt=0)] = 5

    @model_validator(mode="after")
    def _one_budget(self) -> DecaySpec:
        if (self.tokens is None) == (self.examples is None):
            raise ValueError("give either `tokens` or `examples`: how much to decay over")
        return self

    def check(self, run: TrainSpec) -> None:
        """Check that it can branch off this run.

        Raises:
            ValueError: if it cannot.
        """
        if not run.is_stable:
            falls = "" if run.decay is None else f", decay: {run.decay}"
            raise ValueError(
                f"decays {self.from_!r}, whose learning rate falls by itself (schedule: {run.schedule}{falls}); a "
                "decay branches off a run with `schedule: wsd, decay: 0` or `schedule: constant_with_warmup`"
            )
        given, budget = ("examples", run.examples) if run.examples else ("tokens", run.tokens)
        assert budget is not None
        if (self.examples is None) != (run.examples is None):
            raise ValueError(f"decays {self.from_!r}, whose budget is in {given}; give {given} here too")
        if not run.warmup * budget <= self.at <= budget:
            raise ValueError(
                f"branches off at {self.at:,} {given}; {self.from_!r} is stable from {run.warmup * budget:,.0f} to {budget:,}"
            )
        if run.distill:
            raise ValueError(
                f"decays {self.from_!r}, which learns from {run.distill.teacher!r}; give that node `schedule: wsd` with a decay of its own"
            )
        if run.early_stop:
            raise ValueError(f"decays {self.from_!r}, whose end is not known (early_stop)")
        if run.majority or run.incubate:
            raise ValueError(
                f"decays {self.from_!r}, which trains {'kernels' if run.majority else 'a module'}, and that ends with its own run"
            )

    def as_train(self, run: TrainSpec) -> TrainSpec:
        """The training of this decay, as a train node that starts from the run's model."""
        content = run.model_dump(by_alias=True, exclude_none=True)
        for key in ("model", "subnetwork", "keep_every", "tune", "tokens", "examples"):
            content.pop(key, None)
        budget = {"examples": self.examples} if self.examples else {"tokens": self.tokens}
        own = {
            "schedule": "wsd",
            "warmup": 0.0,
            "decay": 1.0,
            "decay_shape": self.shape,
            "evaluations": self.evaluations,
        }
        return TrainSpec.model_validate({**content, **own, **budget, "from": self.from_})
