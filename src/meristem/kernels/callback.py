"""Majority Kernels in transformers' own Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from meristem.kernels.majority import mix_kernels


class MajorityCallback(TrainerCallback):
    """Draws the combinations of every optimizer step of a Trainer; evaluation is of the mean.

        Trainer(model=ms.majority(model, kernels=3), ..., callbacks=[ms.MajorityCallback()])

    The draw follows `state.global_step`, so gradient accumulation, resumed runs and all processes agree. Train first, then
    `ms.deploy(trainer.model).save_pretrained(...)`: a checkpoint of the Trainer holds all kernels.
    """

    def on_step_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        mix_kernels(model, state.global_step, state.max_steps)
