"""Step counts of their own for blocks of a tensor that have been trained for fewer steps than the rest of it.

torch's Adam keeps one count for each parameter, and divides its moments by 1 - beta^count. After a fusion that count is right for the
blocks that came from the parents and wrong for the cross blocks, whose moments begin at zero: their first step would be
(1 - beta1) / sqrt(1 - beta2) times as long as it should be, 3.2 times with the usual betas. So beside its moments the state keeps, for
every entry, how many of the count's steps it has missed, and a hook behind each step corrects the difference.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from meristem.growth.dtensors import whole

MISSED = "missed_steps"  # in an optimizer's state, shaped like the parameter
FORGOTTEN = 1e-8  # a bias correction that is this close to 1 is none any more


def count_blocks_apart(optimizer: Optimizer) -> None:
    """Let every later step of an Adam divide each entry's moments by the correction for its own number of steps.

    Where the state names no missed steps, nothing changes; it drops them once they make no difference. `fuse_optimizer` has called
    this; call it yourself where a saved state has been loaded.

    Args:
        optimizer: with `betas` and `eps` in its groups (Adam, AdamW); others keep no such counts.
    """
    behind = {p: entries for p, entries in optimizer.state.items() if MISSED in entries}
    counts = {p: float(entries["step"]) for p, entries in behind.items()}
    longest = {p: float(whole(entries[MISSED].max())) for p, entries in behind.items()}

    def correct(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                entries = optimizer.state.get(parameter, {})
                if MISSED not in entries:
                    continue
                count = float(entries["step"])
                if count != counts[parameter]:  # a step that a gradient scaler left out moved nothing
                    _correct(parameter, entries, group, count)
                counts[parameter] = count
                if max(group["betas"]) ** (count - longest[parameter]) < FORGOTTEN:
                    del entries[MISSED]

    optimizer.register_step_post_hook(correct)


@torch.no_grad()
def _correct(parameter: Tensor, entries: dict[str, Tensor], group: dict[str, Any], count: float) -> None:
    """Take back the step of the whole tensor's count, and make that of each entry's own."""
    beta1, beta2 = group["betas"]
    missed = entries[MISSED].to(entries["exp_avg"].dtype)
    second = entries.get("max_exp_avg_sq", entries["exp_avg_sq"])

    def step(by_first: Tensor | float, by_second: Tensor | float) -> Tensor:
        return entries["exp_avg"] / by_first / ((second / by_second).sqrt() + group["eps"])

    own = count - missed
    made = step(1 - beta1**count, 1 - beta2**count)
    due = step(-torch.expm1(own * math.log(beta1)), -torch.expm1(own * math.log(beta2)))
    parameter -= group["lr"] * torch.where(missed > 0, due - made, 0).to(parameter.dtype)
