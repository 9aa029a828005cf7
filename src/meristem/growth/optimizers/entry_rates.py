"""Entries of one tensor that step differently: some not at all, some with a separate learning rate and
warm-up.

An optimizer handles whole tensors only. So the gradient of held entries is set to zero before anything reads
it (clipping, averages over processes, moments). After each step of any optimizer, the weights and the moments
of held entries are restored. Weight decay and the momentum of earlier training therefore do not change them
either. The steps of other entries are multiplied by a factor.

torch calls the two hooks below around every optimizer step of the process. They look for parameters that are
registered here, and cost nothing for others. For parameters with held or scaled entries they keep a copy of
the weights (and moments) during the step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from meristem.growth.optimizers.block_steps import begin_anew
from meristem.growth.tensors.dtensors import as_part, local


@dataclass
class EntryRates:
    """How the entries of one parameter step.

    Attributes:
        held: bool, with the shape of this process's part of it: entries that do not change. None if there are
            none.
        fresh: bool: entries whose steps are multiplied by `ratio`, after a warm-up over their first `warmup`
            steps. None if there are none.
        reset: whether the moments of fresh entries are set to zero at the next step.
        step: how many steps have been taken.
    """

    held: Tensor | None = None
    fresh: Tensor | None = None
    ratio: float = 1.0
    warmup: int = 0
    reset: bool = False
    step: int = 0
    handles: list[Any] = field(default_factory=list)

    def follow(self, parameter: Tensor) -> None:
        """Move the masks to the device of the parameter."""
        self.held = self.held if self.held is None else self.held.to(parameter.device)
        self.fresh = self.fresh if self.fresh is None else self.fresh.to(parameter.device)

    @property
    def factor(self) -> float:
        """The factor of the next step of fresh entries."""
        return self.ratio * min(1.0, (self.step + 1) / self.warmup if self.warmup else 1.0)


_RATES: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> EntryRates
_HOOKS: list[Any] = []


@dataclass
class _Step:
    """An optimizer step in progress.

    Args:
        frame: the frame of torch's code that takes the step. If it is gone, the step raised an error.
        outermost: whether it is not part of the step of another optimizer, as one around another.
        before: (its rates, tensor, its earlier value, whether it is a weight).
    """

    frame: FrameType
    outermost: bool
    before: list[tuple[EntryRates, Tensor, Tensor, bool]] = field(default_factory=list)


_STEPS: list[_Step] = []  # the innermost last


def rates_of(parameter: nn.Parameter) -> EntryRates:
    """The rates of a parameter, for the caller to change. New rates change nothing."""
    if not _HOOKS:
        _HOOKS.extend([register_optimizer_step_pre_hook(_before), register_optimizer_step_post_hook(_after)])
    if parameter not in _RATES:
        _RATES[parameter] = EntryRates()
    return _RATES[parameter]


def known_rates(parameters: Iterable[nn.Parameter]) -> list[EntryRates]:
    """The rates of those of the parameters that have any."""
    return [_RATES[parameter] for parameter in parameters if parameter in _RATES]


def hold(parameter: nn.Parameter, held: Tensor) -> None:
    """Keep the entries unchanged, bit for bit, where `held` (bool, with the shape of the whole parameter) is
    true.
    """
    rates = rates_of(parameter)
    rates.held = local(as_part(held.to(parameter.device), parameter))

    def mask(gradient: Tensor) -> Tensor:
        rates.follow(gradient)
        assert rates.held is not None
        return rates.held

    def clear(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(mask(gradient), 0)

    def clear_part(sharded: Tensor) -> None:
        assert sharded.grad is not None
        local(sharded.grad).masked_fill_(mask(sharded), 0)

    for handle in rates.handles:
        handle.remove()
    is_sharded = hasattr(parameter, "full_tensor")  # its gradient is put into place by FSDP, not by autograd
    handle = parameter.register_post_accumulate_grad_hook(clear_part) if is_sharded else parameter.register_hook(clear)
    rates.handles = [handle]


def forget(parameter: nn.Parameter) -> None:
    """Let the whole parameter step again."""
    if parameter in _RATES:
        for handle in _RATES[parameter].handles:
            handle.remove()
        del _RATES[parameter]


def _before(optimizer: Optimizer, *_: Any) -> None:
    caller = sys._getframe(1)
    running, frame = set(), caller.f_back
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    _STEPS[:] = [step for step in _STEPS if step.frame in running]
    step = _Step(caller, outermost=not _STEPS)
    _STEPS.append(step)
    with torch.no_grad():
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            rates = _RATES.get(parameter)
            if rates is not None and parameter.grad is not None:
                _keep(optimizer, parameter, rates, step)


def _keep(optimizer: Optimizer, parameter: Tensor, rates: EntryRates, step: _Step) -> None:
    """Set the gradients of held entries to zero, and keep what has to be restored after the step."""
    assert parameter.grad is not None
    rates.follow(parameter)
    if rates.reset and rates.fresh is not None and rates.step == 0:
        begin_anew(optimizer, parameter, rates.fresh)
    if rates.held is not None:
        local(parameter.grad).masked_fill_(rates.held, 0)
        moments = [v for v in optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor)]
        alike = [v for v in moments if v.shape == parameter.shape]
        step.before.extend((rates, local(v), local(v).clone(), False) for v in alike)
    if rates.held is not None or (rates.fresh is not None and rates.factor != 1):
        step.before.append((rates, local(parameter), local(parameter).clone(), True))


def _after(optimizer: Optimizer, *_: Any) -> None:
    caller = sys._getframe(1)
    step = next((step for step in _STEPS if step.frame is caller), None)
    if step is None:
        return
    del _STEPS[_STEPS.index(step) :]
    with torch.no_grad():
        for rates, tensor, before, is_weight in step.before:
            if step.outermost and is_weight and rates.fresh is not None and rates.factor != 1:
                tensor.copy_(torch.where(rates.fresh, before + rates.factor * (tensor - before), tensor))
            if rates.held is not None:
                tensor.copy_(torch.where(rates.held, before, tensor))
    if not step.outermost:
        return  # the step around this one scales, and is counted
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        rates = _RATES.get(parameter)
        if rates is not None and parameter.grad is not None:
            rates.step += 1
