"""A growth plan: for every tensor of the large network, which small tensors it comes from and by which maps.

A method decides two things, a map for each axis and a map of layers; everything else follows here, once for all
methods: the target's config, tied heads, width constants, symmetry-breaking noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from meristem.algebra import AxisMap, Layout, UnitMap
from meristem.anatomy import Anatomy, BlockList, Builder, TensorAnatomy
from meristem.anatomy.axis_ref import kind_of
from meristem.anatomy.heads import GROUP, HEAD_DIM, Heads, are_queries
from meristem.anatomy.shared_names import names_of_parameters
from meristem.anatomy.unit_lists import units_of
from meristem.errors import AnatomyError
from meristem.growth.origins import Redrawn, Shards


@dataclass(frozen=True)
class LayerSource:
    """A new layer: a weighted sum of old layers; `silent` ones write nothing (identity blocks)."""

    sources: tuple[tuple[int, float | Tensor], ...]  # (old layer, weight)
    silent: bool = False
    next_layer: int | None = None  # further copies of units are taken from this old layer (bert2BERT's AKI)

    @staticmethod
    def copy(layer: int) -> LayerSource:
        return LayerSource(((layer, 1.0),))

    @staticmethod
    def identity(layer: int, silent: bool) -> LayerSource:
        """A copy that writes nothing, if `silent`."""
        return LayerSource(((layer, 1.0),), silent=silent)


LayerMap = tuple[LayerSource, ...]


def share_map(layer_map: LayerMap, old: int) -> AxisMap:
    """The map of a dimension outside the blocks that has a share for each: new layers take the share of their source, and
    what is read from the silent ones counts nothing."""
    order = torch.tensor(layer_order(layer_map))
    heard = torch.tensor([not layer.silent for layer in layer_map])
    copies = torch.bincount(order[heard], minlength=old).clamp(min=1)
    read = UnitMap.select(order, old, torch.where(heard, 1.0 / copies[order].double(), 0.0))
    return AxisMap(UnitMap.select(order, old), read, twins=False)


def layer_order(layer_map: LayerMap) -> list[int]:
    """For each new layer, the old one whose place in per-layer config lists (`layer_types`) it takes."""
    return [max(layer.sources, key=lambda source: float(source[1]))[0] for layer in layer_map]


@dataclass(frozen=True)
class Term:
    """One small tensor that flows into a large one."""

    source: str
    weight: float | Tensor = 1.0
    part: Literal["all", "originals", "copies"] = "all"  # which units it writes: first copies, further copies, or all


Targets = list[
    tuple[str, tuple[Term, ...], bool]
]  # (name in the large network, what flows in, whether its layer is silent)


@dataclass(frozen=True)
class Drawn:
    """A new matrix of this shape: normal numbers of this standard deviation (0: zeros), each row `repeats` times in turn."""

    shape: tuple[int, ...]
    std: float
    repeats: int = 1


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the large network is made.

    W' = scale . sum_k weight_k . (maps applied to source_k)  +  noise that no reader hears
    """

    name: str
    terms: tuple[Term, ...]
    maps: tuple[AxisMap | None, ...]  # one for each dimension; None: unchanged
    roles: tuple[str, ...]
    scale: float = 1.0
    offset: float = 0.0  # a gain stored as weight = gain - offset (Gemma) is scaled as a gain
    noise: float = 0.0  # relative to the standard deviation of the noiseless tensor
    seed: int = 0
    perturb: float = 0.0  # standard deviation of noise on every entry
    silent: bool = False  # it belongs to a layer that writes nothing yet, so its gradient is zero
    shards: Shards | None = None  # how its sources are seen before anything else
    beside: tuple[TensorPlan, ...] = ()  # what is laid behind it along the dimension `along`
    along: int = 0
    redrawn: Redrawn | None = None  # units that keep nothing of their sources
    further: bool = False  # a further copy of its source, whatever its maps say
    drawn: Drawn | None = None  # it has no sources; the first term says only in which dtype it is, and when it trains

    @property
    def parts(self) -> tuple[TensorPlan, ...]:
        """The tensors of which it is made, one behind the other."""
        return (replace(self, beside=()), *self.beside)

    @property
    def begins(self) -> bool:
        """Whether none of its entries has been trained: moments start at zero."""
        return self.silent or self.scale == 0

    def unit_map(self, dimension: int, dual: bool = False) -> UnitMap | None:
        """The matrix that dimension `dimension` rides, by its role; dual: that of its gradient."""
        axis_map = self.maps[dimension]
        if axis_map is None:
            return None
        if self.roles[dimension] == "read":
            return axis_map.heard if dual else axis_map.read
        if dual:
            return axis_map.read
        return {"gain": axis_map.gain, "shift": axis_map.heard}.get(self.roles[dimension], axis_map.write)

    def amplitude(self, dual: bool = False) -> float:
        """By what the weights (dual: their gradients) of this tensor are scaled.

        Adam ignores the scale of gradients, so to follow the small network's trajectory its step has to be scaled like
        the weights, and its eps like the gradients (theory: `docs/theory.md`, section 3).
        """
        factor = abs(self.scale) or 1.0  # silent outputs are zero for now, but they are to learn
        factor = 1 / factor if dual else factor
        for dimension in range(len(self.maps)):
            unit_map = self.unit_map(dimension, dual)
            factor *= unit_map.amplitude() if unit_map is not None else 1.0
        return factor

    def spread(self) -> float:
        """By what copies stretch the singular values of the gradient beyond `amplitude(dual=True)`: sqrt(n) for n of each."""
        factor = 1.0
        for dimension in range(len(self.maps)):
            unit_map = self.unit_map(dimension, dual=True)
            if unit_map is not None and unit_map.amplitude():
                squares = float(unit_map.squared().matrix().sum()) / unit_map.old_size
                factor *= squares**0.5 / unit_map.amplitude()
        return factor


