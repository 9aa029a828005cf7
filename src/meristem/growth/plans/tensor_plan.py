"""How one tensor of the large network is computed: its sources, the maps, and what happens to it then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from meristem.algebra import AxisMap, UnitMap
from meristem.growth.plans.origins import Redrawn, Shards


@dataclass(frozen=True)
class Term:
    """One small tensor that is added to a large one."""

    source: str
    weight: float | Tensor = 1.0
    part: Literal["all", "originals", "copies"] = "all"  # which units it writes: first copies, further copies, or all


@dataclass(frozen=True)
class Drawn:
    """A new matrix of this shape: normal numbers of this standard deviation (0: zeros), with each row
    repeated `repeats` times; or these values, which were measured.
    """

    shape: tuple[int, ...]
    std: float
    repeats: int = 1
    values: Tensor | None = None


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the large network is computed.

    W' = scale . sum_k weight_k . (maps applied to source_k)  +  noise that cancels for every reader
    """

    name: str
    terms: tuple[Term, ...]
    maps: tuple[AxisMap | None, ...]  # one for each dimension; None: unchanged
    roles: tuple[str, ...]
    scale: float = 1.0
    offset: float = 0.0  # a gain stored as weight = gain - offset (Gemma) is scaled as a gain
    noise: float = 0.0  # relative to the standard deviation of the noiseless tensor
    seed: int = 0
    perturb: float = 0.0  # standard deviation of noise on every entry
    silent: bool = False  # it belongs to a layer that writes nothing yet, so its gradient is zero
    shards: Shards | None = None  # how its sources are seen before anything else
    beside: tuple[TensorPlan, ...] = ()  # what follows it along the dimension `along`
    along: int = 0
    redrawn: Redrawn | None = None  # units that keep nothing of their sources
    further: bool = False  # a further copy of its source, whatever its maps say
    copies: int = 1  # modules that are copies of one unit's, this one among them, and share its gradient
    drawn: Drawn | None = None  # it has no sources; the first term says only in which dtype it is, and when it trains

    @property
    def parts(self) -> tuple[TensorPlan, ...]:
        """The tensors of which it consists, one after another."""
        return (replace(self, beside=()), *self.beside)

    @property
    def begins(self) -> bool:
        """Whether none of its entries has been trained, so that moments start at zero."""
        return self.silent or self.scale == 0

    def unit_map(self, dimension: int, dual: bool = False) -> UnitMap | None:
        """The matrix that is applied to dimension `dimension`, by its role. With `dual`, that of its
        gradient.
        """
        axis_map = self.maps[dimension]
        if axis_map is None:
            return None
        if self.roles[dimension] == "read":
            return axis_map.heard if dual else axis_map.read
        if dual:
            return axis_map.gain_dual if self.roles[dimension] == "gain" else axis_map.read
        named = {"gain": axis_map.gain, "shift": axis_map.heard, "variance": axis_map.heard}
        return named.get(self.roles[dimension], axis_map.write)

    def amplitude(self, dual: bool = False) -> float:
        """The factor by which the weights of this tensor are scaled. With `dual`, that of their gradients.

        Adam ignores the scale of gradients. To follow the trajectory of the small network, its step has to be
        scaled like the weights, and its eps like the gradients (`docs/theory.md`, section 3).
        """
        factor = abs(self.scale) or 1.0  # silent outputs are zero for now, but they are to learn
        factor = 1 / (factor * self.copies) if dual else factor
        for dimension in range(len(self.maps)):
            unit_map = self.unit_map(dimension, dual)
            factor *= unit_map.amplitude() if unit_map is not None else 1.0
        return factor

    def spread(self) -> float:
        """The factor by which copies stretch the singular values of the gradient beyond
        `amplitude(dual=True)`: sqrt(n) for n copies of each unit.
        """
        factor = 1.0
        for dimension in range(len(self.maps)):
            unit_map = self.unit_map(dimension, dual=True)
            if unit_map is not None and unit_map.amplitude():
                squares = float(unit_map.squared().matrix().sum()) / unit_map.old_size
                factor *= squares**0.5 / unit_map.amplitude()
        return factor
