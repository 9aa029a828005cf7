"""Counted floating-point operations, of a training step and of every block, from shapes alone.

The network runs on tensors that have a shape and no numbers (torch's meta device, or its fake tensors). So a
count needs neither the memory nor the time of the network, draws no random number, and is the same on every
machine. A network whose code reads values (a mixture that loops over its experts, a block that is dropped by
a random draw) is run with numbers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from meristem.anatomy.flop_counter import FlopCounter, counting
from meristem.anatomy.flops_by_shapes import by_shapes
from meristem.anatomy.inputs import example_inputs


def training_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """The FLOPs of forward and backward pass on a batch with its labels: every matrix product and attention.

    Attention on a CPU, which torch 2.13 counts as nothing, counts by the formula of flash attention, as on a
    GPU. So do the grouped products of mixtures. What activation checkpointing computes again is counted, if
    the model has it switched on. Causal masking is not subtracted, and the elementwise work of the optimizer
    is not counted.

    Args:
        model: the network.
        inputs: keyword arguments of forward, with labels.

    Raises:
        MeristemError: if the cost of an operator is not known.
    """
    return training_flops_by_module(model, inputs, ())[0]


def training_flops_by_module(
    model: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]
) -> tuple[int, list[int]]:
    """As `training_flops`, and the share of it inside the modules at these paths."""
    return _counted(model, inputs, paths, _TrainingStep)


def forward_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """The FLOPs of a forward pass in evaluation mode. Raises what `training_flops` raises."""
    return _counted(model, inputs, (), _Forward)[0]


def block_flops(model: nn.Module, prefixes: Sequence[str], inputs: Mapping[str, Tensor] | None = None) -> list[int]:
    """The FLOPs of the forward pass in each block of these lists, one list after another.

    Args:
        model: the network.
        prefixes: the paths of the lists of blocks, such as "model.layers".
        inputs: keyword arguments of forward. One short random input by default.

    Raises:
        MeristemError: as `training_flops`, and if there are no inputs and none can be guessed.
    """
    chosen = inputs if inputs is not None else example_inputs(model, batch_size=1, sequence_length=16)
    paths = [f"{prefix}.{name}" for prefix in prefixes for name, _ in model.get_submodule(prefix).named_children()]
    return _counted(model, chosen, paths, _Forward)[1]


class _TrainingStep(nn.Module):
    """Forward and backward pass as one call, so that the exchanged parameters are there for both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> None:
        self.model(**inputs).loss.backward()


class _Forward(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> None:
        with torch.no_grad():
            self.model(**inputs)


def _counted(
    model: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str], step: Callable[[nn.Module], nn.Module]
) -> tuple[int, list[int]]:
    whole = step(model)
    modes = {module: module.training for module in whole.modules()}
    whole.train(step is _TrainingStep)
    for module in modes:
        if isinstance(module, _NormBase):  # it counts nothing; its statistics have to stay, and one example has none
            module.eval()
    try:
        counter = by_shapes(whole, inputs, paths) or _by_running(whole, inputs, paths)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.total, [counter.inside[path] for path in paths]


def _by_running(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter:
    device = next(step.parameters()).device
    gpus = [device] if device.type == "cuda" else []
    kept = {name: parameter.grad for name, parameter in step.named_parameters()}
    with torch.random.fork_rng(gpus), counting(step.get_submodule("model"), paths) as counter:
        step(**{name: tensor.to(device) for name, tensor in inputs.items()})
    for name, parameter in step.named_parameters():
        parameter.grad = kept[name]
    return counter
