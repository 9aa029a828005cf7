"""LEMON: lossless expansion by any ratio, in width and depth.

Wang, Su, Chen, Rao, Zhou, Hsieh: "LEMON: Lossless Model Expansion", ICLR 2024, arXiv:2310.07999.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.growth.methods.method import Choices, Weights
from meristem.growth.methods.width import NoisyWidthMethod
from meristem.growth.plans.depth import identity_layers
from meristem.growth.plans.layers import LayerMap
from meristem.growth.plans.typed_layers import typed_layers
from meristem.growth.sizes.depth_targets import depth_targets
from meristem.growth.widths.padding import lossless

SHAPING = frozenset(
    {"tie_word_embeddings", "rope_parameters.partial_rotary_factor"}
)  # config entries that maps make up for


@dataclass(frozen=True)
class LEMON(NoisyWidthMethod):
    """Copy the hidden axis as often as it fits, make the remaining units silent, and duplicate heads and
    feed-forward units (arXiv:2310.07999).

    Keeps the function of pre-norm networks at any ratio, and of post-norm networks at whole ratios of width
    and any depth (see `silent_blocks`). A silent unit is zero under RMSNorm, and the mean of the others under
    LayerNorm. The residual stream is scaled so that norms measure what they did (see `stream`), and eps stays
    as it is. The other options are those of `WidthMethod` and `NoisyWidthMethod`.

    Args:
        norms: "stream", or "eps" for the rule of the paper: gains times sqrt(copies d / d'), and the config's
            eps times the square of that, for a width that grows from d to d'. The rule is inexact where the
            config does not hold the eps (OPT), or where norms of another axis use it too (Qwen3's heads). Its
            error is about eps over the mean square of the activations.
        num_hidden_layers: the target depth. New layers are identity blocks, each after the layer that it
            copies.
        depths: target depths by the name of the list of blocks: {"encoder_layers": 12, "decoder_layers": 6}.
        blocks: the lists of blocks that `num_hidden_layers` applies to: "all", or "encoder" or "decoder" of
            an encoder-decoder.
        layer_types: {list of blocks: the type of each layer of the result}, for networks with layers of
            several types (sliding and full attention). Old layers keep their order, and silent layers take
            the other places. By default a copy has the type of its original.
        fields: further entries of the config. They may change the function.
        noise: the standard deviation of the noise on readers, relative to that of each tensor. It lies in the
            null space, so the function is kept. It also lets the silent units learn.

    Raises:
        MeristemError: when a network is grown, if a target is impossible or if nothing would grow.
    """

    name: ClassVar[str] = "lemon"
    noise: float = 0.1
    num_hidden_layers: int | None = None
    depths: Mapping[str, int] | None = None
    blocks: str = "all"
    layer_types: Mapping[str, Sequence[str]] | None = None
    fields: Mapping[str, Any] | None = None
    norms: Literal["stream", "eps"] = "stream"

    def choices(self) -> Choices:
        """The options above."""
        return replace(super().choices(), fields=self.fields, scales_eps=self.norms == "eps")

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """Padding for the hidden axis, cyclic duplication for the others."""
        return lossless(anatomy, axis, target)

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Identity blocks, spread evenly."""
        asked = (1, self.num_hidden_layers, self.depths)
        targets = depth_targets(anatomy, self.name, *asked, blocks=self.blocks)
        typed = self.layer_types or {}
        return {
            axis: typed_layers(anatomy, axis, typed[axis]) if axis in typed else identity_layers(anatomy, axis, target)
            for axis, target in targets.items()
        }

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """True, unless norms prevent it (see `norms_are_kept`) or config entries change."""
        return set(self.fields or ()) <= SHAPING and super().promises(anatomy, maps, model, inputs)
