"""Separate step counts for blocks of a tensor that have trained for fewer steps than the rest of it.

Adam in torch keeps one count for each parameter, and divides its moments by 1 - beta^count. After a fusion
that count is right for the blocks of the parents. It is wrong for the cross blocks, whose moments begin at
zero: their first step would be (1 - beta1) / sqrt(1 - beta2) times as long as it should be, 3.2 times with
the usual betas. So the state also keeps, for every entry, how many of the counted steps it has missed. A hook
after each step corrects the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from meristem.growth.tensors.dtensors import local, whole

MISSED = "missed_steps"  # in an optimizer's state, shaped like the parameter
FORGOTTEN = 1e-8  # a bias correction that is this close to 1 is none any more


def count_blocks_apart(optimizer: Optimizer) -> None:
    """Make Adam divide the moments of each entry by the correction for the number of steps of that entry.

    It holds for all later steps. If the state contains no missed steps, nothing changes. They are dropped
    when they make no difference any more. `fuse_optimizer` calls this function. Call it yourself after a
    saved state is loaded.

    Args:
        optimizer: an optimizer with `betas` and `eps` in its groups (Adam, AdamW). Others keep no such
            counts.
    """
    counting = _COUNTING.setdefault(optimizer, _Counting())
    for parameter, entries in optimizer.state.items():
        if MISSED in entries:
            counting.counts[parameter] = float(entries["step"])
            counting.longest[parameter] = float(whole(entries[MISSED].max()))
    if not counting.hooked:
        optimizer.register_step_post_hook(_correct_all)
        counting.hooked = True


@torch.no_grad()
def begin_anew(optimizer: Optimizer, parameter: Tensor, mask: Tensor) -> None:
    """Set the moments of some entries of a parameter to zero, and count their steps from here.

    Args:
        optimizer: the optimizer of the parameter.
        parameter: the parameter.
        mask: the entries: bool, with the shape of the part of the parameter that this process has.
    """
    entries = optimizer.state.get(parameter, {})
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and key != MISSED:
            local(value).masked_fill_(mask, 0)
    if "step" not in entries or "exp_avg_sq" not in entries or "betas" not in optimizer.param_groups[0]:
        return  # nothing divides by a correction for the number of steps
    if MISSED not in entries:
        entries[MISSED] = torch.zeros_like(entries["exp_avg"], dtype=torch.float32)
    local(entries[MISSED]).masked_fill_(mask, float(entries["step"]))
    count_blocks_apart(optimizer)


@dataclass
class _Counting:
    """For one optimizer: the count of each parameter after its last step, and the most steps that one of its
    entries has missed.
    """

    counts: dict[Tensor, float] = field(default_factory=dict)
    longest: dict[Tensor, float] = field(default_factory=dict)
    hooked: bool = False


_COUNTING: WeakKeyDictionary[Optimizer, _Counting] = WeakKeyDictionary()


def _correct_all(optimizer: Optimizer, *_: Any) -> None:
    counting = _COUNTING.setdefault(optimizer, _Counting())  # a copy of an optimizer keeps its hooks, not its counts
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            if MISSED not in entries:
                continue
            count = float(entries["step"])
            if parameter not in counting.longest:  # its state was loaded after the hook was set
                counting.longest[parameter] = float(whole(entries[MISSED].max()))
            if count != counting.counts.get(parameter):  # a step that a gradient scaler left out moved nothing
                _correct(parameter, entries, group, count)
            counting.counts[parameter] = count
            if max(group["betas"]) ** (count - counting.longest[parameter]) < FORGOTTEN:
                del entries[MISSED]


@torch.no_grad()
def _correct(parameter: Tensor, entries: dict[str, Tensor], group: dict[str, Any], count: float) -> None:
    """Undo the step with the count of the whole tensor, and take the step with the count of each entry."""
    beta1, beta2 = group["betas"]
    missed = entries[MISSED].to(entries["exp_avg"].dtype)
    second = entries.get("max_exp_avg_sq", entries["exp_avg_sq"])

    def step(by_first: Tensor | float, by_second: Tensor | float) -> Tensor:
        return entries["exp_avg"] / by_first / ((second / by_second).sqrt() + group["eps"])

    own = count - missed
    made = step(1 - beta1**count, 1 - beta2**count)
    due = step(-torch.expm1(own * math.log(beta1)), -torch.expm1(own * math.log(beta2)))
    parameter -= group["lr"] * torch.where(missed > 0, due - made, 0).to(parameter.dtype)
