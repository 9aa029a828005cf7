"""Growing a network that is sharded over processes (FSDP2, any DTensor layout), with its optimizer, between two stages.

Every process gathers one tensor at a time, grows it, and keeps its own part of the result: nothing else is ever whole. The
plan, and the proof, run on the gathered network as on one that is streamed from disk, in step on all processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import Weights, streamed, weights_of
from meristem.growth.build import skeleton
from meristem.growth.dtensors import as_part, whole
from meristem.growth.growth import Growth
from meristem.growth.method import Methods
from meristem.growth.optimizer import dtypes_of, grow_state, load_named_state, named_state, without_state


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
    """A larger sharded network made from `model`, and its optimizer; both sources are left as they are.

    To be called by all processes alike. The results are those of `grow` and `grow_optimizer` on one process.

    Args:
        model: a network whose parameters are DTensors, such as `fully_shard` makes them.
        method: as for `grow`.
        shard: applied to the large network while its parameters are on the meta device: calls `fully_shard` on its blocks and
            on itself.
        optimizer: of `model`; its state follows, as in `grow_optimizer`.
        anatomy: from `Anatomy.infer`, for networks outside transformers.
        verify: prove that the function is preserved, if the methods promise it; on every process, on gathered tensors.
        inputs: keyword arguments of forward for that, on the CPU; random ones by default.
        scale_learning_rate: as for `grow_optimizer`.

    Raises:
        MeristemError: as `grow` and `grow_optimizer`.
        PreservationError: when a growth that promises to preserve the function does not.
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
    """The sharded network as a streamed one on the CPU."""
    builder = anatomy.builder
    return streamed(
        skeleton(functools.partial(builder.build, builder.sizes, builder.depths)), _gathered_tensors(model.state_dict())
    )


def _gathered_tensors(parts: Mapping[str, Tensor]) -> Weights:
    return Weights(dtypes_of(parts), lambda name: whole(parts[name]))


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Memory for all parameters; buffers keep what is in them."""
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
