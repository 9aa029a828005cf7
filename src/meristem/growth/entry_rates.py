"""Entries of one tensor that step differently: some not at all, some with a learning rate and a warm-up of their own.

An optimizer knows whole tensors only. So the gradient of held entries is cleared before anything sees it (clipping, averages over
processes, moments), and around each step of any optimizer the weights and the moments of held entries are put back: weight decay and
the momentum of earlier training do not reach them either. Other entries step by a factor: their step is made, and scaled.

torch calls the two hooks below around every optimizer step of the process; they look for parameters that are entered here, and cost
nothing for others. For those with held or scaled entries they keep a copy of the weights (and moments) while the step is made.
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

from meristem.growth.block_steps import begin_anew
from meristem.growth.dtensors import as_part, local


@dataclass
class EntryRates:
    """How the entries of one parameter step.

    Attributes:
        held: bool, shaped like this process's part of it: entries that stay as they are; None: none.
        fresh: bool: entries that step `ratio` times as far, from their first step on over `warmup` steps rising to that; None: none.
        reset: whether the moments of fresh entries begin at zero when the next step is made.
        step: how many steps have been made.
    """

    held: Tensor | None = None
    fresh: Tensor | None = None
    ratio: float = 1.0
    warmup: int = 0
    reset: bool = False
    step: int = 0
    handles: list[Any] = field(default_factory=list)

    def follow(self, parameter: Tensor) -> None:
        """The masks lie where the parameter lies by now."""
        self.held = self.held if self.held is None else self.held.to(parameter.device)
        self.fresh = self.fresh if self.fresh is None else self.fresh.to(parameter.device)

    @property
    def factor(self) -> float:
        """By what the next step of fresh entries is multiplied."""
        return self.ratio * min(1.0, (self.step + 1) / self.warmup if self.warmup else 1.0)


_RATES: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter -> EntryRates
_HOOKS: list[Any] = []


@dataclass
class _Step:
    """An optimizer step that is being made.

    Args:
        frame: torch's, which makes it; a step that raised is known by its frame being gone.
        outermost: whether no other optimizer's step makes this one, as one around another does.
        before: (its rates, tensor, as it was, is it a weight).
    """

    frame: FrameType
    outermost: bool
    before: list[tuple[EntryRates, Tensor, Tensor, bool]] = field(default_factory=list)


_STEPS: list[_Step] = []  # the innermost last


def rates_of(parameter: nn.Parameter) -> EntryRates:
    """The rates of a parameter, to be changed by the caller; new ones change nothing."""
    if not _HOOKS:
        _HOOKS.extend([register_optimizer_step_pre_hook(_before), register_optimizer_step_post_hook(_after)])
    if parameter not in _RATES:
        _RATES[parameter] = EntryRates()
    return _RATES[parameter]


def known_rates(parameters: Iterable[nn.Parameter]) -> list[EntryRates]:
    """The rates of those of the parameters that have any."""
    return [_RATES[parameter] for parameter in parameters if parameter in _RATES]


def hold(parameter: nn.Parameter, held: Tensor) -> None:
    """From now on, entries where `held` (bool, shaped like the whole parameter) is true stay as they are, bit by bit."""
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
    """Let a parameter step as a whole again."""
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
    """Clears what held entries would step by, and keeps what has to be there afterwards."""
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
