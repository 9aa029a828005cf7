"""AdaNet.CVX: one unit at a time, in closed form (AdaNet, appendix C, and the node-wise algorithm of its
first versions).

Units are read before their activation, as in the paper's equations 2 and 3: h_1 = U_1 Psi, h_s = U_s
relu(h_(s-1)), f = sum over layers of h_s w_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.adaptive.adanet.complexity import dual_exponent, rademacher_bound
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import FeatureModule, Part, part_of
from meristem.adaptive.adanet.refit import Problem, refit

STILL = 1e-9  # a slope below this share of the first one ends the search


class NodewiseModule(FeatureModule):
    """Layers of single units. A unit reads the units that the layer below had when it was added. Later
    columns are zero.
    """

    def __init__(self, mean: Tensor, scale: Tensor, num_outputs: int = 1):
        super().__init__(mean, scale, num_outputs)
        self.hidden = nn.ParameterList()
        self.complexities: list[float] = []

    def layers(self, x: Tensor) -> list[Tensor]:
        """The outputs of each layer before its activation (n, width)."""
        read, found = self.features(x), []
        for weights in self.hidden:
            found.append(read @ weights.T)
            read = torch.relu(found[-1])
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The output f (n, 1)."""
        total = x.new_zeros(x.shape[0], self.num_outputs)
        for units, weights in zip(self.layers(x), self.output_weights, strict=True):
            total = total + units @ weights
        return total

    def add_unit(self, layer: int, weights: Tensor) -> None:
        """Add a unit to layer 1, 2, ..., at most one above the highest. `weights` has the shape (units
        below,).
        """
        if layer > len(self.hidden):
            self.hidden.append(nn.Parameter(weights[None], requires_grad=False))
            self.output_weights.append(nn.Parameter(weights.new_zeros(1, 1), requires_grad=False))
            self.complexities.append(0.0)
        else:
            self.hidden[layer - 1] = _with_row(self.hidden[layer - 1], weights[None])
            self.output_weights[layer - 1] = _with_row(self.output_weights[layer - 1], weights.new_zeros(1, 1))
        if layer < len(self.hidden):
            above = self.hidden[layer]
            wider = torch.cat([above.data, above.new_zeros(len(above), 1)], 1)
            self.hidden[layer] = nn.Parameter(wider, requires_grad=False)

    def parts(self) -> list[Part]:
        """The parts that the output reads, one for each layer."""
        triples = zip(self.output_weights, self.complexities, range(1, len(self.complexities) + 1), strict=True)
        return [part_of(depth, weights, r) for weights, r, depth in triples]

    @property
    def num_used_parameters(self) -> int:
        """The number of weights that are not zero."""
        return sum(int((w != 0).sum()) for w in [*self.hidden, *self.output_weights])

    def layout(self) -> list[dict[str, Any]]:
        """The shape of each layer, from which `of_layout` builds the network again."""
        pairs = zip(self.hidden, self.complexities, strict=True)
        return [{"shape": list(weights.shape), "complexity": r} for weights, r in pairs]

    @classmethod
    def of_layout(cls, layout: Sequence[Mapping[str, Any]], inputs: int, outputs: int) -> NodewiseModule:
        """A module of the given shape, into which weights can be loaded."""
        module = cls(torch.zeros(inputs, dtype=torch.float64), torch.ones(inputs, dtype=torch.float64), outputs)
        for entry in layout:
            rows = entry["shape"][0]
            module.hidden.append(nn.Parameter(torch.zeros(entry["shape"], dtype=torch.float64), requires_grad=False))
            module.output_weights.append(nn.Parameter(torch.zeros(rows, 1, dtype=torch.float64), requires_grad=False))
            module.complexities.append(entry["complexity"])
        return module


def _with_row(old: Tensor, row: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([old.data, row]), requires_grad=False)


@dataclass(frozen=True)
class NodeOptions:
    """The largest number of steps (each adds or changes one unit) and of layers, and the price of a unit."""

    max_steps: int
    max_depth: int
    adanet_lambda: float
    adanet_beta: float
    max_norm: float
    p: float


