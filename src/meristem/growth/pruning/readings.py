"""The inputs of the readers of a network: second moments of the units that each weight multiplies, measured
on data.

A unit acts through everything that reads it, after norms, activations and skip connections. So its importance
is measured there, and another mixture of units can replace it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.tracing.space import Dim
from meristem.anatomy.tracing.watch import Arguments, Watch
from meristem.growth.structure.symmetries import Symmetries, watched_symmetries


@dataclass
class Reading:
    """What one dimension of one weight is multiplied with.

    Attributes:
        weight: the name of the parameter.
        place: the dimension of the parameter.
        whole: whether the whole parameter is read so, and not a slice of it (one expert).
        units: the units along it, in the space of the watched pass.
        moment: (n, n) float64, the mean of x x^T over all examples and positions.
        strength: (n,) float64, the sum of squares of the weights of each unit.
        count: examples times positions.
        turn: when its input is read. The number is the same for all readers of one input.
    """

    weight: str
    place: int
    whole: bool
    units: Dim
    moment: Tensor
    strength: Tensor
    count: int
    turn: int = 0

    def add(self, moment: Tensor, count: int) -> None:
        """Add further examples."""
        total = self.count + count
        self.moment = (self.moment * self.count + moment * count) / total
        self.count = total

    def heard(self) -> Tensor:
        """(n,) float64: the root mean square of what each unit alone adds to the output."""
        return (self.moment.diagonal() * self.strength).sqrt()


def nearest_mixture(cross: Tensor, own: Tensor, ridge: float) -> Tensor:
    """(n, kept) float64, the M for which M y is nearest to x.

    Args:
        cross: (n, kept), the sum of x y^T.
        own: (kept, kept), the sum of y y^T.
        ridge: relative to the mean square of y.
    """
    eye = torch.eye(len(own), dtype=own.dtype)
    return torch.linalg.solve(own + ridge * own.diagonal().mean().clamp(min=1e-30) * eye, cross.T).T


Readings = dict[tuple[str, int, int], Reading]  # by weight, dimension, and where the slice of it begins


class ReadersWatch(Watch):
    """A watch that also measures the input of every weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.readings: Readings = {}
        self._turn, self._last = -1, None  # the last input is kept, so that no other tensor takes its place

    def _contract(
        self, a: Tensor, b: Tensor, pairs: Sequence[tuple[int, int]], shared: Sequence[tuple[int, int]]
    ) -> None:
        super()._contract(a, b, pairs, shared)
        for weight, taken, own, other in ((a, b, 0, 1), (b, a, 1, 0)):
            if len(pairs) == 1 and not shared and weight in self._origin and taken not in self._origin:
                self._measure_reader(weight, pairs[0][own], taken, pairs[0][other])

    def _convolution(self, arguments: Arguments, operands: list[Tensor], results: list[Tensor]) -> None:
        super()._convolution(arguments, operands, results)
        if arguments.get("groups", 1) == 1:
            self._measure_reader(operands[1], 0 if arguments.get("transposed", False) else 1, operands[0], 1)

    def _measure_reader(self, weight: Tensor, place: int, taken: Tensor, dimension: int) -> None:
        name, private, rows = self._origin.get(weight, ("", [], False))  # pyright: ignore[reportGeneralTypeIssues]
        own = [i for i, root in enumerate(self._roots.get(name, [])) if root == private[place]]
        if rows or len(own) != 1 or taken.shape[dimension] == 1:
            return  # a part of a parameter, or a table that is looked up
        whole = math.prod(self.space.size(dim) for dim in self.parameters[name]) == weight.numel()
        key = (name, own[0], 0 if whole else int(weight.storage_offset()))
        values = taken.detach().movedim(dimension, 0).flatten(1).double()
        moment = (values @ values.T / values.shape[1]).cpu()
        if key not in self.readings:
            strength = weight.detach().movedim(place, 0).flatten(1).double().square().sum(1).cpu()
            units = self.of(weight)[place]
            self._turn += not (self._last is not None and _same(self._last, taken))
            self._last = taken
            self.readings[key] = Reading(name, own[0], whole, units, torch.zeros_like(moment), strength, 0, self._turn)
        self.readings[key].add(moment, values.shape[1])


class TakesWatch(ReadersWatch):
    """A watch that keeps the inputs of some weights, (units, examples times positions), on the CPU."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        super().__init__(model)
        self._names = names
        self.taken: dict[str, Tensor] = {}

    def _measure_reader(self, weight: Tensor, place: int, taken: Tensor, dimension: int) -> None:
        name = self._origin[weight][0]  # pyright: ignore[reportOptionalSubscript]
        if name in self._names:
            values = taken.detach().movedim(dimension, 0).flatten(1).double().cpu()
            before = self.taken.get(name)
            self.taken[name] = values if before is None else torch.cat([before, values], 1)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same numbers in the same order."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def watched_readings(
    model: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> tuple[Symmetries, ReadersWatch, Readings]:
    """What a pass over each of these batches shows: the groups of units, the first watch, and the inputs of
    every weight.

    Raises:
        MeristemError: if no unit can be permuted.
    """
    watch = ReadersWatch(model)
    symmetries, _ = watched_symmetries(model, batches[0], watch)
    for batch in batches[1:]:
        more = ReadersWatch(model)
        watched_symmetries(model, batch, more)
        for key, reading in more.readings.items():
            if key in watch.readings:
                watch.readings[key].add(reading.moment, reading.count)
    return symmetries, watch, watch.readings
