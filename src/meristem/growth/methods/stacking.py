"""Growth in depth by copying layers: stacking of the whole network, gradual stacking, MIDAS, interpolation,
identity blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.plans.depth import (
    fitting,
    identity_layers,
    in_order,
    repeat_all,
    repeat_each,
    repeat_last,
    repeat_middle,
)
from meristem.growth.plans.layers import LayerMap
from meristem.growth.sizes.depth_targets import depth_targets, depths_of

Repeat = Callable[[int, int], LayerMap]  # from a depth and a larger one to the map of layers


@dataclass(frozen=True)
class DepthMethod(Method):
    """The options that every method that only adds layers takes.

    Args:
        blocks: the lists of blocks that get new layers: "all", or "encoder" or "decoder" of an
            encoder-decoder.
        depths: target depths by the name of the list of blocks: {"encoder_layers": 12, "decoder_layers": 6}.
            Other lists keep their depth, or follow `num_hidden_layers`.

    Raises:
        MeristemError: when a network is grown, if no layer is added.
    """

    preserving: ClassVar[bool] = False
    blocks: str = field(default="all", kw_only=True)
    depths: Mapping[str, int] | None = field(default=None, kw_only=True)

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """No maps, because the width stays. Raises MeristemError if no layer is added either."""
        if not self.layer_maps(anatomy):
            raise MeristemError(f"{self.name}: nothing to grow; the network already has this depth")
        return {}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """False, because copied layers change the function."""
        return False


@dataclass(frozen=True)
class Stacking(DepthMethod):
    """Stack the whole network on itself `depth` times (G_stack), repeat every layer in place, or copy the
    layers of a list.

    Du et al.: "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training",
    NeurIPS 2024, arXiv:2405.15319 (growth operator G_direct in depth; the paper recommends depth=4). Kim et
    al.: "SOLAR 10.7B", NAACL 2024, arXiv:2312.15166 (depth up-scaling: layers="0-23,8-31" of 32 layers).

    Does not keep the function. The other options are those of `DepthMethod`.

    Args:
        depth: the factor for the number of layers.
        num_hidden_layers: the target depth, instead of `depth`.
        order: "stack" (0 1 2 0 1 2) or "interpolate" (0 0 1 1 2 2).
        layers: the old layer that each new one copies, in every list of blocks: "0-23,8-31" (both ends are
            included) or a list of numbers.
        encoder_layers, decoder_layers: the same for one list of blocks. A list of blocks for which nothing is
            given stays as it is.

    Raises:
        MeristemError: when a network is grown, if `depth` is not a whole number, if a layer does not exist,
            or if no layer is added.
    """

    name: ClassVar[str] = "stacking"
    depth: int = 2
    num_hidden_layers: int | None = None
    order: Literal["stack", "interpolate"] = "stack"
    layers: str | Sequence[int] | None = None
    encoder_layers: str | Sequence[int] | None = None
    decoder_layers: str | Sequence[int] | None = None

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if the factor is not a whole number, or if a layer does not exist."""
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
        """{axis of depth: the list of layers that was given for it}."""
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
class SomeLayers(DepthMethod):
    """Copy some layers, and put the copies after them. `repeat` says which.

    Args:
        layers: how many layers are copied.
        num_hidden_layers: the target depth, instead of `layers`.
    """

    repeat: ClassVar[Repeat]
    layers: int = 1
    num_hidden_layers: int | None = None

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Raises MeristemError if there are fewer layers than are to be copied."""
        spans = _spans(anatomy, self, self.layers, self.num_hidden_layers)
        return {
            axis: fitting(anatomy, self.name, axis, self.repeat, anatomy.depths[axis] + span)
            for axis, span in spans.items()
        }


@dataclass(frozen=True)
class GradualStacking(SomeLayers):
    """Copy the last layers, and put the copies on top of them.

    Reddi et al.: "Efficient Training of Language Models using Few-Shot Learning" (gradual stacking), ICML
    2023, in the form of Saunshi et al., arXiv:2409.19044, section 2.

    Does not keep the function. The other options are those of `DepthMethod`.

    Args:
        layers: how many of the last layers are copied.
        num_hidden_layers: the target depth, instead of `layers`.

    Raises:
        MeristemError: when a network is grown, if it has fewer layers than are to be copied.
    """

    name: ClassVar[str] = "gradual_stacking"
    repeat: ClassVar[Repeat] = staticmethod(repeat_last)


@dataclass(frozen=True)
class MIDAS(SomeLayers):
    """Copy the middle layers, and put the copies after them.

    Saunshi, Karp, Krishnan, Miryoosefi, Reddi, Kumar: "On the Inductive Bias of Stacking Towards Improving
    Reasoning", NeurIPS 2024, arXiv:2409.19044.

    Does not keep the function. The other options are those of `DepthMethod`.

    Args:
        layers: how many of the middle layers are copied.
        num_hidden_layers: the target depth, instead of `layers`.

    Raises:
        MeristemError: when a network is grown, if it has fewer layers than are to be copied.
    """

    name: ClassVar[str] = "midas"
    repeat: ClassVar[Repeat] = staticmethod(repeat_middle)


@dataclass(frozen=True)
class IdentityBlocks(DepthMethod):
    """Add layers that copy the layer before them and write nothing, because their output projections are
    zero.

    Wu et al.: "LLaMA Pro: Progressive LLaMA with Block Expansion", ACL 2024, arXiv:2401.02415. LEMON
    (arXiv:2310.07999) grows depth in the same way.

    Keeps the function. It is exact for pre-norm networks. For post-norm networks (BERT) it is exact up to eps
    / (2 v) for each place where layers are added, where v is the variance that their norms measure (see
    `silent_blocks`). The other options are those of `DepthMethod`.

    Args:
        num_hidden_layers: the target depth of every list of blocks.
        depth: a factor for the number of layers, instead of `num_hidden_layers`.
    """

    name: ClassVar[str] = "identity_blocks"
    preserving: ClassVar[bool] = True
    num_hidden_layers: int | None = None
    depth: int = 1

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """Silent copies, each after its original, spread evenly."""
        asked = (self.depth, self.num_hidden_layers, self.depths)
        targets = depth_targets(anatomy, self.name, *asked, blocks=self.blocks)
        return {axis: identity_layers(anatomy, axis, target) for axis, target in targets.items()}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always True. The plan finds out whether blocks that write nothing leave the stream as it is (see
        `silent_blocks`).
        """
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
