"""Narrow blocks for one step: only some key-value groups and some chunks of feed-forward units compute, with
sliced weights.

The anatomy says which rows and columns belong to a unit, with the same layouts that growth uses: a slice is a
selection map. The residual stream, embeddings and norms over it stay whole. Gradients have the shape of the
full weights, with zeros for units that were not selected. Adam would still move those rows by their momentum.
`hold_unselected` leaves them unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, Layout
from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import is_part, kind_of, whole_of
from meristem.anatomy.heads import KV_HEADS, Heads
from meristem.errors import MeristemError
from meristem.subnetworks.blocks import Blocks, lists_of_blocks
from meristem.subnetworks.path import Path, generator

CHUNKS = 16  # feed-forward units are kept or left in this many contiguous pieces, so that products stay dense
SLICED = (KV_HEADS, "ffn")  # the kinds of axes that live inside a block

# Attributes that count heads or the width of all heads, in modules whose code does not ask the tensors for their shapes.
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads", "all_head_size",
               "split_size", "inner_dim")  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """A parameter of a module and the entries that are used, as one index for each dimension (None means
    all).
    """

    module: nn.Module
    name: str
    parameter: nn.Parameter
    indices: tuple[Tensor | None, ...]

    def taken(self) -> Tensor:
        """The used entries of the parameter."""
        tensor: Tensor = self.parameter
        for dimension, index in enumerate(self.indices):
            if index is not None:
                tensor = tensor.index_select(dimension, index)
        return tensor

    def mask(self) -> Tensor:
        """True for the entries that are used. It broadcasts to the parameter."""
        mask = torch.ones((1,) * self.parameter.dim(), dtype=torch.bool, device=self.parameter.device)
        for dimension, index in enumerate(self.indices):
            if index is not None:
                shape = [1] * self.parameter.dim()
                shape[dimension] = -1
                used = torch.zeros(self.parameter.shape[dimension], dtype=torch.bool, device=mask.device)
                mask = mask & used.index_fill_(0, index, True).view(shape)
        return mask


_LATEST: WeakKeyDictionary[nn.Module, list[Slice]] = WeakKeyDictionary()  # block -> what its last narrow step used


Views = dict[str, "Slice | int"]  # what a module's attributes are while it is narrow
VIEWS = "_meristem_views"  # the attribute that holds them


@contextlib.contextmanager
def sliced(blocks: Blocks, path: Path) -> Iterator[None]:
    """A context in which the active blocks, in training mode, compute with `path.width` of their heads and
    feed-forward units.

    A weight is sliced each time a module reads it, so also in every micro-batch and when gradient
    checkpointing computes a block again. Run the backward pass inside the context.

    Raises:
        MeristemError: if the weights are sharded, or if nothing in a block can be narrowed.
    """
    narrowed: list[tuple[nn.Module, type[nn.Module], Views]] = []
    try:
        for layer, block in enumerate(blocks.modules):
            _LATEST.pop(block, None)
            if path.width == 1 or not path.active[layer]:
                continue
            _LATEST[block] = slices = _slices(blocks, layer, path)
            views: dict[nn.Module, Views] = {}
            for piece in slices:
                views.setdefault(piece.module, {})[piece.name] = piece
                if hasattr(piece.module, "nf"):  # transformers' Conv1D says how wide its output is
                    columns = piece.indices[-1]
                    views[piece.module]["nf"] = piece.parameter.shape[-1] if columns is None else len(columns)
            for module, name, count in _counts(block, path.width, blocks.anatomy):
                views.setdefault(module, {})[name] = count
            for module, view in views.items():
                narrowed.append((module, type(module), view))
                vars(module)[VIEWS] = view
                module.__class__ = _narrowed_class(type(module), tuple(sorted(view)))
        yield
    finally:
        for module, original, view in narrowed:
            if vars(module).get(VIEWS) is view:  # and not that of a later context, after `whole`
                object.__setattr__(module, "__class__", original)
                del vars(module)[VIEWS]


def whole(model: nn.Module) -> None:
    """Undo what a context that was never left has narrowed."""
    for module in model.modules():
        if vars(module).pop(VIEWS, None) is not None:
            module.__class__ = type(module).__bases__[0]


@cache
def _narrowed_class(original: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass in which these attributes, in training mode, are what `_meristem_views` says."""

    def view_of(name: str) -> property:
        def get(self: nn.Module) -> Any:
            if not self.training:
                return self._parameters[name] if name in self._parameters else self.__dict__[name]
            view = self.__dict__["_meristem_views"][name]
            return view.taken() if isinstance(view, Slice) else view

        return property(get)

    return type(original.__name__, (original,), {"__module__": original.__module__, **{n: view_of(n) for n in names}})


