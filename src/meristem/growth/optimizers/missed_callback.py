"""Adam's missed steps in the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from meristem.growth.optimizers.block_steps import count_blocks_apart
from meristem.growth.optimizers.optimizer import unwrapped


class MissedStepsCallback(TrainerCallback):
    """Let fresh entries count their own steps when a grown checkpoint is resumed, in tensors whose other
    entries are old.

        trainer = Trainer(model=model, ..., callbacks=[ms.MissedStepsCallback()])
        trainer.train(resume_from_checkpoint="OUT")

    The Trainer loads the steps that such entries have missed (`missed_steps` in the state of the optimizer),
    but Adam does not read them. Without this callback their first step is up to 3.2 learning rates long. If
    the state contains no missed steps, nothing changes.
    """

    def on_train_begin(self, args, state, control, optimizer: Any = None, **kwargs) -> None:
        if optimizer is not None:
            count_blocks_apart(unwrapped(optimizer))
