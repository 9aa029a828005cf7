"""Majority Kernels in the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from meristem.kernels.majority import KEEPS_KERNELS, mix_kernels
from meristem.subnetworks.blocks import unwrapped


class MajorityCallback(TrainerCallback):
    """Draw the combinations of kernels for every optimizer step of a Trainer. Evaluation uses the mean.

        Trainer(model=ms.majority(model, kernels=3), ..., callbacks=[ms.MajorityCallback()])

    The draw follows `state.global_step`, so gradient accumulation, resumed runs and all processes agree.
    During training the checkpoints of the Trainer contain all kernels, so that a run can resume. After
    training, `save_pretrained` writes the deployed network.
    """

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        vars(unwrapped(model))[KEEPS_KERNELS] = True

    def on_train_end(self, args, state, control, model: Any = None, **kwargs) -> None:
        vars(unwrapped(model)).pop(KEEPS_KERNELS, None)

    def on_step_begin(self, args, state, control, model: Any = None, **kwargs) -> None:
        mix_kernels(model, state.global_step, state.max_steps)
