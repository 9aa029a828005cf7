"""The normaliser ln Z of a machine: by enumeration if one side is small, otherwise by annealed importance
sampling.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.adaptive.rbm.draws import Draws
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.visible import BinaryVisible
from meristem.errors import MeristemError

ENUMERABLE = 20  # units on the smaller side: a million states
_CHUNK = 1 << 14


def log_partition(machine: Machine) -> float:
    """ln Z, exactly, by enumeration of the hidden or the binary visible units, whichever are fewer.

    Raises:
        MeristemError: if both sides have more than 20 units. `anneal` estimates it then.
    """
    if fewest_units(machine) > ENUMERABLE:
        raise MeristemError(
            f"an exact ln Z enumerates 2^{fewest_units(machine)} states; at most 2^{ENUMERABLE} are summed. "
            "Use annealed importance sampling (anneal, or method='ais')"
        )
    machine = machine.to(torch.float64)
    parts = _over_hidden(machine) if machine.num_hidden == fewest_units(machine) else _over_visible(machine)
    return float(torch.logsumexp(torch.stack(parts), 0))


def fewest_units(machine: Machine) -> int:
    """The number of units that an enumeration of the smaller side covers."""
    binary = isinstance(machine.visible, BinaryVisible)
    return min(machine.num_hidden, len(machine.visible_bias)) if binary else machine.num_hidden


def _states(units: int, like: Tensor) -> list[Tensor]:
    """All states of `units` binary units, in chunks (states, units)."""
    numbers = torch.arange(1 << units, device=like.device)
    places = torch.arange(units, device=like.device)
    return [((chunk[:, None] >> places) & 1).to(like.dtype) for chunk in numbers.split(_CHUNK)]


def _over_visible(machine: Machine) -> list[Tensor]:
    states = _states(len(machine.visible_bias), machine.weights)
    return [torch.logsumexp(-machine.free_energy(v), 0) for v in states]


def _over_hidden(machine: Machine) -> list[Tensor]:
    states = _states(machine.num_hidden, machine.weights)
    return [torch.logsumexp(-machine.hidden_free_energy(h), 0) for h in states]


@dataclass(frozen=True)
class Annealed:
    """An estimate of ln Z: its value, and ln(Z - 3 sigma), ln(Z + 3 sigma) over the chains."""

    log_partition: float
    low: float
    high: float


def temperatures(count: int) -> Tensor:
    """`count` inverse temperatures from 0 to 1 (count,), denser towards 1, in the proportions of
    Salakhutdinov & Murray (2008): 500 in [0, 0.5], 4000 in [0.5, 0.9], 10000 in [0.9, 1].
    """
    shares = [(0.0, 0.5, 500), (0.5, 0.9, 4000), (0.9, 1.0, 10000)]
    pieces = [
        torch.linspace(low, high, max(2, round(count * share / 14500)) + 1, dtype=torch.float64)[:-1]
        for low, high, share in shares
    ]
    return torch.cat([*pieces, torch.ones(1, dtype=torch.float64)])


def anneal(machine: Machine, generator: torch.Generator, chains: int = 100, count: int = 1450) -> Annealed:
    """ln Z by annealed importance sampling (Neal 2001). Weights and hidden biases grow from zero, with one
    Gibbs step for each temperature.

    Args:
        machine: the machine.
        generator: the source of the random numbers.
        chains: the number of particles.
        count: the number of temperatures (14500 in the published evaluations).
    """
    bias = machine.visible_bias
    empty = torch.zeros(chains, machine.num_hidden, device=bias.device, dtype=bias.dtype)
    no_field = torch.zeros(chains, len(bias), device=bias.device, dtype=bias.dtype)
    base = machine.order.log_sum(empty[:1], torch.zeros_like(machine.hidden_bias))
    log_base = float(base + machine.visible.log_integral(no_field[:1], bias))
    draws = Draws(generator)
    v = machine.visible.sample(no_field, bias, draws)
    steps = temperatures(count).tolist()
    log_weight = torch.zeros(chains, dtype=torch.float64, device=bias.device)
    for before, after in itertools.pairwise(steps):
        x = machine.received(v)  # both temperatures scale it
        for factor, sign in ((before, -1), (after, 1)):
            log_weight += sign * machine.order.log_sum(x * factor, machine.hidden_bias * factor).double()
        h = machine.order.sample(x * after, machine.hidden_bias * after, draws)
        v = machine.visible.sample((h @ machine.weights) * after, bias, draws)
    return _summary(log_base, log_weight)


def _summary(log_base: float, log_weight: Tensor) -> Annealed:
    top = log_weight.max()
    ratio = torch.exp(log_weight - top)
    mean, error = float(ratio.mean()), float(ratio.std() / math.sqrt(len(ratio)))
    offset = log_base + float(top)
    low = offset + math.log(mean - 3 * error) if mean > 3 * error else -math.inf
    return Annealed(offset + math.log(mean), low, offset + math.log(mean + 3 * error))
