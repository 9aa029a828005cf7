"""The callbacks of every train node: the time of its steps, and the optimizer state with which it begins."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from meristem.growth.optimizers.block_steps import count_blocks_apart
from meristem.growth.optimizers.optimizer import State, load_named_state
from meristem.growth.optimizers.optimizer_families import family_of
from meristem.recipes.training.left import plain_optimizer


class Stopwatch(TrainerCallback):
    """The seconds in training steps, without evaluation and saving. They are kept in the log, so a resumed
    run continues the count.
    """

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.seconds = next((e["train_seconds"] for e in reversed(state.log_history) if "train_seconds" in e), 0.0)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        state.log_history[-1]["train_seconds"] = self.seconds


class CarriedState(TrainerCallback):
    """Begins a run with the optimizer state of a grown network. It is loaded when the run begins, since
    sharding exchanges the parameters before that. A resumed run has its own state.

    Args:
        asked_for: whether the recipe requests it (`optimizer: carry`). Otherwise, an optimizer of another
            kind than the one that left the state begins without it.
    """

    def __init__(self, initial_state: State, *, asked_for: bool = True) -> None:
        self.initial_state, self.asked_for = initial_state, asked_for

    def on_train_begin(self, args, state, control, model: Any = None, optimizer: Any = None, **kwargs) -> None:
        family = family_of(plain_optimizer(optimizer))
        if not self.asked_for and not all(family.takes(entries) for entries in self.initial_state.values()):
            return
        if state.global_step == 0:
            load_named_state(plain_optimizer(optimizer), model, self.initial_state)
        else:
            count_blocks_apart(plain_optimizer(optimizer))
