"""Hybrids: the meta network, with a module of the large network in the place of one of its own.

Ni, Wang, Tan, Lin, Huang, Zhang, Wang, Yang: "Deep Incubation: Training Large Models by
Divide-and-Conquering", ICCV 2023, arXiv:2212.04129. A hybrid is a stock network of the same class, so any
training loop can train it. Only the parameters of the module require gradients. PyTorch therefore builds no
graph before the module, and computes no gradients of weights after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import Inputs
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method, Weights
from meristem.growth.plans.depth import with_fitting_sources
from meristem.growth.plans.layers import LayerMap, LayerSource
from meristem.growth.tensors.build import build, filled
from meristem.incubation.division import Division
from meristem.incubation.ownership import lists_in_order, owned, renumbered
from meristem.streams import stream

Start = Literal["random", "clone"]


@dataclass(frozen=True, repr=False)
class Incubation:
    """A hybrid in training, and the division that it belongs to. `ms.incubate` makes it.

    Args:
        model: the hybrid. Only the parameters of the module require gradients.
        division: the division of the large network.
        module: the number of the module.
        meta: a fingerprint of the meta network. All modules of a large network have to share it.
        anatomy: the anatomy of the meta network, if `incubate` was given one.
        inputs: the inputs of the meta network, if `incubate` was given some.
    """

    model: nn.Module
    division: Division
    module: int
    meta: str
    anatomy: Anatomy | None = None
    inputs: Mapping[str, Tensor] | None = None

    def __repr__(self) -> str:
        depths = ", ".join(map(str, self.division.depths))
        return f"Incubation(module {self.module} of {self.division.modules} ({depths} blocks) in a {type(self.model).__name__})"

    def record(self) -> dict[str, Any]:
        """Everything except the model, as plain data."""
        own = self.division
        return {
            "depths": list(own.depths),
            "meta_layers": own.meta_layers,
            "stages": list(own.stages),
            "module": self.module,
            "meta": self.meta,
        }

    @staticmethod
    def of_record(model: nn.Module, record: Mapping[str, Any]) -> Incubation:
        """The incubation that `record` wrote, with its trained hybrid."""
        division = Division(tuple(record["depths"]), record["meta_layers"], tuple(record["stages"]))
        return Incubation(model, division, record["module"], record["meta"])


def incubate(
    meta: nn.Module,
    division: Division,
    module: int,
    *,
    start: Start = "random",
    seed: int = 0,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Incubation:
    """Make the hybrid in which `module` trains alone, with the loss of the task (Deep Incubation,
    arXiv:2212.04129).

    The first module of a stage includes what comes before the stage (embeddings). The last module of all
    includes what follows the blocks (norm, head). An embedding that is tied to the head belongs to both, so
    it stays that of the meta network. Batch norms outside the module keep their running statistics, and use
    them.

    Args:
        meta: a trained network with `division.meta_depths` blocks. It does not change.
        division: the division of the large network, from `ms.divide`.
        module: the number of the module, counted from 0.
        start: "random" numbers, as in the paper, or "clone": the module begins as copies of the meta
            network's own blocks, each repeated.
        seed: the seed of the random numbers. Each module draws its own.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.
        inputs: keyword arguments of forward, for networks outside transformers.

    Raises:
        MeristemError: if the meta network has other depths, if there is no such module, or if blocks differ
            and cannot be cloned.
    """
    division.check(module)
    known = anatomy or Anatomy.of(meta)
    known = replace(known, blocks=lists_in_order(known, meta, inputs))
    _check_depths(known, division)
    if start == "clone":
        hybrid = _cloned(known, division, module, meta)
        mine = owned(hybrid, prefixes_of(known), division, module, inputs)
    elif start == "random":
        hybrid, mine = _random(known, division, module, meta, seed, inputs)
    else:
        raise MeristemError(f"start is random or clone, got {start!r}")
    for name, parameter in hybrid.named_parameters():
        parameter.requires_grad_(name in mine)
    for path, layer in hybrid.named_modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats and f"{path}.running_mean" not in mine:
            _keep_in_eval(layer)
    return Incubation(hybrid.train(), division, module, fingerprint(meta), anatomy, inputs)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all names and values of the tensors of a meta network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prefixes_of(anatomy: Anatomy) -> list[str]:
    """The paths of the lists of blocks, from input to output."""
    return [blocks.prefix for blocks in anatomy.blocks]


def _check_depths(anatomy: Anatomy, division: Division) -> None:
    depths = tuple(blocks.length for blocks in anatomy.blocks)
    if not depths:
        raise MeristemError("this network has no list of repeated blocks to divide")
    if len(depths) != len(division.stages):
        raise MeristemError(
            f"the network has {len(depths)} lists of blocks ({', '.join(b.axis for b in anatomy.blocks)}), the division "
            f"{len(division.stages)}; divide([blocks of each list], modules)"
        )
    if depths != division.meta_depths:
        raise MeristemError(
            f"the meta network has {_plain(depths)} blocks; {division.modules} modules with meta_layers={division.meta_layers} need "
            f"{_plain(division.meta_depths)}"
        )


def _plain(depths: tuple[int, ...]) -> str:
    return str(depths[0]) if len(depths) == 1 else str(list(depths))


@dataclass(frozen=True)
class _Placed(Method):
    """The meta network with one of its modules replaced by as many copies of its blocks as the large module
    has.
    """

    name = "deep_incubation"
    division: Division
    module: int

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        return {}

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        origins = self.division.origins(self.module)
        return {
            blocks.axis: with_fitting_sources(anatomy, blocks.axis, tuple(LayerSource.copy(layer) for layer in order))
            for blocks, order in zip(anatomy.blocks, origins, strict=True)
        }

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module, inputs: Inputs = None) -> bool:
        return False


def _cloned(anatomy: Anatomy, division: Division, module: int, meta: nn.Module) -> nn.Module:
    return build(_Placed(division, module).plan(anatomy, meta), meta)


def _random(
    anatomy: Anatomy, division: Division, module: int, meta: nn.Module, seed: int, inputs: Mapping[str, Tensor] | None
) -> tuple[nn.Module, set[str]]:
    """The hybrid with a module of random numbers, and the names of the tensors of the module."""
    origins = {b.axis: order for b, order in zip(anatomy.blocks, division.origins(module), strict=True)}
    depths = {**anatomy.builder.depths, **{axis: len(order) for axis, order in origins.items()}}
    target = anatomy.builder.resized(anatomy.builder.sizes, depths, {}, origins)
    with torch.random.fork_rng():
        torch.manual_seed(
            stream(seed, "module", module)
        )  # one stream for all would begin every module with the same blocks
        fresh = target.build(target.sizes, target.depths)
    mine = owned(fresh, prefixes_of(anatomy), division, module, inputs)
    weights, theirs = fresh.state_dict(), meta.state_dict()
    like = next(iter(meta.parameters()))
    for name, tensor in weights.items():
        if name in mine:
            weights[name] = tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)
        else:
            weights[name] = theirs[_in_meta(name, anatomy, division, module)].clone()
    return filled(target, weights, like=meta), mine


def _in_meta(name: str, anatomy: Anatomy, division: Division, module: int) -> str:
    """The name in the meta network of a tensor of the hybrid that does not belong to the module."""
    stage = division.stage_of(module)
    prefix, own = anatomy.blocks[stage].prefix, division.in_hybrid(module)
    more = len(own) - division.meta_layers
    return renumbered(name, prefix, lambda layer: layer - more if layer >= own.stop else layer)


def _keep_in_eval(layer: nn.Module) -> None:
    layer.__class__ = _always_in_eval(type(layer))


@cache
def _always_in_eval(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass that stays in evaluation mode when `train` is called. It has the name of the original,
    because some models check that.
    """

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return original.train(self, False)

    return type(original.__name__, (original,), {"train": train, "__module__": original.__module__})
