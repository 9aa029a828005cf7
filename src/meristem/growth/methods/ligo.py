"""LiGO learns the growth: dense maps for every axis and a mixture over layers, fitted on data for some
hundred steps.

Wang, Panda, Torroba Hennigen, Greengard, Karlinsky, Feris, Cox, Wang, Kim: "Learning to Grow Pretrained
Models for Efficient Transformer Training", ICLR 2023, arXiv:2303.00980. The paper has one matrix per axis,
which serves writers and, transposed, readers. Here every axis has a pair of matrices. The pair starts at a
duplication that keeps the function, with noise that copies cancel, and both are free from then on. (Without
noise, copies get equal gradients in the fit and in all training after it, and stay copies forever.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, UnitMap
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_frequencies, kind_of
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.methods.width import WidthMethod
from meristem.growth.plans.depth import repeat_all
from meristem.growth.plans.layers import LayerMap, LayerSource, layer_order
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.sizes.depth_targets import depth_targets
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.widths.padding import lossless
from meristem.streams import stream

FIXED = ("head_dim", "vocab", "positions", "projection")  # kinds of axes that are not fitted


@dataclass(frozen=True)
class LiGO(WidthMethod):
    """Learned linear growth (arXiv:2303.00980): `ms.grow(small, ms.LiGO(width=2).fit(small, batches))`.

    Does not keep the function. The fit starts at a growth that keeps it, at any ratio, and descends the loss
    from there. Heads are mixed whole (one number for each pair of heads). `head_dim`, the vocabulary and
    positions keep the maps that they start with. The other options are those of `WidthMethod`.

    Args:
        num_hidden_layers: the target depth. New layers start as copies of the whole network (stacking).
        depth: a factor for the number of layers, instead of `num_hidden_layers`.
        depths: target depths by the name of the list of blocks: {"encoder_layers": 12, "decoder_layers": 6}.
        blocks: the lists of blocks that get new layers: "all", or "encoder" or "decoder" of an
            encoder-decoder.
        steps: the number of steps of the fit.
        learning_rate: the learning rate of the fit (Adam on the maps).
        noise: the standard deviation of the noise on how new units are read, relative to the weights of
            readers. It lies in the null space of the copies, so the fit still starts at the small network's
            function.
        seed: of the noise.
    """

    name: ClassVar[str] = "ligo"
    preserving: ClassVar[bool] = False
    num_hidden_layers: int | None = None
    depth: int = 1
    depths: Mapping[str, int] | None = None
    blocks: str = "all"
    steps: int = 100
    learning_rate: float = 3e-4
    noise: float = 0.1
    seed: int = 0

    def fit(
        self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]], anatomy: Anatomy | None = None
    ) -> FittedLiGO:
        """Fit the maps on data.

        Args:
            model: the small network. It does not change.
            batches: batches of keyword arguments of forward. They include labels, so that the output has a
                `loss`. When they run out, the fit starts again at the first one.
            anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.

        Returns:
            A method with the learned maps. `ms.grow` applies it, and the result is a plain network.

        Raises:
            MeristemError: if a target is impossible, if nothing can be fitted, or if there are no batches.
        """
        anatomy = anatomy or Anatomy.of(model)
        fitted = self._starting_point(anatomy, model.state_dict())
        leaves = [*fitted.write.values(), *fitted.read.values(), *fitted.mixture.values()]
        if not leaves:
            raise MeristemError(
                f"ligo: nothing to fit: {', '.join(fitted.start)} keep fixed maps; name further sizes such as hidden_size=, or use lemon"
            )
        plan = fitted.plan(anatomy, model)
        skeleton = plan.target.build(plan.target.sizes, plan.target.depths).train()
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.Adam([leaf.requires_grad_() for leaf in leaves], lr=self.learning_rate)
        for _, batch in zip(range(self.steps), itertools.cycle(batches), strict=False):
            step = replace(plan, maps=fitted.axis_maps(anatomy, {}), layers=fitted.layer_maps(anatomy))
            grown = {name: grow_tensor(tensor, state.__getitem__) for name, tensor in step.tensors.items()}
            loss = torch.func.functional_call(skeleton, grown, kwargs=dict(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fitted.losses.append(float(loss.detach()))
        for leaf in leaves:
            leaf.requires_grad_(False)
        if not fitted.losses:
            raise MeristemError("ligo: no batches to fit on")
        return fitted

    def axis_map(self, anatomy: Anatomy, axis: str, target: int, weights: Weights) -> AxisMap:
        """The map at which the fit starts: LEMON's, which keeps the function at any ratio."""
        return lossless(anatomy, axis, target)

    def plan(self, anatomy: Anatomy, model: nn.Module, inputs: Inputs = None) -> GrowthPlan:
        """Raises MeristemError, because the method has to be fitted first."""
        raise MeristemError("ligo is fitted on data first: LiGO(...).fit(model, batches), or a recipe's grow node")

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The maps at which the fit starts: copies of the whole network."""
        asked = (self.depth, self.num_hidden_layers, self.depths)
        targets = depth_targets(anatomy, self.name, *asked, blocks=self.blocks)
        return {axis: repeat_all(anatomy.depths[axis], target) for axis, target in targets.items()}

    def _apart(self, axis: str, start: AxisMap) -> Tensor:
        """How the new units of an axis are read at the start of the fit (new size, old size): as in `start`,
        plus noise that is orthogonal to what they carry.
        """
        read, write, heard = (side.matrix().double() for side in (start.read, start.write, start.heard))
        generator = torch.Generator().manual_seed(stream(self.seed, self.name, axis))
        noise = torch.randn(read.shape, generator=generator, dtype=read.dtype)
        return read + self.noise / read.shape[1] ** 0.5 * _orthogonal(noise, torch.cat([write, heard], 1))

    def _starting_point(self, anatomy: Anatomy, weights: Weights) -> FittedLiGO:
        maps, layers = self.axis_maps(anatomy, weights), self.layer_maps(anatomy)
        mixture = {}
        for axis, layer_map in layers.items():
            mixture[axis] = torch.zeros(len(layer_map), anatomy.depths[axis])
            for new, old in enumerate(layer_order(layer_map)):
                mixture[axis][new, old] = 1.0
        return FittedLiGO(
            write={axis: maps[axis].write.matrix().float() for axis in maps if _learns(axis)},
            read={axis: self._apart(axis, maps[axis]).float() for axis in maps if _learns(axis)},
            mixture=mixture,
            fitted_with=self.options(),
            start=dict(maps),
        )


def _orthogonal(noise: Tensor, directions: Tensor) -> Tensor:
    """`noise` (units, columns) without its part in the span of `directions` (units, k)."""
    return noise - directions @ (torch.linalg.pinv(directions) @ noise)


def _learns(axis: str) -> bool:
    """Whether the maps of an axis are fitted. They are not where each unit has a fixed meaning (a frequency,
    a token, a position).
    """
    return kind_of(axis) not in FIXED and not is_frequencies(axis)


@dataclass(frozen=True, eq=False)
class FittedLiGO(Method):
    """The learned maps of LiGO. `LiGO.fit` makes it.

    Attributes:
        write: {axis: (new size, old size) matrix} for what new units carry.
        read: {axis: (new size, old size) matrix} for how they are read.
        mixture: {axis of depth: (new depth, old depth) matrix} for the layers.
        fitted_with: the options of the fit.
        start: the maps at which the fit started. What they say about norms stays, and so do the maps of axes
            that are not fitted.
        losses: the loss at each step of the fit.
    """

    name: ClassVar[str] = "ligo"
    preserving: ClassVar[bool] = False
    write: dict[str, Tensor]
    read: dict[str, Tensor]
    mixture: dict[str, Tensor]
    fitted_with: dict[str, Any]
    start: dict[str, AxisMap] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        """The learned pairs, and the fixed maps."""
        return {axis: self._map(axis, start) for axis, start in self.start.items()}

    def _map(self, axis: str, start: AxisMap) -> AxisMap:
        if axis not in self.write:
            return start
        write, read = (UnitMap(m.shape[1], dense=m.double()) for m in (self.write[axis], self.read[axis]))
        gain = write if start.gain is start.write else start.gain
        heard = write if start.heard is start.write else start.heard
        return AxisMap(write, read, gain, heard, twins=False, norm_factor=start.norm_factor)

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        """The learned mixture of old layers for each new layer."""
        return {
            axis: tuple(LayerSource(tuple((old, weight) for old, weight in enumerate(row))) for row in mixture)
            for axis, mixture in self.mixture.items()
        }

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        """Always False."""
        return False

    def options(self) -> dict[str, Any]:
        """The options of the fit, and its first and last loss."""
        return {**self.fitted_with, "first_loss": self.losses[0], "last_loss": self.losses[-1]}