def best_unit(edge: Tensor, max_norm: float, p: float) -> tuple[Tensor, float]:
    """The unit u with |u|_p <= max_norm that maximises u . edge, and the maximum, which is max_norm |edge|_q
    by duality.

    u_j = max_norm |edge_j|^(q-1) sgn(edge_j) / |edge|_q^(q/p). For p = 1 only the largest edge has a weight
    (appendix C).

    Args:
        edge: the negative derivative of the mean loss with respect to the input weights of a unit whose
            output weight is 1 (units below,).
    """
    q = dual_exponent(p)
    value = max_norm * float(torch.linalg.vector_norm(edge, ord=q))
    if math.isinf(q):
        unit = torch.zeros_like(edge)
        largest = edge.abs().argmax()
        unit[largest] = max_norm * edge[largest].sign()
        return unit, value
    norm = torch.linalg.vector_norm(edge, ord=q).clamp(min=1e-300)
    return max_norm * edge.abs() ** (q - 1) * edge.sign() / norm ** (q / p), value


def grow_nodes(
    module: NodewiseModule,
    x: Tensor,
    targets: Tensor,
    shares: Tensor,
    samples: float,
    loss: Loss,
    options: NodeOptions,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Steepest coordinate descent (Gauss-Southwell): each step takes the unit, new or present, along which
    the objective falls fastest.

    A new unit of layer s has the slope Lambda |edge_s|_q - Gamma_s, with the edge of `best_unit`. The output
    weight of the chosen unit is then minimised exactly. Returns a record of each step.

    Args:
        x: the inputs (n, inputs).
        targets: the targets (n, 1).
        shares: the weights of the rows (n,), whose sum is 1.
        samples: m, the number of rows that they represent.
    """
    history: list[dict[str, Any]] = []
    largest = float(module.features(x).abs().max())
    first = 0.0
    for _ in range(options.max_steps + 1):
        layers, output = module.layers(x), module(x)
        widths = [module.num_features, *(units.shape[1] for units in layers)]
        ranks = [rademacher_bound(widths[:depth], samples, largest, options.max_norm, options.p)
                 for depth in range(1, len(widths) + 1)]  # fmt: skip
        module.complexities[:] = ranks[: len(layers)]
        prices = [options.adanet_lambda * r + options.adanet_beta for r in ranks]
        paid = sum(price * float(w.abs().sum()) for price, w in zip(prices, module.output_weights, strict=False))
        objective = float(shares @ loss.value(output, targets)) + paid
        history.append({"objective": objective, "units": [units.shape[1] for units in layers]})
        pull = -shares[:, None] * loss.slope(output, targets)  # (n, 1)
        slope, layer, unit = _steepest(module, layers, pull, prices, x, options)
        first = first or slope
        if slope <= STILL * first or len(history) > options.max_steps:
            break
        if isinstance(unit, Tensor):
            module.add_unit(layer, unit)
            index = len(module.output_weights[layer - 1]) - 1
        else:
            index = unit
        _move(module, x, targets, shares, loss, layer, index, prices[layer - 1])
    report(f"{len(history) - 1} steps, units {history[-1]['units']}, objective {history[-1]['objective']:.5f}")
    return history


def _steepest(
    module: NodewiseModule,
    layers: list[Tensor],
    pull: Tensor,
    prices: list[float],
    x: Tensor,
    options: NodeOptions,
) -> tuple[float, int, Tensor | int]:
    """The largest slope, its layer, and the unit: the weights of a new unit, or the number of a present
    one.
    """
    read = [module.features(x), *(torch.relu(units) for units in layers)]
    best: tuple[float, int, Tensor | int] = (0.0, 1, 0)
    for depth, inputs in enumerate(read[: options.max_depth], 1):
        unit, value = best_unit((inputs.T @ pull)[:, 0], options.max_norm, options.p)
        best = max(best, (value - prices[depth - 1], depth, unit), key=lambda found: found[0])
    for depth, (units, weights) in enumerate(zip(layers, module.output_weights, strict=True), 1):
        edge, w, price = (units.T @ pull)[:, 0], weights[:, 0], prices[depth - 1]
        slopes = torch.where(w == 0, (edge.abs() - price).clamp(min=0), (w.sign() * price - edge).abs())
        if len(slopes) and float(slopes.max()) > best[0]:
            best = (float(slopes.max()), depth, int(slopes.argmax()))
    return best


def _move(
    module: NodewiseModule,
    x: Tensor,
    targets: Tensor,
    shares: Tensor,
    loss: Loss,
    layer: int,
    index: int,
    price: float,
) -> None:
    """Minimise the objective over one output weight."""
    unit = module.layers(x)[layer - 1][:, index : index + 1]
    weights = module.output_weights[layer - 1]
    offset = module(x) - unit * weights[index]
    weights.data[index] = refit(Problem(loss, offset, unit, targets, shares, price))[0]
