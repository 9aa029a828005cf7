"""Hybrids: the meta network with one module of the large network in its place; and the large network assembled from them.

Ni, Wang, Tan, Lin, Huang, Zhang, Wang, Yang: "Deep Incubation: Training Large Models by Divide-and-Conquering", ICCV 2023,
arXiv:2212.04129. A hybrid is a stock network of the same class, so it is trained as any network is, by any loop; only the module's
parameters require gradients, and PyTorch then builds no graph in front of it and no weight gradients behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.trace import run_watched
from meristem.errors import MeristemError
from meristem.growth.build import build, filled
from meristem.growth.method import Method, Weights
from meristem.growth.plan import LayerMap, LayerSource
from meristem.incubation.division import Division

Start = Literal["random", "clone"]


@dataclass(frozen=True)
class Incubation:
    """A hybrid in training and what it belongs to.

    Args:
        model: the hybrid; only the module's parameters require gradients.
        division, module: which module of which division.
        meta: fingerprint of the meta network, which all modules of a large network have to share.
    """

    model: nn.Module
    division: Division
    module: int
    meta: str

    def record(self) -> dict[str, Any]:
        """All but the model, as plain data."""
        own = {"depths": list(self.division.depths), "meta_layers": self.division.meta_layers}
        return {**own, "module": self.module, "meta": self.meta}

    @staticmethod
    def of_record(model: nn.Module, record: Mapping[str, Any]) -> Incubation:
        """What `record` wrote down, with its trained hybrid."""
        division = Division(tuple(record["depths"]), record["meta_layers"])
        return Incubation(model, division, record["module"], record["meta"])


def incubate(meta: nn.Module, division: Division, module: int, *, start: Start = "random", seed: int = 0) -> Incubation:
    """The hybrid in which `module` is trained, alone, with the task's own loss.

    The first module takes what stands in front of the blocks along (embeddings), the last what stands behind them (norm, head);
    an embedding tied to the head stays the meta network's, since it is both.

    Args:
        meta: a trained network of `division.meta_depth` blocks; left as it is.
        start: "random" numbers, as published; or "clone": the module begins as copies of the meta's own blocks, each repeated.
        seed: of the random numbers.

    Raises:
        MeristemError: for a meta network of another depth, a module that there is not, or a network without one list of blocks.
    """
    division.check(module)
    anatomy = Anatomy.of(meta)
    prefix = _one_list(anatomy, division)
    plan = _Placed(division, module).plan(anatomy, meta)
    hybrid = build(plan, meta)
    mine = _names(hybrid, prefix, division, module)
    if start == "random":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = plan.target.build(plan.target.sizes, plan.target.depths).state_dict()
        state = hybrid.state_dict()
        for name in mine:
            state[name].copy_(fresh[name])
    elif start != "clone":
        raise MeristemError(f"start is random or clone, got {start!r}")
    for name, parameter in hybrid.named_parameters():
        parameter.requires_grad_(name in mine)
    return Incubation(hybrid.train(), division, module, fingerprint(meta))


def assemble(incubations: Sequence[Incubation]) -> nn.Module:
    """The large network, from one trained hybrid for each of its modules; all its parameters require gradients again.

    Raises:
        MeristemError: if modules are missing or given twice, or come from different divisions or meta networks.
    """
    division = incubations[0].division if incubations else Division((1, 1))
    by_module = {incubation.module: incubation for incubation in incubations}
    if sorted(i.module for i in incubations) != list(range(division.modules)):
        raise MeristemError(
            f"assembly wants modules 0 to {division.modules - 1} once each, got {sorted(i.module for i in incubations)}"
        )
    if any(i.division != division for i in incubations):
        raise MeristemError("the modules come from different divisions; incubate all by the same one")
    if len({i.meta for i in incubations}) > 1:
        raise MeristemError("the modules were incubated with different meta networks, so they do not fit each other")
    first = by_module[0].model
    anatomy = Anatomy.of(first)
    prefix, axis = anatomy.blocks[0].prefix, anatomy.blocks[0].axis
    order = [layer for module in range(division.modules) for layer in _like(division, module)]
    target = anatomy.builder.resized(
        anatomy.builder.sizes, {**anatomy.builder.depths, axis: division.num_hidden_layers}, {}, {axis: order}
    )
    return filled(target, _collected(by_module, division, prefix), like=first).requires_grad_(True)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all names and values: which meta network this is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Placed(Method):
    """The meta network with one of its modules replaced by as many copies of its blocks as the large module has."""

    name = "deep_incubation"
    division: Division
    module: int

    def axis_maps(self, anatomy: Anatomy, weights: Weights) -> Mapping[str, AxisMap]:
        return {}

    def layer_maps(self, anatomy: Anatomy) -> Mapping[str, LayerMap]:
        own = self.division.meta_layers
        depths = [depth if m == self.module else own for m, depth in enumerate(self.division.depths)]
        order = [m * own + layer * own // depth for m, depth in enumerate(depths) for layer in range(depth)]
        return {anatomy.blocks[0].axis: tuple(LayerSource.copy(layer) for layer in order)}

    def promises(self, anatomy: Anatomy, maps: Mapping[str, AxisMap], model: nn.Module) -> bool:
        return False


def _one_list(anatomy: Anatomy, division: Division) -> str:
    if len(anatomy.blocks) != 1:
        raise MeristemError(f"incubation wants networks with one list of blocks, this has {len(anatomy.blocks)}")
    (blocks,) = anatomy.blocks
    if blocks.length != division.meta_depth:
        raise MeristemError(
            f"the meta network has {blocks.length} blocks; {division.modules} modules with meta_layers={division.meta_layers} want "
            f"{division.meta_depth}"
        )
    return blocks.prefix


def _like(division: Division, module: int) -> list[int]:
    """For each block of a module, a block of the first hybrid whose place in per-layer lists it takes."""
    if module == 0:
        return list(division.in_hybrid(0))
    first = division.depths[0] + (module - 1) * division.meta_layers
    return [first + layer * division.meta_layers // division.depths[module] for layer in range(division.depths[module])]


def _names(hybrid: nn.Module, prefix: str, division: Division, module: int) -> set[str]:
    """The tensors of a module: its blocks', and of the first and last what stands in front of and behind all blocks."""
    blocks = tuple(f"{prefix}.{layer}." for layer in division.in_hybrid(module))
    names = {name for name in hybrid.state_dict() if name.startswith(blocks)}
    if module == 0:
        names |= _outside(hybrid, prefix)[0]
    if module == division.modules - 1:
        names |= _outside(hybrid, prefix)[1]
    return names


