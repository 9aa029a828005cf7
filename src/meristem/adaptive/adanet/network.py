"""The network that AdaNet learns: blocks of hidden layers, which each read all units below, and an output
that reads every block.

Units have no biases. They are functions of the features Psi(x) = [(x - mean) / scale, 1], whose constant
replaces the biases, so that the paper's bounds hold unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meristem.adaptive.adanet.bins import Bins

Units = list[list[Tensor]]  # for each block, the activities of its layers, (n, width) each


@dataclass(frozen=True)
class Part:
    """The units that the output reads together: those of a block, or those of a layer of single units.

    Args:
        depth: the number of hidden layers up to these units.
        width: the number of units.
        used: the number of units with an output weight that is not zero.
        mass: |w|_1 of their output weights.
        complexity: r of the units.
    """

    depth: int
    width: int
    used: int
    mass: float
    complexity: float


def part_of(depth: int, weights: Tensor, complexity: float) -> Part:
    """The part with output weights (width, outputs)."""
    return Part(depth, len(weights), int((weights != 0).any(1).sum()), float(weights.abs().sum()), complexity)


class FeatureModule(nn.Module):
    """A module that reads Psi(x).

    Args:
        mean, scale: the mean and the scale of the inputs (inputs,).
        num_outputs: the number of outputs.
        bins: the bins of the inputs, which Psi contains next to the inputs, or None.
    """

    def __init__(self, mean: Tensor, scale: Tensor, num_outputs: int, bins: Bins | None = None):
        super().__init__()
        self.num_outputs = num_outputs
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.num_bins = bins.count if bins else 0
        if bins:
            self.register_buffer("bin_input", bins.input)
            self.register_buffer("bin_low", bins.low)
            self.register_buffer("bin_span", bins.span)
        self.output_weights = nn.ParameterList()

    @property
    def num_features(self) -> int:
        return len(self.get_buffer("mean")) + self.num_bins + 1

    def features(self, x: Tensor) -> Tensor:
        """Psi(x) (n, num_features): the scaled inputs, their bins, and 1."""
        scaled = (x - self.get_buffer("mean")) / self.get_buffer("scale")
        parts = [scaled, torch.ones_like(x[:, :1])]
        if self.num_bins:
            above = x.index_select(1, self.get_buffer("bin_input")) - self.get_buffer("bin_low")
            parts.insert(1, (above / self.get_buffer("bin_span")).clamp(0, 1))
        return torch.cat(parts, 1)


class Block(nn.Module):
    """A sub-network. Layer 1 reads the features. Layer s > 1 reads layer s - 1 of its own block and of
    earlier blocks.

    Args:
        num_features: n_0.
        width: the units in each layer (B).
        reads: the numbers of the earlier blocks that each layer from the second on reads.
        earlier_widths: the width of each earlier block.
        connection_dropout: the share of connections to earlier blocks that training drops (AdaNet.D).
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        reads: Sequence[Sequence[int]],
        earlier_widths: Sequence[int],
        connection_dropout: float = 0.0,
    ):
        super().__init__()
        self.width, self.reads, self.connection_dropout = width, [list(r) for r in reads], connection_dropout
        inputs = [num_features, *(width + sum(earlier_widths[b] for b in r) for r in self.reads)]
        self.layers = nn.ModuleList(nn.Linear(n, width, bias=False) for n in inputs)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def forward(self, features: Tensor, earlier: Units) -> list[Tensor]:
        """The activities of each layer (n, width)."""
        own = [torch.relu(self.layers[0](features))]
        for below, (layer, reads) in enumerate(zip(list(self.layers)[1:], self.reads, strict=True)):
            read = [earlier[b][below] for b in reads]
            if read and self.connection_dropout:
                read = [F.dropout(torch.cat(read, 1), self.connection_dropout, self.training)]
            own.append(torch.relu(layer(torch.cat([own[-1], *read], 1))))
        return own

    def project(self, max_norm: float, p: float) -> None:
        """Scale the weights of units whose p-norm exceeds `max_norm` down to that norm."""
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                norms = torch.linalg.vector_norm(layer.weight, ord=p, dim=1, keepdim=True)
                layer.weight.mul_((max_norm / norms.clamp(min=1e-12)).clamp(max=1.0))


class AdaNetModule(FeatureModule):
    """f(x) = sum over blocks of h_block(x) w_block. It is the result of a search, and torch.export can export
    it.
    """

    def __init__(self, mean: Tensor, scale: Tensor, num_outputs: int, bins: Bins | None = None):
        super().__init__(mean, scale, num_outputs, bins)
        self.blocks = nn.ModuleList()
        self.complexities: list[float] = []

    @property
    def widths(self) -> list[int]:
        return [block.width for block in self._blocks()]

    @property
    def depth(self) -> int:
        """The number of hidden layers of the deepest block, or 0 without blocks."""
        return max((block.depth for block in self._blocks()), default=0)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def parts(self) -> list[Part]:
        """The parts that the output reads, one for each block."""
        triples = zip(self._blocks(), self.output_weights, self.complexities, strict=True)
        return [part_of(block.depth, weights, r) for block, weights, r in triples]

    @property
    def num_used_parameters(self) -> int:
        """The number of parameters, without output weights that are zero."""
        hidden = sum(p.numel() for p in self.blocks.parameters())
        return hidden + sum(int((w != 0).sum()) for w in self.output_weights)

    def append(self, block: Block, weights: Tensor, complexity: float) -> None:
        """Add a frozen block with its output weights (width, outputs) and its complexity r."""
        self.blocks.append(block.requires_grad_(False).eval())
        self.output_weights.append(nn.Parameter(weights, requires_grad=False))
        self.complexities.append(complexity)

    def units(self, x: Tensor) -> Units:
        """The activities of all layers of all blocks."""
        features, units = self.features(x), []
        for block in self.blocks:
            units.append(block(features, units))
        return units

    def forward(self, x: Tensor) -> Tensor:
        """The outputs f (n, num_outputs)."""
        return self.mixed(self.units(x), x)

    def mixed(self, units: Units, like: Tensor) -> Tensor:
        """The outputs for known activities. `like` has the number of rows and the precision of the result."""
        total = like.new_zeros(like.shape[0], self.num_outputs)
        for layers, weights in zip(units, self.output_weights, strict=True):
            total = total + layers[-1] @ weights
        return total

    def layout(self) -> list[dict[str, Any]]:
        """The shape of each block, from which `of_layout` builds the network again."""
        pairs = zip(self._blocks(), self.complexities, strict=True)
        return [
            {"width": b.width, "reads": b.reads, "connection_dropout": b.connection_dropout, "complexity": r}
            for b, r in pairs
        ]

    @classmethod
    def of_layout(cls, layout: Sequence[Mapping[str, Any]], inputs: int, outputs: int, bins: int = 0) -> AdaNetModule:
        """A module of the given shape, into which weights can be loaded."""
        zeros, ones = torch.zeros(inputs, dtype=torch.float64), torch.ones(inputs, dtype=torch.float64)
        module = cls(zeros, ones, outputs, Bins.empty(bins) if bins else None)
        for entry in layout:
            shape = {name: value for name, value in entry.items() if name != "complexity"}
            block = Block(module.num_features, earlier_widths=module.widths, **shape).double()
            module.append(block, torch.zeros(block.width, outputs, dtype=torch.float64), entry["complexity"])
        return module
