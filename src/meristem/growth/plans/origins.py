"""Where the entries of one grown tensor come from, unit by unit along each of its dimensions, and how that is
stored.

An entry is *old* if it is the first copy of an entry of the small network. It is *copied* if it is a further
copy of one, or a mixture of several. It is *fresh* if it has no source: a padded unit, or an output
projection that is silent. Maps of units are stored, never masks: a mask has as many entries as the tensor,
and a map is a few runs of consecutive units.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from meristem.algebra import AxisMap

Kind = Literal["old", "copied", "fresh"]
KINDS: tuple[Kind, ...] = ("old", "copied", "fresh")  # a label is the place in this row; the larger one wins
OLD, COPIED, FRESH = range(3)
NOWHERE = -1  # the source of a unit that has none, or several


@dataclass(frozen=True)
class Units:
    """The units of one dimension, in runs of (first source, number of units, label). Within a run the sources
    are consecutive.
    """

    runs: tuple[tuple[int, int, int], ...]

    @staticmethod
    def of(axis_map: AxisMap) -> Units:
        """What a map says about its new units."""
        heard, labels = axis_map.heard, unit_labels(axis_map)
        index = torch.full_like(labels, NOWHERE, dtype=torch.long) if heard.index is None else heard.index
        index = torch.where(labels == FRESH, NOWHERE, index)
        follows = (index[1:] == index[:-1] + (index[1:] != NOWHERE)) & (labels[1:] == labels[:-1])
        starts = [0, *(torch.nonzero(~follows).flatten() + 1).tolist(), len(index)]
        return Units(tuple((int(index[a]), b - a, int(labels[a])) for a, b in pairwise(starts) if b > a))

    @cached_property
    def size(self) -> int:
        return sum(length for _, length, _ in self.runs)

    def labels(self) -> Tensor:
        """(size,) int8."""
        each = torch.tensor([label for _, _, label in self.runs], dtype=torch.int8)
        return each.repeat_interleave(torch.tensor([length for _, length, _ in self.runs]))

    def sources(self) -> Tensor:
        """(size,) long: the source of each unit, or NOWHERE."""
        runs = [
            torch.full((length,), NOWHERE) if first == NOWHERE else torch.arange(first, first + length)
            for first, length, _ in self.runs
        ]
        return torch.cat(runs)

    def at_most(self, label: int) -> int:
        """How many units have this label or a smaller one."""
        return sum(length for _, length, own in self.runs if own <= label)

    def __str__(self) -> str:
        return " ".join(
            f"{KINDS[label]}:{'*' if first == NOWHERE else first}+{length}" for first, length, label in self.runs
        )

    @staticmethod
    def parse(text: str) -> Units:
        """The inverse of `str`. Raises ValueError for anything else."""
        runs = []
        for run in text.split():
            kind, _, place = run.partition(":")
            first, plus, length = place.partition("+")
            if kind not in KINDS or not plus:
                raise ValueError(f"not a run of units: {run!r}")
            runs.append((NOWHERE if first == "*" else int(first), int(length), KINDS.index(kind)))
        return Units(tuple(runs))


def unit_labels(axis_map: AxisMap) -> Tensor:
    """(new size,) int8: whether each new unit of an axis is old, copied or fresh."""
    heard = axis_map.heard
    silent = heard.sourceless()
    if heard.index is None:
        return torch.where(silent, FRESH, COPIED).to(torch.int8)
    place = torch.where(silent, axis_map.new_size, torch.arange(axis_map.new_size))
    first = torch.full((axis_map.old_size,), axis_map.new_size).scatter_reduce(0, heard.index, place, reduce="amin")
    label = torch.where(first[heard.index] == torch.arange(axis_map.new_size), OLD, COPIED)
    return torch.where(silent, FRESH, label).to(torch.int8)


@dataclass(frozen=True)
class Shards:
    """A source as `count` shards along `dimension`, in a new first dimension: the feed-forward units of an
    expert, or the weight of an expert.
    """

    dimension: int
    count: int

    def __call__(self, tensor: Tensor) -> Tensor:
        """(..., n, ...) -> (count, ..., n / count, ...). A dimension of size one is shared by all shards."""
        if tensor.shape[self.dimension] == 1:
            return tensor.unsqueeze(0).expand(self.count, *tensor.shape)
        return tensor.unflatten(self.dimension, (self.count, -1)).movedim(self.dimension, 0)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the result for a tensor of this shape."""
        own = list(shape)
        own[self.dimension] //= self.count
        return (self.count, *own)


