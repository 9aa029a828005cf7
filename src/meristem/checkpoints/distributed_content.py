"""What stands at each path of a grown checkpoint of torch.distributed.checkpoint, and what makes it."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import Weights, weights_of
from meristem.checkpoints.distributed_tensors import DistributedTensors, Keys
from meristem.checkpoints.stateless import NAMED, say_stateless
from meristem.errors import MeristemError, first_line
from meristem.growth import Growth
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import dtypes_of, grow_state
from meristem.growth.optimizers.optimizer_families import Family, stored_family
from meristem.growth.tensors.build import build


@dataclass(frozen=True)
class Networks:
    """The contents of a distributed checkpoint: its tensors, and every network among them by its path
    (`("model",)`, `("ema",)`).

    Attributes:
        dropped: keys of tensors that the network does not have and that the user leaves out.
    """

    reader: DistributedTensors
    models: Mapping[Keys, nn.Module]  # streamed; the first is the one that is measured
    dropped: frozenset[str]


@dataclass(frozen=True)
class Entry:
    """One tensor, or bytes, of the grown checkpoint.

    Attributes:
        path: where it stands.
        stand_in: a tensor of its shape and dtype without memory, or empty bytes.
        make: what makes the content.
    """

    path: Keys
    stand_in: Any
    make: Callable[[], Any]


def grown_content(growth: Growth, networks: Networks) -> Iterator[Entry]:
    """All entries of the grown checkpoint. Tensors of the network and their optimizer states are grown;
    everything else is copied.
    """
    reader, old_names = networks.reader, set(growth.plans[0].source.tensors)
    state: Mapping[str, Mapping[str, Tensor]] = optimizer_state(reader, old_names)
    family = stored_family(state)
    if networks.models:
        say_stateless(reader.path, (name for name, _ in growth.source.named_parameters()), state)
        _say_apart(growth, networks, old_names)
    for plan in growth.plans:
        state = grow_state(plan, state, family)
    shapes = {name: tensor.shape for name, tensor in growth.model.state_dict().items()}
    weights = _Weights(_grown(growth, networks), shapes, _heirs(growth, shapes))
    parameters = _heirs(growth, [name for name, _ in growth.model.named_parameters()], own=True)
    states = _States(reader, state, family, shapes, parameters)
    for key, path in reader.paths.items():
        if key in networks.dropped:
            continue
        named = next((place for place, part in enumerate(path) if part in old_names), None)
        if named is None:
            yield _copied(reader, key, path, parameters)
        elif named == len(path) - 1:
            yield from weights.entries(path)
        else:
            yield from states.entries(key, path, named)


def _copied(reader: DistributedTensors, key: str, path: Keys, heirs: Mapping[str, list[str]]) -> Entry:
    """What belongs to no tensor of the network."""
    if reader.is_bytes(key):
        return Entry(path, io.BytesIO(), lambda: _renamed(reader.raw(key), path, heirs))
    return Entry(path, reader.placeholder(key), lambda: reader.tensor(key))


@dataclass(frozen=True)
class _Weights:
    """The tensors of the networks.

    Attributes:
        grown: what makes the tensors of each network, by its path.
        shapes: by name.
        heirs: the names that come from each old one.
    """

    grown: Mapping[Keys, Any]
    shapes: Mapping[str, torch.Size]
    heirs: Mapping[str, list[str]]

    def entries(self, path: Keys) -> Iterator[Entry]:
        weights = self.grown[path[:-1]]
        for name in self.heirs.get(path[-1], []):
            like = torch.empty(self.shapes[name], dtype=weights.dtypes[name], device="meta")
            yield Entry((*path[:-1], name), like, partial(weights.__getitem__, name))


@dataclass(frozen=True)
class _States:
    """The optimizer's state.

    Attributes:
        state: the grown one, by the name of the parameter and of the entry.
        family: the optimizer, which knows the shapes of its entries.
        shapes: of the parameters.
        heirs: the parameters that come from each old one.
    """

    reader: DistributedTensors
    state: Mapping[str, Mapping[str, Tensor]]
    family: Family
    shapes: Mapping[str, torch.Size]
    heirs: Mapping[str, list[str]]

    def entries(self, key: str, path: Keys, named: int) -> Iterator[Entry]:
        """What comes from the entry at `path`, whose part `named` is the parameter."""
        for name in self.heirs.get(path[named], []):
            place = (*path[:named], name, *path[named + 1 :])
            if self.reader.is_bytes(key):
                yield Entry(place, io.BytesIO(), partial(self.reader.raw, key))
                continue
            dtypes = dtypes_of(self.state[name])
            wanted = (path[-1], MISSED) if path[-1] == "step" else (path[-1],)
            for entry in (entry for entry in wanted if entry in dtypes):
                own = self.shapes[name]
                shape = own if entry == MISSED else self.family.shape_of(entry, own)
                like = torch.empty(shape, dtype=dtypes[entry], device="meta")
                yield Entry((*place[:-1], entry), like, partial(self.state[name].__getitem__, entry))


def _grown(growth: Growth, networks: Networks) -> dict[Keys, Any]:
    """{path of a network: what makes the tensors of the grown one}."""
    grown: dict[Keys, Any] = {}
    for number, (path, model) in enumerate(networks.models.items()):
        current = model
        for plan in growth.plans if number else ():
            current = build(plan, current)
        grown[path] = weights_of(current if number else growth.model)
    return grown


def _say_apart(growth: Growth, networks: Networks, names: set[str]) -> None:
    """Warn of tensors of numbers that belong to no network and to no optimizer's state: nothing tells how
    they would grow.
    """
    reader = networks.reader
    apart = {
        key: reader.placeholder(key)
        for key, path in reader.paths.items()
        if key not in networks.dropped and not names & set(path) and not reader.is_bytes(key)
    }
    shown = [f"{k} {tuple(t.shape)}" for k, t in apart.items() if t.is_floating_point() and t.numel() > 1]
    if shown and any(plan.maps for plan in growth.plans):
        more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
        warnings.warn(
            f"{reader.path}: {', '.join(shown[:NAMED])}{more} lie outside the network and are carried along as they are, in their old "
            "shapes",
            stacklevel=2,
        )


def _heirs(growth: Growth, names: Iterable[str], own: bool = False) -> dict[str, list[str]]:
    """{tensor of the smallest network: the given tensors of the largest that come from it}. With `own`, under
    the name that tied tensors share.
    """
    heirs: dict[str, list[str]] = {}
    for name in names:
        origin = name
        for plan in reversed(growth.plans):
            shared = plan.own_names[origin]
            alias = origin != shared and origin in plan.source.tensors
            origin = origin if alias else plan.tensors[shared].terms[0].source
        origin = growth.plans[0].source.tensors[origin].tied_to or origin if own else origin
        heirs.setdefault(origin, []).append(name)
    return heirs


def optimizer_state(reader: DistributedTensors, names: set[str]) -> dict[str, Weights]:
    """{parameter: its entries} of the state that a checkpoint holds for the tensors of these names. They are
    read on demand.
    """
    keys: dict[str, dict[str, str]] = {}
    for key, path in reader.paths.items():
        if len(path) > 2 and path[-3] == "state" and path[-2] in names and not reader.is_bytes(key):
            keys.setdefault(path[-2], {})[path[-1]] = key
    return {
        name: Weights(
            {entry: reader.placeholder(key).dtype for entry, key in entries.items()},
            lambda entry, entries=entries: reader.tensor(entries[entry]),
        )
        for name, entries in keys.items()
    }


def _renamed(value: io.BytesIO, path: Keys, heirs: Mapping[str, list[str]]) -> io.BytesIO:
    """The list of names of a parameter group, with those of the large network. Other bytes do not change."""
    if path[-1] != "params":
        return value
    try:
        names = torch.load(value, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise MeristemError(f"{flat(path)} is not a list of parameter names: {first_line(error)}") from error
    renamed = io.BytesIO()
    torch.save([heir for name in names for heir in heirs.get(name, [])], renamed)
    renamed.seek(0)
    return renamed


def flat(path: Keys) -> str:
    """As torch writes it: its parts with dots between them."""
    return ".".join(str(part) for part in path)
