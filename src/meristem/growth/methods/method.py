"""The interface of a growth method: a frozen dataclass that chooses a map for each axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.streamed import weights_of
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.values import check_values
from meristem.growth.plans.dimensions import sizes_after
from meristem.growth.plans.layers import LayerMap, layer_order
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.silent_blocks import Silence, silence
from meristem.growth.structure.silent_branches import silent_branches
from meristem.growth.structure.tying import repair, tied_to_heads
from meristem.growth.tensors.build import build
from meristem.growth.widths.norm_statistics import keep_statistics
from meristem.growth.widths.obstacles import norms_are_kept

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Choices:
    """The options of a method that are not maps: the noise on readers and its seed, and whether a tied head
    stays tied.
    """

    noise: float = 0.0
    seed: int = 0
    keep_tied: bool = True
    fields: Mapping[str, Any] | None = None  # further config entries of the large network
    scales_eps: bool = False  # padding under norms: their gains and the config's eps are scaled, not the stream


@dataclass(frozen=True)
class Method(ABC):
    """A growth method. Subclasses are frozen dataclasses, and their fields are the options of the method."""

    name: ClassVar[str]
    shrinks: ClassVar[bool] = False  # makes smaller networks, not larger ones
    preserving: ClassVar[bool] = True  # keeps the function wherever norms and blocks allow it

    def __post_init__(self) -> None:
        check_values(self)

    @abstractmethod
    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """The map of every axis that changes size. Few methods use the weights.

        Raises:
            MeristemError: if the targets are impossible.
        """

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The map of every list of blocks that changes."""
        return {}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs) -> bool:
        """Whether this growth claims to keep the function, as far as its maps tell. `plan` also asks whether
        new blocks can be silent. The claim is then proved, or the growth raises an error.
        """
        return norms_are_kept(anatomy, maps, model, inputs)

    def choices(self) -> Choices:
        """What the plan needs to know besides the maps."""
        return Choices()

    def plan(self, anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> GrowthPlan:
        """The full plan for growing `model`.

        The model runs on `inputs`, to find the norm before a tied head and whether blocks can be silent. It
        does not change.

        Args:
            anatomy: the anatomy of `model`.
            model: the network that grows.
            inputs: keyword arguments of its forward. Random ones by default.

        Raises:
            MeristemError: if the targets do not fit the network.
        """
        maps, layers = self.axis_maps(anatomy, weights_of(model)), self.layer_maps(anatomy)
        sizes = sizes_after(anatomy, maps)
        if anatomy.builder.fact("norm_groups") and sizes.get("hidden") != anatomy.sizes.get("hidden"):
            raise MeristemError(
                f"{self.name}: this network's norms measure groups of units (it was fused with norm='grouped'), which a growth of "
                "hidden_size would mix; grow its depth, or fuse it again"
            )
        depths = {**anatomy.builder.depths, **{axis: len(layer_map) for axis, layer_map in layers.items()}}
        for axis in set(anatomy.builder.depths) - set(anatomy.depths):  # a decoder's config also counts encoder layers
            depths[axis] = next(
                (d for a, d in depths.items() if a in layers and anatomy.depths[a] == depths[axis]), depths[axis]
            )
        orders = {axis: layer_order(layer_map) for axis, layer_map in layers.items()}
        choices = self.choices()
        padding = keep_statistics(anatomy, maps, model, choices.scales_eps, inputs)
        changes = {**padding.changes, **(choices.fields or {})}
        target = anatomy.builder.resized(sizes, depths, changes, orders)
        fix = repair(anatomy, target, maps, model, choices.keep_tied, padding.scales, inputs)
        if fix.untied:
            target = anatomy.builder.resized(sizes, depths, {**changes, "tie_word_embeddings": False}, orders)
        silent = silence(anatomy, layers, model, inputs)
        if silent.obstacle:
            deep = GrowthPlan(anatomy, anatomy.builder.resized(anatomy.sizes, depths, {}, orders), {}, layers, False)
            names = silent_branches(anatomy, model, lambda muted: build(replace(deep, muted=muted), model), inputs)
            silent = Silence(muted=names) if names else silent
        return GrowthPlan(
            source=anatomy,
            target=target,
            maps=maps,
            layers=layers,
            preserves_function=self.promises(anatomy, maps, model, inputs) and not silent.obstacle,
            noise=choices.noise,
            seed=choices.seed,
            scales=fix.scales,
            untied=fix.untied,
            silent=padding.silent | tied_to_heads(anatomy),
            quiet=padding.quiet,
            muted=silent.muted,
            own_maps=padding.own_maps,
            stream_norms=silent.norms,
        )

    def target(self, anatomy: Anatomy, weights: Weights) -> Builder:
        """What builds the network that this method makes, with the right sizes but without the repairs that a
        plan adds. Cost estimates use it.
        """
        sizes = sizes_after(anatomy, self.axis_maps(anatomy, weights))
        lengths = {axis: len(layer_map) for axis, layer_map in self.layer_maps(anatomy).items()}
        return anatomy.builder.resized(sizes, {**anatomy.builder.depths, **lengths}, self.choices().fields or {})

    def options(self) -> dict[str, Any]:
        """The method and its options, as recorded in `meristem.json`."""
        return {"method": self.name, **asdict(self)}


Methods = Method | Sequence[Method]


def as_list(methods: Methods) -> list[Method]:
    """One method, or several that are applied one after another, as a list.

    Raises:
        MeristemError: for anything that is not a method.
    """
    found = [methods] if isinstance(methods, Method) or not isinstance(methods, Sequence) else list(methods)
    found = [methods] if isinstance(methods, str) else found
    other = next((entry for entry in found if not isinstance(entry, Method)), None)
    if other is not None:
        said = f"the class {other.__name__}" if isinstance(other, type) else repr(other)[:60]
        raise MeristemError(
            f"a growth method is an object such as ms.HyperCloning(width=2), or a list of such; got {said}"
        )
    return found  # pyright: ignore[reportReturnType]