@dataclass(frozen=True)
class Perturbation:
    """Matrices times `shrink`, plus noise of standard deviation `std`; with `mup`, less for those that read more units than before.
    `only`: the tensors of the source that get the noise; None: all."""

    shrink: float
    std: float
    mup: bool = False
    only: frozenset[str] | None = None


@dataclass(frozen=True)
class GrowthPlan:
    """Everything that turns one network into a larger one."""

    source: Anatomy
    target: Builder
    maps: Mapping[str, AxisMap]
    layers: Mapping[str, LayerMap]
    preserves_function: bool
    noise: float = 0.0
    seed: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)  # by the tensor's name in the source
    untied: bool = False
    perturbation: Perturbation | None = None
    silent: frozenset[str] = frozenset()  # tensors of the source whose new units have to stay zero: norms measure them
    reached: Anatomy | None = None  # the target's anatomy, where its class is another than the source's

    @cached_property
    def tensors(self) -> dict[str, TensorPlan]:
        """{name in the large network: its plan}. Tensors that stay tied appear once, under their first name."""
        plans: dict[str, TensorPlan] = {}
        wanted = self._shared_names
        for tensor in self.source.tensors.values():
            if tensor.tied_to is not None and not self.untied:
                continue
            targets = (
                (unit, terms, silent) for name, terms, silent in self._targets(tensor) for unit in self._units(name)
            )
            for name, terms, silent in targets:
                if name not in wanted:
                    continue  # only some blocks have it, such as T5's position bias in the first
                maps = self._dimension_maps(tensor)
                plans[name] = TensorPlan(
                    name=name,
                    terms=terms,
                    maps=maps,
                    roles=tuple(d.role for d in tensor.dimensions),
                    scale=0.0 if silent and tensor.writes(self.source.stream(tensor)) else self._scale(tensor),
                    offset=self._offset(tensor),
                    noise=self.noise if tensor.reads else 0.0,
                    seed=self.seed,
                    perturb=self._perturb(tensor, maps),
                    silent=silent,
                )
        missing = [name for name, shared in wanted.items() if not shared & set(plans)]
        if missing:
            raise AnatomyError(f"no old tensor flows into {missing[0]} of the new network")
        return plans

    @cached_property
    def own_names(self) -> dict[str, str]:
        """{name in the large network's state dict: the name in `tensors` of the tensor that it shares}."""
        first: dict[str, str] = {}
        for own in self.tensors:
            for name in self._shared_names[own]:
                first.setdefault(name, own)
        return {name: name if name in self.tensors else first[name] for name in self._shared_names}

    @cached_property
    def _shared_names(self) -> dict[str, set[str]]:
        """For every name in the large network's state dict, all names of the same tensor."""
        model = self._large
        shared = {name: set(names) for names in names_of_parameters(model) for name in names}
        return {name: shared.get(name, {name}) for name in model.state_dict()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name in the large network's state dict: shape}."""
        return {name: tuple(tensor.shape) for name, tensor in self._large.state_dict().items()}

    @cached_property
    def _large(self) -> nn.Module:
        """The large network without weights."""
        with torch.device("meta"):
            return self.target.build(self.target.sizes, self.target.depths)

    def origin(self, name: str) -> str:
        """The small tensor whose place a tensor of the large network takes: that of its (first) source layer."""
        block = self._block_of(name)
        if block is not None:
            old = self.layers[block.axis][self.place(name)].sources[0][0]
            rest = name[len(f"{block.prefix}.") :].partition(".")[2]
            if f"{block.prefix}.{old}.{rest}" in self.source.tensors:
                return f"{block.prefix}.{old}.{rest}"
        return name if name in self.source.tensors else self.tensors[self.own_names[name]].terms[0].source

    def place(self, name: str) -> int:
        """The number of the block, in a list that grows, that a tensor of the large network belongs to."""
        block = self._block_of(name)
        assert block is not None
        return int(name[len(block.prefix) + 1 :].partition(".")[0])

    def layer_map(self, name: str) -> LayerMap | None:
        """The map of the list of blocks that a tensor of the large network belongs to; None outside of lists that grow."""
        block = self._block_of(name)
        return None if block is None else self.layers[block.axis]

    def _block_of(self, name: str) -> BlockList | None:
        grown = (block for block in self.source.blocks if block.axis in self.layers)
        return next((block for block in grown if name.startswith(block.prefix + ".")), None)

    def _offset(self, tensor: TensorAnatomy) -> float:
        """What a norm adds to its stored gain (1 in Gemma), so that the gain itself is scaled."""
        is_gain = any(dimension.role == "gain" for dimension in tensor.dimensions)
        facts = self.source.norms.get(tensor.name.rpartition(".")[0])
        return facts.offset if facts and is_gain else 0.0

    def _scale(self, tensor: TensorAnatomy) -> float:
        """Repairs by name, and what matrices shrink by."""
        shrink = self.perturbation.shrink if self.perturbation and len(tensor.shape) > 1 else 1.0
        return self.scales.get(tensor.name, 1.0) * self._weight_norm(tensor) * shrink

    def _perturb(self, tensor: TensorAnatomy, maps: Sequence[AxisMap | None]) -> float:
        """The standard deviation of the noise on a matrix."""
        if self.perturbation is None or len(tensor.shape) < 2:
            return 0.0
        if self.perturbation.only is not None and tensor.name not in self.perturbation.only:
            return 0.0
        readers = [m for m, d in zip(maps, tensor.dimensions, strict=True) if d.role == "read" and m is not None]
        wider = math.prod(m.new_size / m.old_size for m in readers) if self.perturbation.mup else 1.0
        return self.perturbation.std / wider**0.5

    def _weight_norm(self, tensor: TensorAnatomy) -> float:
        """For the length of a weight that is stored as length and direction (`torch.nn.utils.parametrizations.weight_norm`):
        what the maps of the direction do to its length, over the dimensions that it is measured over."""
        direction = self.source.tensors.get(tensor.name.replace(".original0", ".original1"), tensor)
        factor = 1.0
        for dimension, axis_map in enumerate(self._dimension_maps(direction)):
            if axis_map is not None and tensor.shape[dimension] == 1:
                unit_map = axis_map.read if direction.dimensions[dimension].role == "read" else axis_map.write
                factor *= float(unit_map.matrix().norm()) / unit_map.old_size**0.5
        return factor if direction is not tensor else 1.0

    def _dimension_maps(self, tensor: TensorAnatomy) -> tuple[AxisMap | None, ...]:
        maps = (self._layout_map(dimension.layout) for dimension in tensor.dimensions)
        return tuple(replace(m, fresh=None) if m and tensor.name in self.silent else m for m in maps)

    def _layout_map(self, layout: Layout) -> AxisMap | None:
        """The map of a whole dimension, made once for all tensors that have it; None: unchanged."""
        if layout not in self._layout_maps:
            moved = any(not self.axis_map(axis).is_identity() for axis in layout.axes())
            axes = {axis: self.axis_map(axis) for axis in layout.axes()} if moved else {}
            self._layout_maps[layout] = expand(layout, axes) if moved else None
        return self._layout_maps[layout]

    @cached_property
    def _layout_maps(self) -> dict[Layout, AxisMap | None]:
        return {}

    def axis_map(self, axis: str) -> AxisMap:
        if axis in self.maps:
            return self.maps[axis]
        if axis in self.source.depths:
            depth = self.source.depths[axis]
            return share_map(self.layers[axis], depth) if axis in self.layers else AxisMap.identity(depth)
        if axis in self.source.axes:
            return AxisMap.identity(self.source.axes[axis].size)
        heads = Heads.of(axis)
        return self.axis_map(heads.kv_heads).kron(self.axis_map(heads.group))

    def _targets(self, tensor: TensorAnatomy) -> Targets:
        """(new name, its sources, silent) for every copy of the tensor that the large network holds."""
        if tensor.block is None or tensor.block[0] not in self.layers:
            return [(tensor.name, (Term(tensor.name),), False)]
        (axis, index), (prefix, rest) = tensor.block, self._home(tensor)
        targets = []
        for new, layer in self._following[axis].get(index, ()):  # each is planned once, where its first source stands
            targets.append((f"{prefix}.{new}.{rest}", self._terms(prefix, rest, layer), layer.silent))
        if self._alike[prefix, rest] == 1 and tensor.name not in [name for name, _, _ in targets]:
            targets.append((tensor.name, (Term(tensor.name),), False))  # what only one place has, it keeps
        return targets

    @cached_property
    def _following(self) -> dict[str, dict[int, list[tuple[int, LayerSource]]]]:
        """For each axis of depth that changes: {old layer: the new layers, by number, whose first source it is}."""
        following: dict[str, dict[int, list[tuple[int, LayerSource]]]] = {}
        for axis, layers in self.layers.items():
            of_axis = following.setdefault(axis, {})
            for new, layer in enumerate(layers):
                of_axis.setdefault(layer.sources[0][0], []).append((new, layer))
        return following

    @cached_property
    def _alike(self) -> Counter[tuple[str, str]]:
        """How many blocks of a list have a tensor: {(prefix of the list, name within a block): blocks}."""
        return Counter(self._home(tensor) for tensor in self.source.tensors.values() if tensor.block is not None)

    def _home(self, tensor: TensorAnatomy) -> tuple[str, str]:
        """(prefix of the list of blocks that a tensor belongs to, its name within the block)."""
        assert tensor.block is not None
        axis, index = tensor.block
        prefix = next(b.prefix for b in self.source.blocks if b.axis == axis and tensor.name.startswith(b.prefix + "."))
        return prefix, tensor.name[len(f"{prefix}.{index}.") :]

    def _units(self, name: str) -> list[str]:
        """The names that a tensor takes in lists with a module for each unit of an axis: those of its unit's copies."""
        names = [name]
        for axis, unit, begin, end in reversed([*units_of(name, self.source.unit_lists)]):
            index = self.axis_map(axis).write.index
            if index is None:
                raise AnatomyError(f"{name} belongs to one unit of {axis}, and new units are mixtures of several")
            copies = torch.nonzero(index == unit).flatten().tolist()
            names = [f"{other[:begin]}{copy}{other[end:]}" for other in names for copy in copies]
        return names

    def _terms(self, prefix: str, rest: str, layer: LayerSource) -> tuple[Term, ...]:
        have = [old for old, _ in layer.sources if f"{prefix}.{old}.{rest}" in self.source.tensors]
        if len(have) < len(layer.sources):  # what not all layers have cannot be mixed
            return (Term(f"{prefix}.{have[0]}.{rest}"),)
        if layer.next_layer is None:
            return tuple(Term(f"{prefix}.{old}.{rest}", weight) for old, weight in layer.sources)
        old = layer.sources[0][0]
        own, following = f"{prefix}.{old}.{rest}", f"{prefix}.{layer.next_layer}.{rest}"
        if following not in self.source.tensors:
            return (Term(own),)
        return Term(own, part="originals"), Term(following, part="copies")


def expand(layout: Layout, maps: Mapping[str, AxisMap]) -> AxisMap:
    """The map of a whole dimension. New units within a head stay silent in queries, so that keys and values are free."""
    within = [axis for axis in maps if kind_of(axis) == HEAD_DIM and maps[axis].fresh is not None]
    if not within:
        return layout.expand(maps)
    queries = {**maps, **{axis: replace(maps[axis], fresh=None) for axis in within}}
    return _expand_terms(layout.spread(), maps, queries)


def _expand_terms(layout: Layout, maps: Mapping[str, AxisMap], queries: Mapping[str, AxisMap]) -> AxisMap:
    total: AxisMap | None = None
    for term in layout.terms:
        if isinstance(term[-1], Layout):  # products that end in a sum
            inner = _expand_terms(term[-1], maps, queries)
            grown = Layout((term[:-1],)).expand(maps).kron(inner) if term[:-1] else inner
        else:
            is_query = any(isinstance(f, str) and (kind_of(f) == GROUP or are_queries(f)) for f in term)
            grown = Layout((term,)).expand(queries if is_query else maps)
        total = grown if total is None else total.direct_sum(grown)
    assert total is not None
    return total


def sizes_after(anatomy: Anatomy, maps: Mapping[str, AxisMap]) -> dict[str, int]:
    """The axis sizes of the large network."""
    sizes = {**anatomy.sizes, **{axis: axis_map.new_size for axis, axis_map in maps.items()}}
    for regrouped in [axis for axis in sizes if axis not in anatomy.sizes]:
        heads = Heads.of(regrouped)
        sizes[heads.group] = sizes.pop(regrouped) // sizes[heads.kv_heads]
    return sizes
