"""Adam's missed steps in transformers' own Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from meristem.growth.block_steps import count_blocks_apart
from meristem.growth.optimizer import unwrapped


class MissedStepsCallback(TrainerCallback):
    """Lets fresh entries of tensors that are otherwise old count their own steps, where a grown checkpoint is resumed.

        Trainer(model=model, ..., callbacks=[ms.MissedStepsCallback()]).train(resume_from_checkpoint="OUT")

    The Trainer loads what the checkpoint says about them (`missed_steps` in the optimizer's state), and no Adam reads it by
    itself: without this the first step of such entries is up to 3.2 learning rates long. Where the state names none, nothing
    changes.
    """

    def on_train_begin(self, args, state, control, optimizer: Any = None, **kwargs) -> None:
        if optimizer is not None:
            count_blocks_apart(unwrapped(optimizer))
