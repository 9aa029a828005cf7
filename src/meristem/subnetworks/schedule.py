"""Schedules: how likely each block is to run at each optimizer step.

RAPTR: Panigrahi, Saunshi, Lyu, Miryoosefi, Reddi, Kale, Kumar: "Efficient Stagewise Pretraining via
Progressive Subnetworks", ICLR 2025, arXiv:2402.05913. Its relatives differ in the direction in time and in
the profile over depth, so each takes only a few lines here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import get_args

import torch

from meristem.errors import MeristemError
from meristem.subnetworks.path import Path, Sampling, Scaling, draw, generator, scales


@dataclass(frozen=True)
class Schedule(ABC):
    """What all schedules share.

    Args:
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        seed: the seed of the paths.
        sampling: "bernoulli" draws each block independently, and "exact" keeps the number of blocks (see
            `path.draw`).
        scaling: the factor of the updates: "none", "sqrt_gap" or "inv_p" (see `path.scales`).

    Raises:
        MeristemError: if a value is impossible.
    """

    num_hidden_layers: int
    total_steps: int
    seed: int = 0

    sampling: Sampling = field(default="bernoulli", kw_only=True)
    scaling: Scaling = field(default="none", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("num_hidden_layers", "total_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MeristemError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, allowed in (("sampling", get_args(Sampling)), ("scaling", get_args(Scaling))):
            if getattr(self, name) not in allowed:
                raise MeristemError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @abstractmethod
    def keep(self, step: int) -> tuple[float, ...]:
        """The probability of each block to run at optimizer step `step` (counted from 0)."""

    def width(self, step: int) -> float:
        """The share of heads and feed-forward units that active blocks use at a step."""
        return 1.0

    def path(self, step: int, blocks: str = "") -> Path:
        """The path of a step, which depends only on `seed`, `step` and the name of the list of blocks.

        Args:
            step: the optimizer step, counted from 0.
            blocks: the name of the list of blocks. Encoder and decoder draw separately.
        """
        keep = self.keep(step)
        active = draw(keep, self.sampling, generator(self.seed, step, blocks))
        return Path(active, scales(active, keep, self.scaling), self.width(step), self.seed, step)

    def expected_depth(self, step: int) -> float:
        """The expected number of active blocks at a step."""
        return sum(self.keep(step))

    def layer_speedup(self) -> float:
        """The FLOPs of the blocks in full training over those of this schedule.

        This is the convention of the RAPTR paper, in which 6-8-10-12 on 12 layers is 1.33. Embeddings, head
        and optimizer are not counted, so the time falls by less.
        """
        total = sum(self.expected_depth(step) * self.width(step) for step in range(self.total_steps))
        return self.num_hidden_layers * self.total_steps / total


@dataclass(frozen=True)
class SubnetworkSchedule(Schedule):
    """RAPTR (arXiv:2402.05913): random sub-networks whose expected depth rises in stages. The first and the
    last block always run.

        SubnetworkSchedule(stages=[6, 8, 10, 12], num_hidden_layers=12, total_steps=10_000)

    A stage of n blocks runs each free block with probability (n - fixed) / (L - fixed) (paper, definition 2),
    where L is the number of blocks and `fixed` is the number of those that always run. One stage is the
    control with a constant rate. Falling stages are the reverse of RAPTR.

    Args:
        stages: the expected number of active blocks in each stage.
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        lengths: the relative lengths of the stages. Equal by default.
        full_model_steps: the number of steps of the full network before the first stage (the paper's
            warm-up).
        fixed_layers: blocks that always run. Negative numbers count from the end.
        widths: the share of heads and feed-forward units in each stage (see `subnetworks/width.py`). All of
            them by default.
        sampling: "exact" (the same probabilities, no variance of depth) or "bernoulli" (as published).
        scaling: "none", "sqrt_gap" or "inv_p" (see `path.scales`).
        seed: the seed of the paths.

    Raises:
        MeristemError: if there are no stages, if a stage is not between the number of fixed blocks and
            `num_hidden_layers`, if lists have different lengths, or if another value is impossible.
    """

    stages: Sequence[float] = field(default=(), kw_only=True)
    lengths: Sequence[float] | None = field(default=None, kw_only=True)
    full_model_steps: int = field(default=0, kw_only=True)
    fixed_layers: Sequence[int] = field(default=(0, -1), kw_only=True)
    widths: Sequence[float] | None = field(default=None, kw_only=True)
    sampling: Sampling = field(default="exact", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.num_hidden_layers
        if not self.stages:
            raise MeristemError(f"give stages, for example stages=[{layers // 2}, {layers * 3 // 4}, {layers}]")
        for layer in self.fixed_layers:
            if not -layers <= layer < layers:
                raise MeristemError(f"fixed_layers names block {layer}, the network has blocks 0 to {layers - 1}")
        for stage in self.stages:
            if not len(self.fixed) <= stage <= layers:
                raise MeristemError(
                    f"a stage of {stage} blocks is impossible: {len(self.fixed)} always run and the network has {layers}"
                )
        for name in ("lengths", "widths"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.stages):
                raise MeristemError(f"{name} has {len(values)} entries for {len(self.stages)} stages")
        if any(length <= 0 for length in self.lengths or ()):
            raise MeristemError(f"lengths must be positive, got {list(self.lengths or ())}")
        if any(not 0 < width <= 1 for width in self.widths or ()):
            raise MeristemError(f"widths are shares in (0, 1], got {list(self.widths or ())}")
        if not 0 <= self.full_model_steps <= self.total_steps:
            raise MeristemError(f"full_model_steps must lie in 0..{self.total_steps}, got {self.full_model_steps}")

    @cached_property
    def fixed(self) -> frozenset[int]:
        """`fixed_layers`, counted from the front."""
        return frozenset(layer % self.num_hidden_layers for layer in self.fixed_layers)

    @cached_property
    def _ends(self) -> list[float]:
        """The step at which each stage ends."""
        lengths = self.lengths or [1.0] * len(self.stages)
        rest = self.total_steps - self.full_model_steps
        return [self.full_model_steps + rest * part / sum(lengths) for part in accumulate(lengths)]

    def stage(self, step: int) -> int | None:
        """The number of the stage that a step belongs to. None for the full network at the start."""
        if step < self.full_model_steps:
            return None
        return next((i for i, end in enumerate(self._ends) if step < end - 1e-9), len(self.stages) - 1)

    def keep(self, step: int) -> tuple[float, ...]:
        stage = self.stage(step)
        free = self.num_hidden_layers - len(self.fixed)
        if stage is None or not free:
            return (1.0,) * self.num_hidden_layers
        p = (self.stages[stage] - len(self.fixed)) / free
        return tuple(1.0 if layer in self.fixed else p for layer in range(self.num_hidden_layers))

    def width(self, step: int) -> float:
        stage = self.stage(step)
        return 1.0 if stage is None or self.widths is None else self.widths[stage]


@dataclass(frozen=True)
class LayerDrop(Schedule):
    """Drop every block at one constant rate, and rescale nothing (Fan, Grave, Joulin 2019, arXiv:1909.11556).

    Args:
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        rate: the probability that a block is dropped.
        seed: the seed of the paths.
        sampling: "bernoulli" or "exact" (see `path.draw`).
        scaling: "none", "sqrt_gap" or "inv_p" (see `path.scales`).

    Raises:
        MeristemError: if a value is impossible.
    """

    rate: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("rate", self.rate)

    def keep(self, step: int) -> tuple[float, ...]:
        return (1 - self.rate,) * self.num_hidden_layers


@dataclass(frozen=True)
class StochasticDepth(Schedule):
    """Keep block l of L with probability 1 - (l / L) . (1 - last), with l counted from 1 (Huang et al. 2016,
    arXiv:1603.09382).

    The updates that are kept are divided by their probability, so that the full network needs no rescaling at
    test time. (The paper multiplies at test time instead.) There is one draw for a whole batch, as in the
    paper, so that dropped blocks cost nothing.

    Args:
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        last: the probability that the last block is kept.
        seed: the seed of the paths.
        sampling: "bernoulli" or "exact" (see `path.draw`).
        scaling: "inv_p", "none" or "sqrt_gap" (see `path.scales`).

    Raises:
        MeristemError: if a value is impossible.
    """

    last: float = field(default=0.5, kw_only=True)
    scaling: Scaling = field(default="inv_p", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("1 - last", 1 - self.last)

    def keep(self, step: int) -> tuple[float, ...]:
        return _falling(self.num_hidden_layers, self.last)


@dataclass(frozen=True)
class ProgressiveLayerDropping(Schedule):
    """Drop more as training proceeds, and deeper blocks more than shallow ones (Zhang, He 2020,
    arXiv:2010.13369).

    theta(t) = (1 - theta) exp(-gamma t) + theta. Block l of L is kept with probability 1 - (l / L) (1 -
    theta(t)), and the updates that are kept are divided by it.

    Args:
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        theta: the probability towards which that of the last block falls.
        gamma: the rate at which it falls, for each step. By default 100 / total_steps.
        seed: the seed of the paths.
        sampling: "bernoulli" or "exact" (see `path.draw`).
        scaling: "inv_p", "none" or "sqrt_gap" (see `path.scales`).

    Raises:
        MeristemError: if a value is impossible.
    """

    theta: float = field(default=0.5, kw_only=True)
    gamma: float | None = field(default=None, kw_only=True)
    scaling: Scaling = field(default="inv_p", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("1 - theta", 1 - self.theta)

    def keep(self, step: int) -> tuple[float, ...]:
        gamma = 100 / self.total_steps if self.gamma is None else self.gamma
        return _falling(self.num_hidden_layers, (1 - self.theta) * math.exp(-gamma * step) + self.theta)


@dataclass(frozen=True)
class BottomLayers(Schedule):
    """The two-stage training of a grown network in bert2BERT (Chen et al., ACL 2022, arXiv:2110.07143,
    section 4.4).

    At first each step trains a network of the bottom n blocks, with n drawn from stride, 2 stride, ..., L. In
    it, only the top `stride` blocks are trained, and what follows the blocks. Then the full network is
    trained. The paper leaves some details open. Here n is uniform, and the blocks below run without
    gradients.

    Args:
        num_hidden_layers: the number of blocks of the full network.
        total_steps: the number of optimizer steps of the whole run.
        stride: how many blocks train at a time. L is a multiple of it.
        until: the share of the run that this takes.
        seed: the seed of the paths.

    Raises:
        MeristemError: if `num_hidden_layers` is not a multiple of `stride`, or if `until` is not a share.
    """

    stride: int = field(default=3, kw_only=True)
    until: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1 or self.num_hidden_layers % self.stride:
            raise MeristemError(f"stride must divide {self.num_hidden_layers} blocks, got {self.stride}")
        if not 0 <= self.until <= 1:
            raise MeristemError(f"until must lie in 0..1, got {self.until}")

    def keep(self, step: int) -> tuple[float, ...]:
        if step >= self.until * self.total_steps:
            return (1.0,) * self.num_hidden_layers
        choices = self.num_hidden_layers // self.stride
        return tuple(1 - (layer // self.stride) / choices for layer in range(self.num_hidden_layers))

    def path(self, step: int, blocks: str = "") -> Path:
        layers = self.num_hidden_layers
        if step >= self.until * self.total_steps:
            return Path.full(layers)
        rng = generator(self.seed, step, blocks)
        depth = self.stride * (1 + int(torch.randint(layers // self.stride, (), generator=rng)))
        active = tuple(layer < depth for layer in range(layers))
        return Path(active, (1.0,) * layers, frozen=frozenset(range(depth - self.stride)))


def _falling(layers: int, last: float) -> tuple[float, ...]:
    """Probabilities that fall linearly from 1 at the input to `last` at the last block."""
    return tuple(1 - (layer + 1) / layers * (1 - last) for layer in range(layers))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise MeristemError(f"{name} must lie in [0, 1), got {value}")
