"""The lists of blocks of a live network, and the blocks that others depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.fields import text_part
from meristem.errors import MeristemError
from meristem.subnetworks.schedule import Schedule


@dataclass
class Blocks:
    """One list of repeated blocks.

    Args:
        name: its path in the network, such as "model.layers".
        axis: its axis of depth ("layers", "encoder_layers", ...).
        modules: the blocks.
        needed: blocks whose results other blocks use (T5's position bias, keys and values that later layers
            reuse).
        anatomy: the anatomy of the whole network.
        suspects: blocks that may change the shape of their input (strides, other weights than the last
            block). Those that do always run, because the others depend on the shape.
        reshaping: for each suspect that was observed, whether it changes the shape.
        extras: what the last block that ran returned after its hidden states. None if blocks return only
            these.
        passed: of a network outside transformers, what the last block was given and what it returned.
        chained: whether a block's output was seen to be the next one's input.
    """

    name: str
    axis: str
    modules: list[nn.Module]
    needed: frozenset[int]
    anatomy: Anatomy
    suspects: frozenset[int] = frozenset()
    reshaping: dict[int, bool] = field(default_factory=dict)
    extras: tuple[Any, ...] | None = None
    seen: bool = field(default=False)  # whether a block has run, so that what they return is known
    passed: tuple[Tensor, Tensor] | None = None
    chained: bool = False

    def is_of(self, model: nn.Module) -> bool:
        """Whether these are still the network's blocks."""
        try:
            present = list(model.get_submodule(self.name).children())
        except AttributeError:
            return False
        return list(map(id, present)) == list(map(id, self.modules))


_KNOWN: WeakKeyDictionary[nn.Module, list[Blocks]] = WeakKeyDictionary()


def lists_of_blocks(model: nn.Module, anatomy: Anatomy | None = None) -> list[Blocks]:
    """The lists of blocks of `model`, found once for each network, and again if its blocks were replaced.
    Wrappers (DDP, torch.compile) are removed first.

    Args:
        model: the network.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.

    Raises:
        MeristemError: if the network has no list of repeated blocks.
    """
    model = unwrapped(model)
    known = _KNOWN.get(model, [])
    is_same = known and anatomy in (None, known[0].anatomy) and all(blocks.is_of(model) for blocks in known)
    if not is_same:
        anatomy = anatomy or _still(known, model) or Anatomy.of(model)
        found = []
        for blocks in anatomy.blocks:
            modules = list(model.get_submodule(blocks.prefix).children())
            if not modules:  # a list of bare parameters, which no call could leave out
                continue
            needed = _sole_owners(anatomy, blocks.prefix, blocks.length) | _stores(model, blocks.length)
            suspects = _suspects(modules)
            found.append(Blocks(blocks.prefix, blocks.axis, modules, needed, anatomy, suspects))
        if not found:
            raise MeristemError(f"{type(model).__name__} has no list of repeated blocks to take sub-networks of")
        _KNOWN[model] = found
    return _KNOWN[model]


def _still(known: list[Blocks], model: nn.Module) -> Anatomy | None:
    """The known anatomy, if blocks were replaced by as many others."""
    counts = [len(list(model.get_submodule(blocks.name).children())) for blocks in known]
    return known[0].anatomy if known and counts == [len(blocks.modules) for blocks in known] else None


def check_no_dropping(model: nn.Module) -> None:
    """Whether the network leaves its layers alone.

    Raises:
        MeristemError: if it drops layers itself.
    """
    config = getattr(unwrapped(model), "config", None)
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            raise MeristemError(f"the model drops layers itself ({name}); set that to 0 to train sub-networks")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and `torch.compile`."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        )
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _sole_owners(anatomy: Anatomy, prefix: str, length: int) -> frozenset[int]:
    """Blocks that have everything that some other block has, and also a tensor that no other block has. That
    tensor serves all of them.
    """
    tensors: list[set[str]] = [set() for _ in range(length)]
    for name in anatomy.tensors:
        if name.startswith(prefix + "."):
            index, _, rest = name[len(prefix) + 1 :].partition(".")
            tensors[int(index)].add(rest)
    sole = set()
    for index, own in enumerate(tensors):
        others = [names for other, names in enumerate(tensors) if other != index]
        more = own - set().union(*others) if others else set()
        if more and any(names < own for names in others):
            sole.add(index)
    return frozenset(sole)


def _suspects(modules: list[nn.Module]) -> frozenset[int]:
    """Blocks with a stride, or with weights of other shapes than those of the last block."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} for module in modules]

    def strided(module: nn.Module) -> bool:
        strides = (getattr(part, "stride", 1) for part in module.modules())
        return any(
            stride not in (1, None) and set(stride if isinstance(stride, tuple) else [stride]) != {1}
            for stride in strides
        )

    return frozenset(
        i
        for i, module in enumerate(modules)
        if strided(module) or any(shapes[-1].get(name, shape) != shape for name, shape in shapes[i].items())
    )


def _stores(model: nn.Module, length: int) -> frozenset[int]:
    """Blocks whose keys and values later blocks reuse, if the config says so."""
    config: Any = getattr(model, "config", None)
    text = text_part(config) if hasattr(config, "get_text_config") else config
    modes = getattr(text, "kv_sharing_modes", None)
    if modes is None or len(modes) != length or "reuse" not in modes:
        return frozenset()
    return frozenset(layer for layer, mode in enumerate(modes) if mode == "store")


def with_schedules(schedule: Schedule | Mapping[str, Schedule], blocks: list[Blocks]) -> list[tuple[Blocks, Schedule]]:
    """Each list with its schedule: one schedule for all lists, or a mapping by the name of the axis.

    Raises:
        MeristemError: if no list has a name of the mapping, if a schedule has another depth, or if it may
            skip a block that others need.
    """
    named = schedule if isinstance(schedule, Mapping) else {b.axis: schedule for b in blocks}
    axes = {b.axis for b in blocks}
    for axis in named:
        if axis not in axes:
            raise MeristemError(f"no list of blocks {axis!r} in this network; it has {', '.join(sorted(axes))}")
    found = [(b, named[b.axis]) for b in blocks if b.axis in named]
    for b, s in found:
        if s.num_hidden_layers != len(b.modules):
            raise MeristemError(
                f"the schedule has num_hidden_layers={s.num_hidden_layers}, but {b.name} has {len(b.modules)} blocks"
                + ("; pass {axis: schedule} for lists of different lengths" if len(axes) > 1 else "")
            )
        at_risk = [layer for layer in sorted(b.needed) if _may_skip(s, layer)]
        if at_risk:
            raise MeristemError(
                f"blocks {at_risk} of {b.name} pass something to others (a position bias, keys and values) and must always run: "
                "add them to fixed_layers"
            )
    return found


def _may_skip(schedule: Schedule, layer: int) -> bool:
    steps = range(0, schedule.total_steps, max(1, schedule.total_steps // 32))
    return any(schedule.keep(step)[layer] < 1 for step in (*steps, schedule.total_steps - 1))
