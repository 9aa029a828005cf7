"""Steps whose loss jumps are left out, or end the run. The window of losses is saved with every checkpoint,
so a resumed run decides in the same way.
"""

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
    """Compares the loss of each optimizer step with those before it, as OLMo 2's optimizer does (OLMo et al.
    2025, arXiv:2501.00656, section 3.1). A spike is more than `sigma` standard deviations above the mean of
    the last `window` steps. Every loss joins the window, also that of a spike, so that a run whose loss has
    really risen continues after some steps.

    Args:
        spec: the options.
        reduce: a function that averages a scalar over all processes.
        end: a function that ends the run, given a step and a reason.
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
        """Add the share of a micro-batch to the loss of the step."""
        self._now = loss.detach() if self._now is None else self._now + loss.detach()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if self._now is None:
            return
        loss, step, self._now = float(self._reduce(self._now)), state.global_step + 1, None
        if not math.isfinite(loss):
            return  # the LossGuard ends the run
        if self.is_spike(loss):
            if self.spec.action == "end":
                self._end(
                    step,
                    f"training loss is {loss:.4g}, over {self.spec.sigma:g} deviations above {fmean(self.losses):.4g},",
                )
            self.skipped.append(step)
            for group in plain_optimizer(optimizer).param_groups:
                for parameter in group["params"]:
                    parameter.grad = (
                        None  # an optimizer skips parameters without a gradient, including moments and decay
                    )
        self.losses.append(loss)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is a spike. It is never one before the window is full."""
        full = len(self.losses) == self.spec.window
        return full and loss > fmean(self.losses) + self.spec.sigma * pstdev(self.losses)


def attributes_of(state: Any, callback: TrainerCallback) -> Mapping[str, Any]:
    """The attributes that this callback saved in the checkpoint from which a run resumes. They are empty in a
    new run.
    """
    saved = state.stateful_callbacks.get(type(callback).__name__, {})
    return saved.get("attributes", {}) if isinstance(saved, Mapping) else {}
