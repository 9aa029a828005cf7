"""LEMON: lossless expansion at any ratio, in width and depth.

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
from meristem.growth.depth import identity_layers
from meristem.growth.depth_targets import depth_targets
from meristem.growth.layers import LayerMap
from meristem.growth.method import Choices, Weights
from meristem.growth.padding import lossless
from meristem.growth.typed_layers import typed_layers
from meristem.growth.width import NoisyWidthMethod

SHAPING = frozenset(
    {"tie_word_embeddings", "rope_parameters.partial_rotary_factor"}
)  # config entries that maps make up for


@dataclass(frozen=True)
class LEMON(NoisyWidthMethod):
    """Whole copies as far as they go, the remainder of the hidden axis silent; heads and feed-forward units duplicated.

    Exact for pre-norm networks at any ratio, for post-norm ones at whole ratios of width and any depth (see `silent_blocks`). What
    norms measure is kept by scaling the stream
    (see `stream`), so that eps stays as published.

    Args:
        norms: "stream", or "eps" for the paper's own rule: gains times sqrt(copies d / d'), the config's eps times its square.
            Where eps is not in the config (OPT) or serves norms of another axis too (Qwen3's heads), that is off by about
            eps over the mean square of the activations.
        num_hidden_layers: target depth; new layers are identity blocks behind the layer that they copy.
        depths: target depths by the name of the list of blocks: {"encoder_layers": 12, "decoder_layers": 6}.
        blocks: the lists of blocks that num_hidden_layers is meant for: "all", or of an encoder-decoder "encoder" or "decoder".
        layer_types: {list of blocks: the kind of each new layer}, for networks whose layers are of several kinds (sliding and full
            attention): old layers keep their order, silent ones take the other places. By default kinds travel with their layers.
        fields: further entries of the config, which may change the function.
        noise: symmetry-breaking noise on readers, in the null space; it also wakes the silent units.
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
        """Unless norms stand in the way (see `norms_are_kept`), or config entries change."""
        return set(self.fields or ()) <= SHAPING and super().promises(anatomy, maps, model, inputs)
