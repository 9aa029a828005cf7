"""Grow a network that is sharded over processes (FSDP2, any DTensor layout), with its optimizer, between two
stages.

Every process gathers one tensor at a time, grows it, and keeps its own part of the result. At no time does a
process hold more than one whole tensor. The plan and the proof run on gathered tensors, as for a network that
is streamed from disk. All processes run them in step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import Weights, streamed, weights_of
from meristem.growth.growth import Growth
from meristem.growth.methods.method import Methods
from meristem.growth.optimizers.optimizer import dtypes_of, grow_state, load_named_state, named_state, without_state
from meristem.growth.tensors.build import skeleton
from meristem.growth.tensors.dtensors import as_part, whole


def grow_sharded(
    model: nn.Module,
    method: Methods,
    shard: Callable[[nn.Module], object],
    optimizer: Optimizer | None = None,
    *,
    anatomy: Anatomy | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
    scale_learning_rate: bool = False,
) -> tuple[nn.Module, Optimizer | None]:
    """Make a larger sharded network from `model`, and its optimizer. The model and its optimizer do not
    change.

        def shard(model):
            for block in model.model.layers:
                fully_shard(block)
            fully_shard(model)

        big, optimizer = ms.grow_sharded(small, ms.HyperCloning(width=2), shard, optimizer)

    All processes have to call it in the same way. The results are those of `grow` and `grow_optimizer` in one
    process.

    Args:
        model: a network whose parameters are DTensors, as `fully_shard` makes them.
        method: a growth method, or a list of methods that are applied one after another.
        shard: a function that is applied to the large network while its parameters are on the meta device. It
            calls `fully_shard` on its blocks and on the network.
        optimizer: the optimizer of `model`. Its state grows, as in `grow_optimizer`.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.
        verify: prove that the function is kept, if every method promises it. The proof runs on every process,
            on gathered tensors.
        inputs: keyword arguments of forward for the proof, on the CPU. Random ones by default.
        scale_learning_rate: as for `grow_optimizer`.

    Returns:
        The large network, and its optimizer (None if no optimizer was given).

    Raises:
        MeristemError: as `grow` and `grow_optimizer`.
        PreservationError: if a growth promises to keep the function and does not keep it.
    """
    anatomy = anatomy or Anatomy.of(model)
    growth = Growth.of(_gathered(model, anatomy), method, anatomy=anatomy, verify=verify, inputs=inputs)
    target, weights = growth.plans[-1].target, weights_of(growth.model)
    big = skeleton(functools.partial(target.build, target.sizes, target.depths))
    shard(big)
    _allocate(big, next(model.parameters()).device)
    done: set[int] = set()
    for name, held in big.state_dict(keep_vars=True).items():
        if id(held) not in done:
            _fill(held, weights[name])
        done.add(id(held))
    big.train(model.training)
    if optimizer is None:
        return big, None
    state = {name: _gathered_tensors(entries) for name, entries in named_state(optimizer, model).items()}
    for plan in growth.plans:
        state = grow_state(plan, state)
    grown = without_state(optimizer, model, big, growth.plans, scale_learning_rate)
    load_named_state(grown, big, state)
    return big, grown


def _gathered(model: nn.Module, anatomy: Anatomy) -> nn.Module:
    """The sharded network as a streamed network on the CPU."""
    builder = anatomy.builder
    return streamed(
        skeleton(functools.partial(builder.build, builder.sizes, builder.depths)), _gathered_tensors(model.state_dict())
    )


def _gathered_tensors(parts: Mapping[str, Tensor]) -> Weights:
    return Weights(dtypes_of(parts), lambda name: whole(parts[name]))


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Allocate memory for all parameters. Buffers keep their values."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _fill(held: Tensor, whole: Tensor) -> None:
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        if isinstance(held, DTensor):
            part = as_part(whole, held)
            assert isinstance(part, DTensor)
            held.to_local().copy_(part.to_local())
        else:
            held.copy_(whole)
