"""Grow, Don't Overwrite: feed-forward units duplicated, so that a new task has room of its own beside what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, kind_of
from meristem.errors import MeristemError
from meristem.growth.method import Choices, Method, Weights


@dataclass(frozen=True)
class GrowDontOverwrite(Method):
    """Every feed-forward block `copies` times as wide: its units again behind themselves, their readers shared.

    "Grow, Don't Overwrite", arXiv:2603.08647 (k = 2). Preserves the function. Train it with `ms.freeze_old(model, growth, "copied")`
    (G-Freeze: only the copies) or `"grown"` (G-Train: the whole feed-forward matrices), in all layers or in those that
    `ms.rank_layers` puts first.

    Args:
        copies: how many times each unit is there.
        noise: relative to the readers' standard deviation, cancelling between copies. G-Train needs some: alike copies that all train get
            alike gradients for ever. G-Freeze needs none.
        seed: of the noise.
    """

    name: ClassVar[str] = "grow_dont_overwrite"
    copies: int = 2
    noise: float = 0.0
    seed: int = 0

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """Raises MeristemError for a number that adds nothing, or a network without feed-forward units of its own."""
        if isinstance(self.copies, bool) or not isinstance(self.copies, int) or self.copies < 2:
            raise MeristemError(f"{self.name}: copies must be a whole number of at least 2, got {self.copies!r}")
        axes = [axis for axis in anatomy.axes if kind_of(axis) == "ffn" and not is_part(axis)]
        if not axes:
            raise MeristemError(f"{self.name}: {anatomy.builder.model_type} has no feed-forward units of its own")
        return {axis: AxisMap.tile(anatomy.sizes[axis], self.copies) for axis in axes}

    def choices(self) -> Choices:
        """The noise on readers."""
        return Choices(noise=self.noise, seed=self.seed)
