"""A growth plan: for every tensor of the large network, the small tensors from which it comes, and the maps.

A method chooses two things, a map for each axis and a map of layers. Everything else follows here, once for
all methods: the config of the target, tied heads, width constants, symmetry-breaking noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from meristem.algebra import AxisMap, Layout
from meristem.anatomy import Anatomy, BlockList, Builder, TensorAnatomy
from meristem.anatomy.axis_ref import BETWEEN, layers_of
from meristem.anatomy.heads import Heads, are_queries
from meristem.anatomy.shared_names import names_of_parameters
from meristem.anatomy.unit_lists import units_of
from meristem.errors import AnatomyError
from meristem.growth.plans.dimensions import expand, inner_layouts
from meristem.growth.plans.layers import LayerMap, LayerSource, between_map, last_map, share_map
from meristem.growth.plans.passing_on import StreamNorm, pass_on
from meristem.growth.plans.tensor_plan import TensorPlan, Term

Targets = list[
    tuple[str, tuple[Term, ...], bool]
]  # (name in the large network, what flows in, whether its layer is silent)


@dataclass(frozen=True)
class Perturbation:
    """Matrices times `shrink`, plus noise of standard deviation `std`. With `mup`, the noise is smaller for
    those that read more units than before. `only`: the tensors of the source that get the noise; all if
    None.
    """

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
    quiet: frozenset[str] = frozenset()  # tensors of the source that get no noise: new units are not silent to them
    muted: frozenset[str] | None = None  # of the source, zero in silent layers; None: all that writes into the stream
    own_maps: Mapping[str, Mapping[str, AxisMap]] = field(
        default_factory=dict
    )  # of tensors that do not take those of `maps`
    stream_norms: Mapping[str, StreamNorm] = field(
        default_factory=dict
    )  # of post-norm blocks, where silent ones follow
    reached: Anatomy | None = None  # the target's anatomy, where its class is another than the source's

    @cached_property
    def tensors(self) -> dict[str, TensorPlan]:
        """{name in the large network: its plan}. Tensors that stay tied occur once, with their first name."""
        plans: dict[str, TensorPlan] = {}
        wanted = self._shared_names
        for tensor in self.source.tensors.values():
            if tensor.tied_to is not None and not self.untied:
                continue
            targets = (
                (unit, terms, silent, len(units))
                for name, terms, silent in self._targets(tensor)
                for units in [self._units(name)]
                for unit in units
            )
            for name, terms, silent, copies in targets:
                if name not in wanted:
                    continue  # only some blocks have it, such as T5's position bias in the first
                maps = self._dimension_maps(tensor)
                plan = TensorPlan(
                    name=name,
                    terms=terms,
                    maps=maps,
                    roles=tuple(d.role for d in tensor.dimensions),
                    scale=0.0 if silent and self._mutes(tensor) else self._scale(tensor),
                    offset=self._offset(tensor),
                    noise=self.noise if tensor.reads and tensor.name not in self.quiet else 0.0,
                    seed=self.seed,
                    perturb=self._perturb(tensor, maps),
                    silent=silent,
                    copies=copies,
                )
                plans[name] = self._with_norms_passed_on(plan, tensor)
        missing = [name for name, shared in wanted.items() if not shared & set(plans)]
        if missing:
            raise AnatomyError(
                f"the new network has {missing[0]}, which the old one has not: its class makes that module where sizes differ that are "
                "equal here; grow those by the same factor, or start from a network that has it"
            )
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
        """The small tensor whose place a tensor of the large network takes: that of its (first) source
        layer.
        """
        block = self._block_of(name)
        if block is not None:
            old = self.layers[block.axis][self.place(name)].sources[0][0]
            _, dot, rest = name[len(f"{block.prefix}.") :].partition(".")
            if f"{block.prefix}.{old}{dot}{rest}" in self.source.tensors:
                return f"{block.prefix}.{old}{dot}{rest}"
        return name if name in self.source.tensors else self.tensors[self.own_names[name]].terms[0].source

    def place(self, name: str) -> int:
        """The number of the block, in a list that grows, of a tensor of the large network."""
        block = self._block_of(name)
        assert block is not None
        return int(name[len(block.prefix) + 1 :].partition(".")[0])

    def layer_map(self, name: str) -> LayerMap | None:
        """The map of the list of blocks of a tensor of the large network. None outside lists that grow."""
        block = self._block_of(name)
        return None if block is None else self.layers[block.axis]

    def _with_norms_passed_on(self, plan: TensorPlan, tensor: TensorAnatomy) -> TensorPlan:
        norm, block = self.stream_norms.get(tensor.name.rpartition(".")[0]), self._block_of(plan.name)
        if norm is None or block is None:
            return plan
        return pass_on(norm, plan, block.prefix, self.layers[block.axis], self.place(plan.name))

    def _block_of(self, name: str) -> BlockList | None:
        grown = (block for block in self.source.blocks if block.axis in self.layers)
        return next((block for block in grown if name.startswith(block.prefix + ".")), None)

    def _mutes(self, tensor: TensorAnatomy) -> bool:
        """Whether this tensor is zero in a silent layer."""
        return tensor.writes(self.source.stream(tensor)) if self.muted is None else tensor.name in self.muted

    def _offset(self, tensor: TensorAnatomy) -> float:
        """What a norm adds to its stored gain (1 in Gemma), so that the gain itself is scaled."""
        is_gain = any(dimension.role == "gain" for dimension in tensor.dimensions)
        facts = self.source.norms.get(tensor.name.rpartition(".")[0])
        return facts.offset if facts and is_gain else 0.0

    def _scale(self, tensor: TensorAnatomy) -> float:
        """The factors of repairs by name, and that by which matrices shrink."""
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
        """For the length of a weight that is stored as length and direction
        (`torch.nn.utils.parametrizations.weight_norm`): the factor by which the maps of the direction
        change its length, over the dimensions that are measured.
        """
        direction = self.source.tensors.get(tensor.name.replace(".original0", ".original1"), tensor)
        factor = 1.0
        for dimension, axis_map in enumerate(self._dimension_maps(direction)):
            if axis_map is not None and tensor.shape[dimension] == 1:
                unit_map = axis_map.read if direction.dimensions[dimension].role == "read" else axis_map.write
                factor *= float(unit_map.matrix().norm()) / unit_map.old_size**0.5
        return factor if direction is not tensor else 1.0

    def _dimension_maps(self, tensor: TensorAnatomy) -> tuple[AxisMap | None, ...]:
        own, maps = self.own_maps.get(tensor.name), []
        queries = any(
            are_queries(str(d.layout)) for d in tensor.dimensions
        )  # heads in a dimension of their own (XLNet)
        for dimension in tensor.dimensions:
            layout = dimension.layout
            own_map = self._expanded(layout, own) if own and layout.axes() & set(own) else self._layout_map(layout)
            silent = tensor.name in self.silent or queries
            maps.append(replace(own_map, fresh=None) if own_map and silent else own_map)
        return tuple(maps)

    def _layout_map(self, layout: Layout) -> AxisMap | None:
        """The map of a whole dimension, computed once for all tensors that have it. None if it does not
        change.
        """
        if layout not in self._layout_maps:
            self._layout_maps[layout] = self._expanded(layout, {})
        return self._layout_maps[layout]

    @cached_property
    def _layout_maps(self) -> dict[Layout, AxisMap | None]:
        return {}

    def _expanded(self, layout: Layout, own: Mapping[str, AxisMap]) -> AxisMap | None:
        """The map of a dimension, with `own` maps for some axes instead of those of the plan."""
        axes = {axis: own.get(axis) or self.axis_map(axis) for axis in layout.axes()}
        if str(layout) in self._inner_layouts:
            axes = {axis: m.copied() if m.padded_with_mean else m for axis, m in axes.items()}
        return expand(layout, axes) if any(not m.is_identity() for m in axes.values()) else None

    @cached_property
    def _inner_layouts(self) -> set[str]:
        return inner_layouts(self.source)

    def axis_map(self, axis: str) -> AxisMap:
        if axis in self.maps:
            return self.maps[axis]
        if axis in self.source.depths:
            depth = self.source.depths[axis]
            return share_map(self.layers[axis], depth) if axis in self.layers else AxisMap.identity(depth)
        if layers_of(axis) in self.source.depths:
            return self._entries_map(axis)
        if axis in self.source.axes:
            return AxisMap.identity(self.source.axes[axis].size)
        heads = Heads.of(axis)
        return self.axis_map(heads.kv_heads).kron(self.axis_map(heads.group))

    def _entries_map(self, axis: str) -> AxisMap:
        """The map of a table with an entry for some of the layers."""
        depth_axis = layers_of(axis)
        assert depth_axis is not None
        dimensions = (
            (t, i) for t in self.source.tensors.values() for i, d in enumerate(t.dimensions) if axis in d.layout.axes()
        )
        count = next(tensor.shape[position] for tensor, position in dimensions)
        if depth_axis not in self.layers:
            return AxisMap.identity(count)
        layers, old = self.layers[depth_axis], self.source.depths[depth_axis]
        return between_map(layers, old) if axis.startswith(BETWEEN) else last_map(layers, old, count)

    def _targets(self, tensor: TensorAnatomy) -> Targets:
        """(new name, its sources, silent) for every copy of the tensor in the large network."""
        if tensor.block is None or tensor.block[0] not in self.layers:
            return [(tensor.name, (Term(tensor.name),), False)]
        (axis, index), (prefix, rest) = tensor.block, self._home(tensor)
        targets = []
        for new, layer in self._following[axis].get(index, ()):  # each is planned once, at its first source
            targets.append((f"{prefix}.{new}{rest}", self._terms(prefix, rest, layer), layer.silent))
        if self._alike[prefix, rest] == 1 and tensor.name not in [name for name, _, _ in targets]:
            targets.append((tensor.name, (Term(tensor.name),), False))  # what only one place has, it keeps
        return targets

    @cached_property
    def _following(self) -> dict[str, dict[int, list[tuple[int, LayerSource]]]]:
        """For each axis of depth that changes: {old layer: the new layers, by number, whose first source it
        is}.
        """
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
        """(prefix of the list of blocks of a tensor, its name within the block: ".attn.weight", "" for the
        block itself).
        """
        assert tensor.block is not None
        axis, index = tensor.block
        prefix = next(b.prefix for b in self.source.blocks if b.axis == axis and tensor.name.startswith(b.prefix + "."))
        return prefix, tensor.name[len(f"{prefix}.{index}") :]

    def _units(self, name: str) -> list[str]:
        """The names of a tensor in lists with a module for each unit of an axis: those of the copies of its
        unit.
        """
        names = [name]
        for axis, unit, begin, end in reversed([*units_of(name, self.source.unit_lists)]):
            index = self.axis_map(axis).write.index
            if index is None:
                raise AnatomyError(f"{name} belongs to one unit of {axis}, and new units are mixtures of several")
            copies = torch.nonzero(index == unit).flatten().tolist()
            names = [f"{other[:begin]}{copy}{other[end:]}" for other in names for copy in copies]
        return names

    def _terms(self, prefix: str, rest: str, layer: LayerSource) -> tuple[Term, ...]:
        have = [old for old, _ in layer.sources if f"{prefix}.{old}{rest}" in self.source.tensors]
        if len(have) < len(layer.sources):  # what not all layers have cannot be mixed
            return (Term(f"{prefix}.{have[0]}{rest}"),)
        if layer.next_layer is None:
            return tuple(Term(f"{prefix}.{old}{rest}", weight) for old, weight in layer.sources)
        old = layer.sources[0][0]
        own, following = f"{prefix}.{old}{rest}", f"{prefix}.{layer.next_layer}{rest}"
        if following not in self.source.tensors:
            return (Term(own),)
        return Term(own, part="originals"), Term(following, part="copies")
