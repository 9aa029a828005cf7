"""Depth growth by copying layers: whole-model stacking, gradual stacking, MIDAS, interpolation, identity blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.depth import identity_layers, repeat_all, repeat_each, repeat_span
from meristem.growth.method import Method, Weights, blocks_can_be_silent
from meristem.growth.plan import LayerMap
from meristem.growth.targets import depth_targets, depths_of


@dataclass(frozen=True)
class DepthMethod(Method):
    """A method that only adds layers.

    Args:
        blocks: the lists of blocks that get them: "all", or of an encoder-decoder "encoder" or "decoder" alone.
    """

    blocks: str = field(default="all", kw_only=True)

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """None: the width stays. Raises MeristemError if no layer is added either."""
        if not self.layer_maps(anatomy):
            raise MeristemError(f"{self.name}: nothing to grow; the depth asked for is the one it has")
        return {}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Copied layers change the function."""
        return False


@dataclass(frozen=True)
class Stacking(DepthMethod):
    """G_stack: the whole network on top of itself, `depth` times; or every layer repeated in place ("interpolate").

    Du et al.: "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training", NeurIPS 2024,
    arXiv:2405.15319 (growth operator G_direct in depth; the paper recommends depth=4). Does not preserve the function.

    Args:
        depth: factor for the number of layers.
        order: "stack" (0 1 2 0 1 2) or "interpolate" (0 0 1 1 2 2).
    """

    name: ClassVar[str] = "stacking"
    depth: int = 2
    order: Literal["stack", "interpolate"] = "stack"

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError for a factor that is no whole number."""
        repeat = repeat_all if self.order == "stack" else repeat_each
        targets = depth_targets(anatomy, self.name, self.depth, blocks=self.blocks)
        return {axis: repeat(anatomy.depths[axis], target) for axis, target in targets.items()}


@dataclass(frozen=True)
class GradualStacking(DepthMethod):
    """The last layers again on top.

    Reddi et al.: "Efficient Training of Language Models using Few-Shot Learning" (gradual stacking), ICML 2023; in the form
    of Saunshi et al., arXiv:2409.19044, section 2. Does not preserve the function.

    Args:
        layers: how many of the last layers are copied on top of them.
    """

    name: ClassVar[str] = "gradual_stacking"
    layers: int = 1

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if there are fewer layers than asked for."""
        return {
            axis: repeat_span(depth, depth - _span(self.name, self.layers, depth), depth)
            for axis, depth in depths_of(anatomy, self.name, self.blocks).items()
        }


@dataclass(frozen=True)
class MIDAS(DepthMethod):
    """The middle layers again in the middle.

    Saunshi, Karp, Krishnan, Miryoosefi, Reddi, Kumar: "On the Inductive Bias of Stacking Towards Improving Reasoning",
    NeurIPS 2024, arXiv:2409.19044. Does not preserve the function.

    Args:
        layers: size of the middle block that is copied.
    """

    name: ClassVar[str] = "midas"
    layers: int = 1

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if there are fewer layers than asked for."""
        maps = {}
        for axis, depth in depths_of(anatomy, self.name, self.blocks).items():
            first = (depth - _span(self.name, self.layers, depth)) // 2
            maps[axis] = repeat_span(depth, first, first + self.layers)
        return maps


@dataclass(frozen=True)
class IdentityBlocks(DepthMethod):
    """New layers copy the one before them but write nothing: their output projections are zero. Exact for pre-norm.

    Wu et al.: "LLaMA Pro: Progressive LLaMA with Block Expansion", ACL 2024, arXiv:2401.02415; LEMON's depth growth.

    Args:
        num_hidden_layers: target depth of every list of blocks.
        depth: or a factor for it.
    """

    name: ClassVar[str] = "identity_blocks"
    num_hidden_layers: int | None = None
    depth: int = 1

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Silent copies behind their originals, spread evenly."""
        targets = depth_targets(anatomy, self.name, self.depth, self.num_hidden_layers, blocks=self.blocks)
        return {axis: identity_layers(anatomy, axis, target) for axis, target in targets.items()}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Unless blocks end in a norm, which changes even an unchanged stream (post-norm, as in BERT)."""
        return blocks_can_be_silent(anatomy, model, inputs)


def _span(method: str, layers: int, depth: int) -> int:
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= depth:
        raise MeristemError(f"{method}: layers must be between 1 and {depth}, the layers there are; got {layers!r}")
    return layers