def _slices(blocks: Blocks, layer: int, path: Path) -> list[Slice]:
    """The slice of every parameter of a block."""
    anatomy, prefix = blocks.anatomy, f"{blocks.name}.{layer}."
    alike = bool(blocks.needed)  # a block that serves the others serves them head by head: all take the same heads
    maps = _selections(anatomy, blocks.name if alike else prefix, path)
    parameters = {prefix + name: p for name, p in blocks.modules[layer].named_parameters()}

    @cache
    def used(layout: Layout) -> Tensor | None:
        """The units of a dimension that are used; None: all."""
        axes = layout.axes()
        if not axes & set(maps):
            return None
        known = {a: maps[a] if a in maps else AxisMap.identity(anatomy.sizes[a]) for a in axes}
        return layout.expand(known).write.index

    found = []
    for name, parameter in parameters.items():
        if name not in anatomy.tensors:
            raise MeristemError(
                f"{name} is not a plain weight (kernels, adapters); such networks can be trained in depth only"
            )
        indices = [used(dimension.layout) for dimension in anatomy.tensors[name].dimensions]
        if any(index is not None for index in indices):
            if hasattr(parameter, "full_tensor"):
                raise MeristemError(
                    "narrow sub-networks need whole weights; sharded ones (FSDP2) can be trained in depth only"
                )
            owner, _, leaf = name[len(prefix) :].rpartition(".")
            device_indices = tuple(i if i is None else i.to(parameter.device) for i in indices)
            found.append(Slice(blocks.modules[layer].get_submodule(owner), leaf, parameter, device_indices))
    if not found:
        raise MeristemError(
            f"nothing in {prefix[:-1]} can be narrowed: no heads and no feed-forward units were inferred"
        )
    return found


def _selections(anatomy: Anatomy, purpose: str, path: Path) -> dict[str, AxisMap]:
    """The units of each inner axis that a block uses in this step, as selection maps."""
    shared = {
        whole_of(axis) for axis in anatomy.axes if is_part(axis)
    }  # axes that some layer cuts into parts stay whole
    maps: dict[str, AxisMap] = {}
    for axis in anatomy.axes:
        kind, size = kind_of(axis), anatomy.sizes[axis]
        if kind not in SLICED or is_part(axis) or axis in shared:
            continue
        pieces = max(n for n in range(1, CHUNKS + 1) if size % n == 0) if kind == "ffn" else size
        pieces = pieces if pieces > 1 else size
        chunk = size // pieces
        count = max(1, round(path.width * pieces))
        rng = generator(path.seed, path.step, f"{purpose} {axis}")
        picked = torch.randperm(pieces, generator=rng)[:count].sort().values
        index = (picked[:, None] * chunk + torch.arange(chunk)).flatten()
        maps[axis] = AxisMap.select(index, size)
        if kind == KV_HEADS:
            heads = Heads.of(axis)
            maps[heads.heads] = maps[axis].kron(AxisMap.identity(anatomy.sizes[heads.group]))
    return maps


def _counts(block: nn.Module, width: float, anatomy: Anatomy) -> list[tuple[nn.Module, str, int]]:
    """(module, attribute, its value while the block is narrow) for the attributes that count heads."""
    heads = [axis for axis in anatomy.axes if kind_of(axis) == KV_HEADS and not is_part(axis)]
    size = anatomy.sizes[heads[0]] if heads else 1
    kept = max(1, round(width * size))
    found = ((module, name, vars(module).get(name)) for module in block.modules() for name in HEAD_COUNTS)
    return [(m, n, old * kept // size) for m, n, old in found if type(old) is int and old % size == 0]


def hold_unselected(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Let `optimizer.step()` leave unchanged what the last narrow step did not use: weights and moments.

    Without this, Adam moves unselected rows by their momentum and decays them. It holds for all later steps,
    and costs a copy of the sliced parameters and their moments during each step.

    Args:
        optimizer: the optimizer of the network.
        model: the network.

    Returns:
        Handles. Their `remove()` ends it.
    """
    saved: list[tuple[Tensor, Tensor, Tensor]] = []

    def before(*_) -> None:
        for blocks in lists_of_blocks(model):
            for piece in (p for module in blocks.modules for p in _LATEST.get(module, [])):
                state = optimizer.state.get(piece.parameter, {})
                moments = [v for v in state.values() if isinstance(v, Tensor) and v.shape == piece.parameter.shape]
                mask = piece.mask()
                saved.extend((t, t.detach().clone(), mask) for t in (piece.parameter.detach(), *moments))

    def after(*_) -> None:
        for tensor, old, mask in saved:
            tensor.copy_(torch.where(mask, tensor, old))
        saved.clear()

    return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
