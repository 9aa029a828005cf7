"""Weight selection: a small network made from units of a large one.

Xu, Chen, Vishniakov, Yin, Shen, Darrell, Liu, Liu: "Initializing Models with Larger Ones", ICLR 2024,
arXiv:2311.18823.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy, TensorAnatomy
from meristem.anatomy.heads import Heads, are_queries
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.plans.depth import spread
from meristem.growth.plans.layers import LayerMap, LayerSource
from meristem.growth.sizes.depth_targets import depth_targets
from meristem.growth.sizes.targets import width_targets
from meristem.growth.widths.head_dim import smaller_head_dim_map
from meristem.growth.widths.norm_statistics import normed_axes
from meristem.growth.widths.padding import follows

ROWS = ("vocab", "positions")  # kinds of axes whose units are tokens or positions


@dataclass(frozen=True)
class WeightSelection(Method):
    """Select some units of every axis, the same ones in every tensor (arXiv:2311.18823). Heads stay whole.

    Does not keep the function.

    Args:
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads: target sizes.
        head_dim: the target size of a head. The units stay whose frequencies the smaller head has.
        vocab_size, max_position_embeddings: target sizes of the vocabulary and of learned positions. The
            first ones stay.
        num_hidden_layers: the target depth.
        sizes: further target sizes by the name of the axis: {"encoder_ffn": 512}, {"channels": 8}.
        depths: further target depths by the name of the list of blocks: {"decoder_layers": 2}.
        blocks: the lists of blocks that `num_hidden_layers` applies to: "all", or "encoder" or "decoder" of
            an encoder-decoder.
        selection: "uniform" (evenly spaced units), "first", or "magnitude" (the units with the largest
            weights).
        layers: "first" layers (as in the paper) or "uniform" ones.
        readers: "kept" leaves the readers as they are (as in the paper). "rescaled" multiplies them by old
            size / new size, so that sums over fewer units keep their scale: the first units of a network that
            `HyperCloning` made then give exactly the network that it was made from. "silent" treats the units
            that go as silent units of padding (`ZeroPadding`, or `LEMON` below twice the width), so that
            norms measure what they did. With the last two, head_dim returns to what it was before it grew.

    Raises:
        MeristemError: when a network is cut, if a target is above the present size, or if there is no target.
    """

    name: ClassVar[str] = "weight_selection"
    preserving: ClassVar[bool] = False
    shrinks: ClassVar[bool] = True
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    num_hidden_layers: int | None = None
    sizes: Mapping[str, int] | None = None
    depths: Mapping[str, int] | None = None
    blocks: str = "all"
    selection: Literal["uniform", "first", "magnitude"] = "uniform"
    layers: Literal["first", "uniform"] = "first"
    readers: Literal["kept", "rescaled", "silent"] = "kept"

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """Rows of the identity. Raises MeristemError if a target is above the present size, or if there is
        none.
        """
        rows = {"vocab": self.vocab_size, "positions": self.max_position_embeddings}
        targets = width_targets(
            anatomy,
            self.name,
            1,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            more={**{axis: size for axis, size in rows.items() if size is not None}, **(self.sizes or {})},
            shrink=True,
        )
        if not targets and not self.layer_maps(anatomy):
            raise MeristemError(f"{self.name}: nothing to shrink; give a target such as hidden_size=")
        return {axis: self._map(anatomy, axis, targets, weights) for axis in targets}

    def _map(self, anatomy: Anatomy, axis: str, targets: Mapping[str, int], weights: Weights) -> AxisMap:
        old, target, kind = anatomy.sizes[axis], targets[axis], anatomy.axes[axis].kind
        if kind in ROWS:
            return AxisMap.select(torch.arange(target), old)
        if kind == "head_dim":
            return smaller_head_dim_map(anatomy, axis, {**anatomy.sizes, **targets}, undo=self.readers != "kept")
        kept = self._kept(anatomy, axis, target, weights)
        if self.readers == "rescaled" and self.selection == "first" and follows(anatomy, axis):
            copies = (old - 1 - kept) // target + 1  # of each unit, dealt out in turn where the function rounds
            return AxisMap(UnitMap.select(kept, old), UnitMap.select(kept, old, copies.double()), twins=False)
        if self.readers == "rescaled":
            return AxisMap(UnitMap.select(kept, old), UnitMap.select(kept, old, old / target), twins=False)
        units = UnitMap.select(kept, old)
        measured = self.readers == "silent" and axis in normed_axes(anatomy)
        return AxisMap(units, units, norm_factor=math.sqrt(old / target) if measured else 1.0)

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The layers that stay."""
        asked = (1, self.num_hidden_layers, self.depths)
        targets = depth_targets(anatomy, self.name, *asked, shrink=True, blocks=self.blocks)
        maps = {}
        for axis, target in targets.items():
            starts = [sum(times for _, times in spread(target, anatomy.depths[axis])[:i]) for i in range(target)]
            kept = range(target) if self.layers == "first" else starts
            maps[axis] = tuple(LayerSource.copy(layer) for layer in kept)
        return maps

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always False."""
        return False

    def _kept(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> Tensor:
        old = anatomy.sizes[axis]
        if self.selection == "first":
            return torch.arange(target)
        if self.selection == "uniform":
            return torch.arange(target) * old // target
        return magnitude(anatomy, axis, weights).topk(target).indices.sort().values


def magnitude(anatomy: Anatomy, axis: str, weights: Weights) -> Tensor:
    """(size of axis,) the sum of squares of all weights of each unit, over every tensor that has the axis as
    a plain factor of one of its dimensions.
    """
    total = torch.zeros(anatomy.sizes[axis], dtype=torch.float64)
    for name, tensor in anatomy.tensors.items():
        if tensor.tied_to is None and name in weights:
            for position in range(len(tensor.shape)):
                total += _unit_squares(anatomy, tensor, position, axis, weights[name])
    return total


def _unit_squares(anatomy: Anatomy, tensor: TensorAnatomy, position: int, axis: str, weight: Tensor) -> Tensor:
    layout = tensor.dimensions[position].layout
    nothing = torch.zeros(anatomy.sizes[axis], dtype=torch.float64)
    if axis not in anatomy.axes_of(layout) or len(layout.terms) != 1:
        return nothing
    factors: list[str | int] = []
    for factor in layout.terms[0]:
        if isinstance(factor, str) and are_queries(factor) and factor not in anatomy.axes:
            factors += [Heads.of(factor).kv_heads, Heads.of(factor).group]
        elif isinstance(factor, str | int):
            factors.append(factor)
        else:
            return nothing
    squares = weight.detach().cpu().double().pow(2).movedim(position, 0).flatten(1 if weight.dim() > 1 else 0)
    squares = squares.sum(-1) if weight.dim() > 1 else squares
    shape = [anatomy.sizes[f] if isinstance(f, str) else f for f in factors]
    here = factors.index(axis)
    return squares.reshape(shape).movedim(here, 0).flatten(1).sum(1) if len(shape) > 1 else squares
