"""Pruning by what a network computes on data: the most important units stay, their readers are fitted again
by least squares, and the blocks go whose absence costs least.

Muralidharan et al.: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), NeurIPS
2024, arXiv:2407.14679 (sections 2.2 and 2.3). He, Zhang, Sun: "Channel Pruning for Accelerating Very Deep
Neural Networks", ICCV 2017, arXiv:1707.06168 (equation 1, readers by least squares). Sun, Liu, Bair, Kolter:
"A Simple and Effective Pruning Approach for Large Language Models" (Wanda), ICLR 2024, arXiv:2306.11695
(importance as weight times activation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.streamed import is_streamed
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.methods.weight_selection import magnitude
from meristem.growth.plans.layers import LayerMap, LayerSource
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.prune_plan import PrunePlan, in_groups, kept_places, ordered
from meristem.growth.pruning.batch_statistics import batch_norms, new_statistics
from meristem.growth.pruning.prune_blocks import blocks_that_stay
from meristem.growth.pruning.reader_fits import at_once, in_turn
from meristem.growth.pruning.readings import ReadersWatch, watched_readings
from meristem.growth.sizes.depth_targets import depth_targets
from meristem.growth.sizes.targets import width_targets
from meristem.growth.structure.symmetries import Symmetries, proved
from meristem.growth.tensors.build import build
from meristem.growth.widths.causes import REMOVE, computed_weight

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Prune(Method):
    """Keep the most important units, chosen in each layer separately, and remove the blocks whose absence
    raises the loss least (Minitron, arXiv:2407.14679, sections 2.2 and 2.3).

    Does not keep the function. Everything is measured on the `inputs` of `ms.shrink`, or on `batches`: give
    some hundred examples. Units that are tied, for example by a residual stream, have to move together. They
    are judged over all their readers. Axes whose units cannot be permuted are pruned by the magnitude of
    their weights.

    Args:
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads: target sizes.
        num_hidden_layers: the target depth.
        sizes: further target sizes by the name of the axis: {"channels": 8}.
        depths: further target depths by the name of the list of blocks: {"decoder_layers": 2}.
        blocks: the lists of blocks that `num_hidden_layers` applies to: "all", or "encoder" or "decoder" of
            an encoder-decoder.
        importance: the importance of a unit, summed over its readers. The shares of each reader sum to 1.
            "outputs" is the root mean square of what the unit adds to the output of the reader. "activations"
            is that of the unit itself (Minitron).
        readers: how readers are fitted by least squares (arXiv:1707.06168, equation 1), so that they compute
            from the units that stay what they computed from all units. "in_turn" fits each reader to the
            inputs that reach it after those before it are fitted. "at_once" fits each as if everything before
            it were unchanged, which needs no further passes. "kept" fits none.
        ridge: the ridge of that fit, relative to the mean square of the units.
        batches: batches of keyword arguments of forward, used instead of `inputs`. They are read several
            times. If they have labels, blocks are judged by the loss.

    Raises:
        MeristemError: when a network is cut, if a target is above the present size, if there is no target or
            no data, if the network is streamed, or if no block can be left out.
    """

    name: ClassVar[str] = "prune"
    preserving: ClassVar[bool] = False
    shrinks: ClassVar[bool] = True
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    num_hidden_layers: int | None = None
    sizes: Mapping[str, int] | None = None
    depths: Mapping[str, int] | None = None
    blocks: str = "all"
    importance: Literal["outputs", "activations"] = "outputs"
    readers: Literal["in_turn", "at_once", "kept"] = "in_turn"
    ridge: float = 1e-3
    batches: Iterable[Batch] | None = None

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """The choice by magnitude, which needs weights only. Raises MeristemError if a target is above the
        present size, or if there is none.
        """
        asked = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.num_key_value_heads)
        targets = width_targets(anatomy, self.name, 1, *asked, more=self.sizes, shrink=True)
        if not targets and not self._depths(anatomy):
            raise MeristemError(f"{self.name}: nothing to shrink; give a target such as hidden_size=")
        kept = {a: magnitude(anatomy, a, weights).topk(size).indices.sort().values for a, size in targets.items()}
        return {axis: AxisMap.select(units, anatomy.sizes[axis]) for axis, units in kept.items()}

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The first blocks, which needs no pass."""
        return {axis: _copied(range(depth)) for axis, depth in self._depths(anatomy).items()}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always False."""
        return False

    def plan(self, anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> GrowthPlan:
        """Run the network on the data, then choose.

        Raises:
            MeristemError: if a target is above the present size, if there is no target or no data, if the
                network is streamed, or if no block can be left out.
        """
        given = list(self.batches) if self.batches is not None else [inputs] if inputs is not None else []
        if not given:
            raise MeristemError(
                f"{self.name} chooses by what the network does on data: give a few hundred examples as inputs={{...}} of ms.shrink, "
                "or as Prune(batches=[...])"
            )
        if is_streamed(model):
            raise MeristemError(
                f"{self.name} runs the whole network, so its weights must be in memory: open it with from_pretrained"
            )
        computed = computed_weight(model)
        if computed is not None:
            raise MeristemError(f"{self.name}: {computed}. {REMOVE}")
        depths = self._depths(anatomy)
        maps = self.axis_maps(anatomy, model.state_dict())

        def cut(maps: Mapping[str, AxisMap], kept: Mapping[str, Sequence[int]]) -> GrowthPlan:
            layers = {axis: _copied(blocks) for axis, blocks in kept.items()}
            return _Cut(maps, layers).plan(anatomy, model, given[0])

        layers = blocks_that_stay(lambda kept: cut({}, kept), model, anatomy.depths, depths, given) if depths else {}
        plan = cut(maps, layers)
        return self._with_statistics(self._chosen(plan, model, given) if maps else plan, model, given)

    def options(self) -> dict[str, Any]:
        """The options, without the data."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "batches"}
        return {"method": self.name, **own}

    def passes(self, anatomy: Anatomy) -> int:
        """How often each example passes through the network, or through one with fewer blocks. Cost estimates
        use it.
        """
        tried = sum(sum(range(depth + 1, anatomy.depths[axis] + 1)) for axis, depth in self._depths(anatomy).items())
        return tried + 2

    def _depths(self, anatomy: Anatomy) -> dict[str, int]:
        asked = (1, self.num_hidden_layers, self.depths)
        return depth_targets(anatomy, self.name, *asked, shrink=True, blocks=self.blocks)

    def _chosen(self, plan: GrowthPlan, model: nn.Module, batches: Sequence[Batch]) -> PrunePlan:
        """The plan with the units of each group in the order of their importance, and with fitted readers."""
        symmetries, watch, readings = watched_readings(model, batches)
        places = _places(plan, watch, proved(symmetries, model, batches[0]))
        worth = self._worth(watch, places)
        orders = {group: _order(worth[group], kept) for group, kept in places.items() if group in worth}
        of_dimension = {
            (name, place): order
            for name, dims in watch.parameters.items()
            for place, dim in enumerate(dims)
            if (order := ordered(watch.space, dim, orders)) is not None
        }
        own = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
        pruned = PrunePlan(**own, orders=of_dimension)
        if self.readers == "kept":
            return pruned
        if self.readers == "at_once":
            return at_once(pruned, readings, self.ridge)
        return in_turn(pruned, readings, model, batches, self.ridge)

    def _worth(self, watch: ReadersWatch, groups: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """{group: (size,) the importance of each unit}, of groups that something reads."""
        worth: dict[int, Tensor] = {}
        for reading in watch.readings.values():
            shares = reading.heard() if self.importance == "outputs" else reading.moment.diagonal().sqrt()
            for group, own in in_groups(watch.space, reading.units, shares / shares.sum().clamp(min=1e-30)):
                if group in groups:
                    worth[group] = worth.get(group, torch.zeros_like(own)) + own
        return worth

    def _with_statistics(self, plan: GrowthPlan, model: nn.Module, batches: Sequence[Batch]) -> GrowthPlan:
        """The plan with the statistics of batch norms that the small network has."""
        if not batch_norms(model):
            return plan
        small = build(plan, model)
        new_statistics(small, batches)
        found = {f"{path}.{leaf}" for path in batch_norms(small) for leaf in ("running_mean", "running_var")}
        measured = {name: tensor for name, tensor in small.state_dict().items() if name in found}
        own = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
        return PrunePlan(**{**own, "measured": measured})


@dataclass(frozen=True)
class _Cut(Method):
    """A choice that has been made."""

    name: ClassVar[str] = "prune"
    shrinks: ClassVar[bool] = True
    preserving: ClassVar[bool] = False
    maps: Mapping[str, AxisMap] = field(default_factory=dict)
    layers: Mapping[str, LayerMap] = field(default_factory=dict)

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        return self.maps

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        return self.layers

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        return False


def _copied(layers: Iterable[int]) -> LayerMap:
    return tuple(LayerSource.copy(layer) for layer in layers)


def _places(plan: GrowthPlan, watch: ReadersWatch, symmetries: Symmetries) -> dict[int, Tensor]:
    """{group: which of its places the plan keeps}, for the groups that it cuts. The choice is the same
    wherever a group occurs.
    """
    found: dict[int, Tensor] = {}
    uneven: set[int] = set()
    for tensor in plan.tensors.values():
        source = tensor.terms[0].source
        for place, axis_map in enumerate(tensor.maps):
            if axis_map is None or axis_map.write.index is None or source not in watch.parameters:
                continue
            dim = watch.parameters[source][place]
            own = kept_places(watch.space, dim, axis_map.write.index)
            uneven |= watch.space.leaves(dim) - set(own)
            uneven |= {group for group, kept in own.items() if not torch.equal(found.setdefault(group, kept), kept)}
    sizes = symmetries.sizes
    return {g: kept for g, kept in found.items() if g in sizes and g not in uneven and len(kept) < sizes[g]}


def _order(worth: Tensor, kept: Tensor) -> Tensor:
    """(n,) the unit that moves to each place, so that the best units are in the places that stay."""
    best = worth.topk(len(kept)).indices.sort().values
    order, stay = torch.empty(len(worth), dtype=torch.long), torch.zeros(len(worth), dtype=torch.bool)
    stay[kept] = True
    rest = torch.ones(len(worth), dtype=torch.bool)
    rest[best] = False
    order[kept], order[~stay] = best, torch.nonzero(rest).flatten()
    return order
