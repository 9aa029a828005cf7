"""Depth growth by copying layers: whole-model stacking, gradual stacking, MIDAS, interpolation, identity blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.depth import (
    fitting,
    identity_layers,
    in_order,
    repeat_all,
    repeat_each,
    repeat_last,
    repeat_middle,
)
from meristem.growth.depth_targets import depth_targets, depths_of
from meristem.growth.layers import LayerMap
from meristem.growth.method import Method, Weights


@dataclass(frozen=True)
class DepthMethod(Method):
    """A method that only adds layers.

    Args:
        blocks: the lists of blocks that get them: "all", or of an encoder-decoder "encoder" or "decoder" alone.
        depths: target depths by the name of the list: {"encoder_layers": 12, "decoder_layers": 6}; the others stay as they are, or
            follow `num_hidden_layers`.
    """

    preserving: ClassVar[bool] = False
    blocks: str = field(default="all", kw_only=True)
    depths: Mapping[str, int] | None = field(default=None, kw_only=True)

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """None: the width stays. Raises MeristemError if no layer is added either."""
        if not self.layer_maps(anatomy):
            raise MeristemError(f"{self.name}: nothing to grow; the network already has the asked depth")
        return {}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Copied layers change the function."""
        return False


@dataclass(frozen=True)
class Stacking(DepthMethod):
    """G_stack: the whole network on top of itself, `depth` times; or every layer repeated in place ("interpolate"); or any list.

    Du et al.: "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training", NeurIPS 2024,
    arXiv:2405.15319 (growth operator G_direct in depth; the paper recommends depth=4). Kim et al.: "SOLAR 10.7B", NAACL 2024,
    arXiv:2312.15166 (depth up-scaling: layers="0-23,8-31" of 32). Does not preserve the function.

    Args:
        depth: factor for the number of layers.
        num_hidden_layers: or the number itself.
        order: "stack" (0 1 2 0 1 2) or "interpolate" (0 0 1 1 2 2).
        layers: the old layer that each new one copies, as "0-23,8-31" (both ends included) or numbers; in every list of blocks.
        encoder_layers, decoder_layers: the same for one list of blocks; one without a list of its own stays as it is.
    """

    name: ClassVar[str] = "stacking"
    depth: int = 2
    num_hidden_layers: int | None = None
    order: Literal["stack", "interpolate"] = "stack"
    layers: str | Sequence[int] | None = None
    encoder_layers: str | Sequence[int] | None = None
    decoder_layers: str | Sequence[int] | None = None

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError for a factor that is no whole number, or layers that there are not."""
        listed = self._listed(anatomy)
        if listed:
            maps = {axis: in_order(text, anatomy.depths[axis], self.name) for axis, text in listed.items()}
            return {
                axis: fitting(anatomy, self.name, axis, lambda _, __, found=found: found, len(found))
                for axis, found in maps.items()
            }
        repeat = repeat_all if self.order == "stack" else repeat_each
        factor = 1 if self.num_hidden_layers or self.depths else self.depth
        targets = depth_targets(anatomy, self.name, factor, self.num_hidden_layers, self.depths, blocks=self.blocks)
        return {axis: fitting(anatomy, self.name, axis, repeat, target) for axis, target in targets.items()}

    def _listed(self, anatomy: Anatomy) -> dict[str, str | Sequence[int]]:
        """{axis of depth: list}."""
        own = {"encoder_layers": self.encoder_layers, "decoder_layers": self.decoder_layers}
        for axis, layers in own.items():
            if layers is not None and axis not in anatomy.depths:
                raise MeristemError(
                    f"stacking: {anatomy.builder.model_type} has no {axis}; its lists of blocks: {', '.join(anatomy.depths)}"
                )
        chosen = depths_of(anatomy, self.name, self.blocks)
        every = {
            axis: self.layers if own.get(axis) is None and axis in chosen else own.get(axis) for axis in anatomy.depths
        }
        return {axis: layers for axis, layers in every.items() if layers is not None}


@dataclass(frozen=True)
class GradualStacking(DepthMethod):
    """The last layers again on top.

    Reddi et al.: "Efficient Training of Language Models using Few-Shot Learning" (gradual stacking), ICML 2023; in the form
    of Saunshi et al., arXiv:2409.19044, section 2. Does not preserve the function.

    Args:
        layers: how many of the last layers are copied on top of them.
        num_hidden_layers: or the target depth.
    """

    name: ClassVar[str] = "gradual_stacking"
    layers: int = 1
    num_hidden_layers: int | None = None

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if there are fewer layers than asked for."""
        spans = _spans(anatomy, self, self.layers, self.num_hidden_layers)
        return {
            axis: fitting(anatomy, self.name, axis, repeat_last, anatomy.depths[axis] + span)
            for axis, span in spans.items()
        }


@dataclass(frozen=True)
class MIDAS(DepthMethod):
    """The middle layers again in the middle.

    Saunshi, Karp, Krishnan, Miryoosefi, Reddi, Kumar: "On the Inductive Bias of Stacking Towards Improving Reasoning",
    NeurIPS 2024, arXiv:2409.19044. Does not preserve the function.

    Args:
        layers: size of the middle block that is copied.
        num_hidden_layers: or the target depth.
    """

    name: ClassVar[str] = "midas"
    layers: int = 1
    num_hidden_layers: int | None = None

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if there are fewer layers than asked for."""
        spans = _spans(anatomy, self, self.layers, self.num_hidden_layers)
        return {
            axis: fitting(anatomy, self.name, axis, repeat_middle, anatomy.depths[axis] + span)
            for axis, span in spans.items()
        }


@dataclass(frozen=True)
class IdentityBlocks(DepthMethod):
    """New layers copy the one before them but write nothing: their output projections are zero. Exact for pre-norm networks, and
    for post-norm ones (BERT) up to eps / (2 v) per place, with v the variance that their norms measure; see `silent_blocks`.

    Wu et al.: "LLaMA Pro: Progressive LLaMA with Block Expansion", ACL 2024, arXiv:2401.02415; LEMON's depth growth.

    Args:
        num_hidden_layers: target depth of every list of blocks.
        depth: or a factor for it.
    """

    name: ClassVar[str] = "identity_blocks"
    preserving: ClassVar[bool] = True
    num_hidden_layers: int | None = None
    depth: int = 1

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Silent copies behind their originals, spread evenly."""
        asked = (self.depth, self.num_hidden_layers, self.depths)
        targets = depth_targets(anatomy, self.name, *asked, blocks=self.blocks)
        return {axis: identity_layers(anatomy, axis, target) for axis, target in targets.items()}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always: whether blocks that write nothing leave the stream as it is, the plan finds out (see `silent_blocks`)."""
        return True


def _spans(anatomy: Anatomy, method: DepthMethod, layers: int, target: int | None) -> dict[str, int]:
    """{axis: how many of its layers are copied}."""
    name, blocks = method.name, method.blocks
    if target is not None or method.depths:
        lengths = depth_targets(anatomy, name, num_hidden_layers=target, more=method.depths, blocks=blocks)
        return {
            axis: _span(name, length - anatomy.depths[axis], anatomy.depths[axis]) for axis, length in lengths.items()
        }
    return {axis: _span(name, layers, depth) for axis, depth in depths_of(anatomy, name, blocks).items()}


def _span(method: str, layers: int, depth: int) -> int:
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= depth:
        raise MeristemError(f"{method}: layers must be between 1 and {depth}, the number of layers; got {layers!r}")
    return layers