def _outside(model: nn.Module, prefix: str) -> tuple[set[str], set[str]]:
    """Tensors outside the blocks that are used before the first and after the last block, by a run on random inputs; what is
    used on both sides, such as a tied embedding, is in neither."""
    blocks = model.get_submodule(prefix)
    paths = {module: path for path, module in model.named_modules()}
    order: list[str] = []
    owners = [
        m
        for m in model.modules()
        if any(True for _ in m.parameters(recurse=False)) or any(True for _ in m.buffers(recurse=False))
    ]
    run_watched(model, [m.register_forward_pre_hook(lambda m, _: order.append(paths[m])) for m in owners])
    inside = [i for i, path in enumerate(order) if path.startswith(prefix + ".")]
    sides: dict[int, set[str]] = {}
    where: dict[str, set[str]] = {"front": set(), "back": set()}
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    for i, path in enumerate(order):
        side = "front" if i < inside[0] else "back" if i > inside[-1] else None
        for name, pointer in state.items():
            if side and name.rpartition(".")[0] == path and model.get_submodule(path) is not blocks:
                sides.setdefault(pointer, set()).add(side)
                where[side].add(name)
    unseen = {name for name in state if not name.startswith(prefix + ".")} - where["front"] - where["back"]
    both = {pointer for pointer, seen in sides.items() if len(seen) > 1}
    front = {
        name for name in where["front"] | unseen if state[name] not in both
    }  # parameters of no layer: class token, positions
    return front, {name for name in where["back"] if state[name] not in both}


def _collected(by_module: Mapping[int, Incubation], division: Division, prefix: str) -> dict[str, Tensor]:
    """The large network's tensors: every module's blocks renumbered, front and back from the first and last hybrid."""
    found: dict[str, Tensor] = {}
    for module, incubation in by_module.items():
        state = incubation.model.state_dict()
        for place, layer in enumerate(division.in_hybrid(module)):
            start = f"{prefix}.{layer}."
            for name in (n for n in state if n.startswith(start)):
                found[f"{prefix}.{division.starts[module] + place}.{name.removeprefix(start)}"] = state[name]
        if module == 0:
            found |= {name: tensor for name, tensor in state.items() if not name.startswith(prefix + ".")}
    last = by_module[division.modules - 1].model
    state = last.state_dict()
    return found | {name: state[name] for name in _outside(last, prefix)[1]}