@dataclass(frozen=True)
class Redrawn:
    """In each slice along `first` (an expert; None: there is one slice), a share of the units along
    `dimension` is drawn again. They are the same units in every tensor of this `key`.
    """

    share: float
    first: int | None
    dimension: int
    seed: int
    key: str

    def mask(self, shape: Sequence[int]) -> Tensor:
        """Which units are drawn again: bool, broadcasting to `shape`."""
        slices, units = 1 if self.first is None else shape[self.first], shape[self.dimension]
        generator = torch.Generator().manual_seed(self.seed ^ zlib.crc32(f"redrawn {self.key}".encode()))
        order = torch.rand(slices, units, generator=generator).argsort(1)
        chosen = order < round(self.share * units)
        view = [1] * len(shape)
        view[self.dimension] = units
        if self.first is not None:
            view[self.first] = slices
        return chosen.view(view)


@dataclass(frozen=True)
class Piece:
    """One rectangle of a tensor: its source tensors, the label that its layer alone gives it, and its units.

    `units` has None for a dimension that did not change. In a fusion, `parent` is the number of the network
    that the tensors belong to.
    """

    sources: tuple[str, ...]
    label: int
    units: tuple[Units | None, ...]
    shape: tuple[int, ...]
    shards: Shards | None = None
    redrawn: Redrawn | None = None
    parent: int = 0

    def as_dict(self, tables: dict[Units, int]) -> dict[str, Any]:
        """The content for JSON. `tables` collects the maps of units, each once."""
        names = ["-" if own is None else str(tables.setdefault(own, len(tables))) for own in self.units]
        shards, redrawn, sources = self.shards, self.redrawn, list(self.sources)
        return {
            "from": sources if len(sources) > 1 else sources[0],
            "is": KINDS[self.label],
            "shape": "x".join(map(str, self.shape)),
            "units": " ".join(names),
            **({"shards": f"{shards.dimension}/{shards.count}"} if shards else {}),
            **({"redrawn": vars(redrawn)} if redrawn else {}),
            **({"parent": self.parent} if self.parent else {}),
        }

    @staticmethod
    def of_dict(content: Mapping[str, Any], tables: Sequence[Units]) -> Piece:
        """The inverse of `as_dict`. Raises KeyError, ValueError, TypeError or IndexError for anything
        else.
        """
        sources, shape = content["from"], content["shape"]
        return Piece(
            (sources,) if isinstance(sources, str) else tuple(map(str, sources)),
            KINDS.index(content["is"]),
            tuple(None if name == "-" else tables[int(name)] for name in content["units"].split()),
            tuple(int(size) for size in shape.split("x")) if shape else (),
            Shards(*map(int, content["shards"].split("/"))) if "shards" in content else None,
            Redrawn(**content["redrawn"]) if "redrawn" in content else None,
            int(content.get("parent", 0)),
        )

    def own_labels(self) -> Tensor:
        """int8, with the shape of the piece: the labels of its entries by this growth alone."""
        labels = torch.full((), self.label, dtype=torch.int8).expand(self.shape)
        for dimension, units in enumerate(self.units):
            if units is not None:
                labels = torch.maximum(labels, _along(units.labels(), dimension, len(self.shape)))
        if self.redrawn is not None:
            labels = torch.where(self.redrawn.mask(self.shape), FRESH, labels).to(torch.int8)
        return labels

    def inherited(self, before: Sequence[Tensor]) -> Tensor:
        """The labels of the sources, at their new places. A mixture gets the largest of them."""
        labels = torch.stack([self.shards(one) if self.shards else one for one in before]).amax(0)
        for dimension, units in enumerate(self.units):
            if units is None:
                continue
            sources = units.sources()
            taken = labels.index_select(dimension, sources.clamp(min=0))
            mixed = labels.amax(dimension, keepdim=True)
            labels = torch.where(_along(sources == NOWHERE, dimension, labels.dim()), mixed, taken)
        return labels

    def counts(self) -> list[int]:
        """How many entries have each label, by this growth alone."""
        if self.redrawn is not None:
            return torch.bincount(self.own_labels().flatten().long(), minlength=len(KINDS)).tolist()
        sizes = [[size] * len(KINDS) if u is None else [u.at_most(k) for k in range(len(KINDS))]
                 for size, u in zip(self.shape, self.units, strict=True)]  # fmt: skip
        at_most = [prod(size[k] for size in sizes) if self.label <= k else 0 for k in range(len(KINDS))]
        return [at_most[0], at_most[1] - at_most[0], at_most[2] - at_most[1]]


def _along(vector: Tensor, dimension: int, dimensions: int) -> Tensor:
    shape = [1] * dimensions
    shape[dimension] = -1
    return vector.view(shape)
