"""Stage one: layers learned from the energy, without labels.

The method section of the paper (arXiv:1711.03130) was not available to us. This is our own derivation from
its abstract, on the energy of a deep ordered RBM: see `energynet.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meristem.adaptive.rbm.infinite import InfiniteRBM
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Infinite
from meristem.adaptive.rbm.partition import ENUMERABLE, Annealed, anneal, fewest_units, log_partition
from meristem.adaptive.rbm.visible import BinaryVisible, Visible

PARAMETERS = ("weights", "hidden_bias", "visible_bias")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Layer:
    """One learned layer.

    Args:
        machine: its Boltzmann machine, reduced to the width that the data use.
        allocated: the number of units that the machine had grown.
        gain: the increase of the bound on the held-out log-likelihood, in nats per row. For the first layer
            it is the log-likelihood itself.
        gain_low: the gain minus three standard errors of the estimate.
        history: a record of each pass of the machine's training.
    """

    machine: Machine
    allocated: int
    gain: float
    gain_low: float
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def width(self) -> int:
        return self.machine.num_hidden

    def record(self) -> dict[str, Any]:
        """Everything but the machine, as it is written to a file."""
        return {name: getattr(self, name) for name in ("allocated", "gain", "gain_low", "history")}


def layer_tensors(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The parameters of the machines by name, as they are written to a file."""
    return {
        f"layers.{number}.{name}": getattr(layer.machine, name)
        for number, layer in enumerate(layers)
        for name in PARAMETERS
    }


def restored_layers(
    records: Sequence[dict[str, Any]], tensors: Mapping[str, Tensor], beta: float, visible: Visible, device: str
) -> list[Layer]:
    """The layers of `record` and `layer_tensors`. The first machine has `visible` units, the others have
    binary ones.
    """
    layers = []
    for number, record in enumerate(records):
        weights, hidden, bias = (tensors[f"layers.{number}.{name}"].to(device) for name in PARAMETERS)
        kind = BinaryVisible() if number else visible
        layers.append(Layer(Machine(weights, hidden, bias, Infinite(beta, "constant"), kind), **record))
    return layers


@dataclass(frozen=True)
class StructureOptions:
    """How the structure is learned.

    Args:
        machine: the options of each layer's `InfiniteRBM`. Its beta is the price of width.
        depth_penalty: the price of a layer beyond the first, in nats per row (delta).
        max_layers: the number of layers, at most.
        quantile: a layer is wide enough to contain z for this share of the data.
        validation_fraction: the share of rows that is held out to measure the gain of a layer.
        checkpoint: a directory for the state of each layer's training.
    """

    machine: dict[str, Any]
    depth_penalty: float = 0.1
    max_layers: int = 3
    quantile: float = 0.99
    validation_fraction: float = 0.1
    checkpoint: str | None = None


def learn_structure(x: Tensor, options: StructureOptions, generator: torch.Generator, report: Report) -> list[Layer]:
    """Learn layers on x (n, features), each on the one below, until a layer does not pay (greedily, as in
    deep belief networks).

    With q the posterior of the layers below, a new machine with p2(h) on top of one with p1(h) raises the
    bound on ln p(v) by E_q[ln p2(h) - ln p1(h)]. All other terms are equal (Hinton, Osindero & Teh 2006, eq.
    8). A layer beyond the first is kept if that gain on held-out rows, minus three standard errors, is above
    `depth_penalty`.
    """
    held = max(1, int(options.validation_fraction * len(x)))
    shuffled = torch.randperm(len(x), generator=generator, device=x.device)
    valid, train = x[shuffled[:held]], x[shuffled[held:]]
    layers: list[Layer] = []
    kind = options.machine.get("visible", "binary")
    while len(layers) < options.max_layers:
        layer = _layer(train, valid, layers, kind, options, generator)
        if layers and layer.gain_low <= options.depth_penalty:
            report(
                f"layer {len(layers) + 1}: gain {layer.gain:+.3f} nats (at least {layer.gain_low:+.3f}), "
                f"price {options.depth_penalty:g}: not taken"
            )
            return layers
        layers.append(layer)
        said = "gain" if len(layers) > 1 else "log-likelihood"
        report(f"layer {len(layers)}: {layer.width} units of {layer.allocated} grown, {said} {layer.gain:+.3f} nats")
        train, valid = (layer.machine.sample_hidden(v, generator) for v in (train, valid))
        kind = "binary"
    return layers


def _layer(
    train: Tensor,
    valid: Tensor,
    layers: list[Layer],
    kind: str,
    options: StructureOptions,
    generator: torch.Generator,
) -> Layer:
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    checkpoint = options.checkpoint and str(Path(options.checkpoint, f"layer-{len(layers) + 1}.safetensors"))
    machine_options = {**options.machine, "visible": kind, "random_state": seed, "checkpoint": checkpoint}
    if layers:
        machine_options["categories"] = ()
    learner = InfiniteRBM(**machine_options)
    rows = train.cpu().numpy()
    learner.fit(rows)
    machine = learner.machine_.first(learner.effective_components(rows, options.quantile))
    partition = _partition(machine, generator)
    negative_energy = -float(machine.free_energy(valid).mean())
    value, low = negative_energy - partition.log_partition, negative_energy - partition.high
    if layers:  # the terms of the layer below for its hidden units
        below = layers[-1].machine
        before = _partition(below, generator)
        said = -float(below.hidden_free_energy(valid).mean())
        value, low = value - (said - before.log_partition), low - (said - before.low)
    return Layer(machine, learner.n_components_, value, low, learner.history_)


def _partition(machine: Machine, generator: torch.Generator) -> Annealed:
    if fewest_units(machine) <= ENUMERABLE:
        exact = log_partition(machine)
        return Annealed(exact, exact, exact)
    return anneal(machine, generator)


def up_pass(layers: list[Layer], x: Tensor) -> Tensor:
    """The mean-field activities of the last layer (n, last width). Each layer computes P(Z >= i) sigmoid(W_i
    a + b_i).
    """
    for layer in layers:
        x = layer.machine.hidden_mean(x)
    return x
