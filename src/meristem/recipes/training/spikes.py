"""Steps whose loss jumps: left out, or the end of the run. The window of losses is saved with every checkpoint, so a resumed run judges alike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from meristem.recipes.training.left import plain_optimizer

if TYPE_CHECKING:
    from meristem.recipes.specs.guard_specs import SpikesSpec


class Spikes(TrainerCallback, ExportableState):
    """Compares the loss of each optimizer step with those before it, as OLMo 2's optimizer does (OLMo et al. 2025, arXiv:2501.00656, section
    3.1): more than `sigma` standard deviations above the mean of the last `window` steps is a spike. Every loss joins the window, a spike's too,
    so that a run which has really got worse goes on after a while.

    Args:
        spec: the options.
        reduce: the mean of a scalar over all processes.
        end: ends the run, at a step and for a reason.
    """

    def __init__(self, spec: SpikesSpec, reduce: Callable[[Tensor], Tensor], end: Callable[[int, str], None]) -> None:
        self.spec, self._reduce, self._end = spec, reduce, end
        self.losses: deque[float] = deque(maxlen=spec.window)
        self.skipped: list[int] = []
        self._now: Tensor | None = None

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"losses": list(self.losses), "skipped": self.skipped}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = attributes_of(state, self)
        self.losses.extend(saved.get("losses", []))
        self.skipped = list(saved.get("skipped", []))

    def see(self, loss: Tensor) -> None:
        """A micro-batch's share of the step's loss."""
        self._now = loss.detach() if self._now is None else self._now + loss.detach()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self._now is None:
            return
        loss, step, self._now = float(self._reduce(self._now)), state.global_step + 1, None
        if not math.isfinite(loss):
            return  # the guard of numbers ends the run
        if self.is_spike(loss):
            if self.spec.action == "end":
                self._end(
                    step,
                    f"training loss is {loss:.4g}, over {self.spec.sigma:g} deviations above {fmean(self.losses):.4g},",
                )
            self.skipped.append(step)
            for group in plain_optimizer(optimizer).param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # an optimizer leaves alone what has no gradient, moments and decay included
        self.losses.append(loss)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss stands out of the window, once that is full."""
        full = len(self.losses) == self.spec.window
        return full and loss > fmean(self.losses) + self.spec.sigma * pstdev(self.losses)


def attributes_of(state: Any, callback: TrainerCallback) -> Mapping[str, Any]:
    """What this callback had saved in the checkpoint that a run resumes from; nothing in a new run."""
    saved = state.stateful_callbacks.get(type(callback).__name__, {})
    return saved.get("attributes", {}) if isinstance(saved, Mapping) else {}
