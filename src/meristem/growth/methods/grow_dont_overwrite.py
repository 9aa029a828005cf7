"""Grow, Don't Overwrite: duplicate feed-forward units, so that a new task can train the copies and leave the
old units alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, kind_of
from meristem.errors import MeristemError
from meristem.growth.methods.method import Choices, Method, Weights


@dataclass(frozen=True)
class GrowDontOverwrite(Method):
    """Make every feed-forward block `copies` times as wide: copy its units, and divide the weight of their
    readers among the copies.

    "Grow, Don't Overwrite", arXiv:2603.08647 (k = 2). Keeps the function. Train the result with
    `ms.freeze_old(model, growth, "copied")` (G-Freeze: only the copies train) or `"grown"` (G-Train: the
    whole feed-forward matrices train), in all layers or in the first ones of `ms.rank_layers`.

    Args:
        copies: how often each unit is present in the result, the original included.
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It cancels
            between copies, so the function is kept. G-Train needs some: equal copies that all train get equal
            gradients forever. G-Freeze needs none.
        seed: the seed of the noise.

    Raises:
        MeristemError: when a network is grown, if `copies` adds nothing, or if the network has no
            feed-forward units of its own.
    """

    name: ClassVar[str] = "grow_dont_overwrite"
    copies: int = 2
    noise: float = 0.0
    seed: int = 0

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """Raises MeristemError if `copies` adds nothing, or if the network has no feed-forward units of its
        own.
        """
        if isinstance(self.copies, bool) or not isinstance(self.copies, int) or self.copies < 2:
            raise MeristemError(f"{self.name}: copies must be a whole number of at least 2, got {self.copies!r}")
        axes = [axis for axis in anatomy.axes if kind_of(axis) == "ffn" and not is_part(axis)]
        if not axes:
            raise MeristemError(f"{self.name}: {anatomy.builder.model_type} has no feed-forward units of its own")
        return {axis: AxisMap.tile(anatomy.sizes[axis], self.copies) for axis in axes}

    def choices(self) -> Choices:
        """The noise on readers."""
        return Choices(noise=self.noise, seed=self.seed)
