"""What a growth method is: a frozen dataclass that chooses axis maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.growth.plan import GrowthPlan, LayerMap, config_changes, sizes_after
from meristem.growth.tying import repair


@dataclass(frozen=True)
class Method(ABC):
    """A growth method. Subclasses are frozen dataclasses whose fields are the method's options."""

    name: ClassVar[str]
    preserves_function: ClassVar[bool] = True

    @abstractmethod
    def axis_maps(self, anatomy: Anatomy) -> Mapping[str, AxisMap]:
        """The map of every axis that changes size. Raises MeristemError when the targets make no sense."""

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The map of every list of blocks that changes length."""
        return {}

    def plan(self, anatomy: Anatomy, model: nn.Module) -> GrowthPlan:
        """The full plan for growing `model`, whose anatomy this is. The model is run once (to find the norm before a
        tied head) and not changed."""
        maps, layers = self.axis_maps(anatomy), self.layer_maps(anatomy)
        sizes = sizes_after(anatomy, maps)
        depths = {**anatomy.builder.depths, **{axis: len(layer_map) for axis, layer_map in layers.items()}}
        target = anatomy.builder.resized(sizes, depths, {})
        keep_tied = getattr(self, "tied", "keep") == "keep"
        fix = repair(anatomy, target, maps, model, keep_tied)
        if fix.untied:
            target = anatomy.builder.resized(sizes, depths, config_changes(untied=True))
        return GrowthPlan(
            source=anatomy,
            target=target,
            maps=maps,
            layers=layers,
            preserves_function=self.preserves_function,
            noise=getattr(self, "noise", 0.0),
            seed=getattr(self, "seed", 0),
            scales=fix.scales,
            offsets=fix.offsets,
            untied=fix.untied,
        )

    def options(self) -> dict[str, Any]:
        """The method and its options, as recorded in `meristem.json`."""
        return {"method": self.name, **asdict(self)}


Methods = Method | Sequence[Method]


def as_list(methods: Methods) -> list[Method]:
    return [methods] if isinstance(methods, Method) else list(methods)
