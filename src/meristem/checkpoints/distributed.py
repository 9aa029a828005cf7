"""Directories of torch.distributed.checkpoint. They grow like any other checkpoint, and any number of
processes can load the result.

Such a directory names every tensor by a path: ("model", NAME), ("optim", "state", NAME, "exp_avg"). The
weights and moments of the network's tensors grow, and lists of parameter names are adapted. Everything else
(schedules, data positions, random states) is copied as bytes. The config.json of the model has to be next to
the shards.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException

from meristem.anatomy.streamed import Weights, streamed, weights_of
from meristem.checkpoints.architecture import architecture_of
from meristem.checkpoints.companions import companions, copy_companions
from meristem.checkpoints.directory import atomic_directory, write_json
from meristem.checkpoints.distributed_tensors import INDEX, DistributedTensors, Keys
from meristem.checkpoints.open_streamed import weights_from, without_weights
from meristem.checkpoints.source import Source, find_source
from meristem.checkpoints.stateless import NAMED, say_stateless
from meristem.checkpoints.unplaced import check_unplaced
from meristem.checkpoints.write import save_all_but_weights
from meristem.errors import MeristemError, first_line
from meristem.growth import Growth
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import dtypes_of, grow_state
from meristem.growth.optimizers.optimizer_families import Family, stored_family
from meristem.growth.tensors.build import build


def is_distributed(source: Path) -> bool:
    """Whether a directory is one of torch.distributed.checkpoint."""
    return (source / INDEX).is_file()


class _OnDemand(DefaultSavePlanner):
    """Plans with tensors that have no memory, and makes each one when it is written."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def resolve_data(self, write_item: Any) -> Any:
        return self._make(write_item.index.fqn)


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


def open_distributed(
    source: str | Source, trust_remote_code: bool = False, drop: Sequence[str] = ()
) -> tuple[nn.Module, Networks]:
    """The network of a distributed checkpoint, streamed, and all contents of the checkpoint. The arguments
    are those of `open_model`.

    Raises:
        MeristemError: if there is no config.json next to the shards, if the index is not valid, if tensors
            are missing or do not belong to the network, or if there are several networks and none is called
            "model".
    """
    found = find_source(source, trust_remote_code)
    model_class, config = architecture_of(found, trust_remote_code)
    reader = DistributedTensors(found.path)
    skeleton = without_weights(model_class, config, found)
    paths = _network_paths(skeleton, reader, found)
    models, dropped = {}, set()
    for path in paths:
        name = Source(f"{found} ({_flat(path)})", found.path) if path else found
        beside = {} if not path else _without_a_place(skeleton, reader, path)  # at the root may lie anything
        check_unplaced(name, skeleton, {n: tuple(reader.placeholder(key).shape) for n, key in beside.items()}, drop)
        dropped |= {key for n, key in beside.items() if any(fnmatch(n, pattern) for pattern in drop)}
        model = without_weights(model_class, config, found)
        models[path] = streamed(model, _read_weights(model, reader, path, name), checked=True)
    return models[paths[0]], Networks(reader, models, frozenset(dropped))


def _network_paths(skeleton: nn.Module, reader: DistributedTensors, source: Source) -> list[Keys]:
    """The paths of the networks, by name: that of the model first, then those of others like it (moving
    averages).
    """
    names = skeleton.state_dict().keys()
    paths = list(dict.fromkeys(p[:-1] for k, p in reader.paths.items() if p[-1] in names and not reader.is_bytes(k)))
    own = [path for path in paths if not path or path[-1] in ("model", "module", "state_dict")]
    if len(paths) > 1 and len(own) != 1:
        raise MeristemError(
            f"{source} holds {len(paths)} networks ({', '.join(map(_flat, paths))}), and which is the model is not clear; "
            'save it under "model"'
        )
    return [*own, *(path for path in paths if path not in own)] or [()]


def _without_a_place(skeleton: nn.Module, reader: DistributedTensors, network: Keys) -> dict[str, str]:
    """{name: key} of tensors next to those of the network that it does not have."""
    names = skeleton.state_dict().keys()
    beside = {p[-1]: k for k, p in reader.paths.items() if p[:-1] == network and not reader.is_bytes(k)}
    return {name: key for name, key in beside.items() if name not in names}


def _read_weights(model: nn.Module, reader: DistributedTensors, network: Keys, source: Source) -> Weights:
    keys = {path[-1]: key for key, path in reader.paths.items() if path[:-1] == network and not reader.is_bytes(key)}
    found = {name: reader.placeholder(keys[name]) for name in model.state_dict() if name in keys}
    return weights_from(source, model, found, lambda name: reader.tensor(keys[name]))


def write_distributed(
    growth: Growth,
    networks: Networks,
    out: Path,
    record: Callable[[], dict[str, Any]],
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> tuple[str, ...]:
    """Write the grown checkpoint as a directory of the same kind, with the same paths. Tensors are made one
    at a time.

    Everything except weights is copied, as by `write_model`.

    Args:
        growth: the growth.
        networks: the contents of the source, from `open_distributed`.
        out: the directory to write.
        record: a function that returns the content of `meristem.json`.
        overwrite: replace `out`, if Meristem or `save_pretrained` wrote everything in it.
        trust_remote_code: copy code too.

    Returns:
        What the source holds that was left behind.

    Raises:
        MeristemError: if `out` exists, if it is not known how the state of the optimizer grows, or if the
            disk is full.
    """
    source = Path(networks.reader.path)
    read_family(networks.reader, growth.plans[0].source.tensors)
    with atomic_directory(out, overwrite, [source]) as partial:
        save_all_but_weights(growth.model, partial)
        save_content(growth, networks, partial)
        beside = companions(source, trust_remote_code, partial)
        copy_companions(source, partial, beside.copied)
        write_json(partial / "meristem.json", record())
        _check_written(growth.model, partial, networks.models)
    return tuple(name for name in beside.left if not fnmatch(name, "*.distcp"))  # those grew


def read_family(reader: DistributedTensors, names: Iterable[str]) -> Family:
    """The optimizer whose state a distributed checkpoint holds for the tensors of these names.

    Raises:
        MeristemError: if it is not known how its state grows.
    """
    return stored_family(_optimizer_state(reader, set(names)))


def save_content(growth: Growth, networks: Networks, directory: Path) -> None:
    """Write the contents of the grown checkpoint, tensor by tensor.

    Raises:
        MeristemError: if it is not known how the state of the optimizer grows, or if the disk is full.
    """
    content, makers = _grown_content(growth, networks)
    writer = FileSystemWriter(directory, single_file_per_rank=False)  # a file stays in memory until it ends
    planner = _OnDemand(lambda key: makers[key]())
    nested = unflatten_state_dict(
        {_flat(path): value for path, value in content.items()}, {_flat(path): path for path in content}
    )
    try:
        dcp.save(nested, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        raise MeristemError(f"{directory} cannot be written: {error}") from error


def _check_written(model: Any, directory: Path, networks: Iterable[Keys]) -> None:
    source = Source(str(directory), directory)
    skeleton = without_weights(type(model), type(model.config).from_pretrained(directory), source)
    for path in networks:
        _read_weights(skeleton, DistributedTensors(directory), path, source)


def _grown(growth: Growth, networks: Networks) -> dict[Keys, Any]:
    """{path of a network: what makes the tensors of the grown one}."""
    grown: dict[Keys, Any] = {}
    for number, (path, model) in enumerate(networks.models.items()):
        current = model
        for plan in growth.plans if number else ():
            current = build(plan, current)
        grown[path] = weights_of(current if number else growth.model)
    return grown


def _grown_content(growth: Growth, networks: Networks) -> tuple[dict[Keys, Any], dict[str, Callable[[], Any]]]:
    """({path: a stand-in}, {flat path: what makes its content}) of the grown checkpoint."""
    reader, grown = networks.reader, _grown(growth, networks)
    old_names = set(growth.plans[0].source.tensors)
    state: Mapping[str, Mapping[str, Tensor]] = _optimizer_state(reader, old_names)
    family = stored_family(state)
    if networks.models:
        say_stateless(reader.path, (name for name, _ in growth.source.named_parameters()), state)
        _say_apart(growth, networks, old_names)
    for plan in growth.plans:
        state = grow_state(plan, state, family)
    shapes = {name: tensor.shape for name, tensor in growth.model.state_dict().items()}
    tensor_heirs = _heirs(growth, shapes)
    parameter_heirs = _heirs(growth, [name for name, _ in growth.model.named_parameters()], own=True)
    content: dict[Keys, Any] = {}
    makers: dict[str, Callable[[], Any]] = {}

    def put(path: Keys, placeholder: Any, make: Callable[[], Any]) -> None:
        content[path] = placeholder
        makers[_flat(path)] = make

    for key, path in reader.paths.items():
        if key in networks.dropped:
            continue
        named = next((i for i, part in enumerate(path) if part in old_names), None)
        if named is None:
            if reader.is_bytes(key):
                put(path, io.BytesIO(), lambda k=key, p=path: _renamed(reader.raw(k), p, parameter_heirs))
            else:
                put(path, reader.placeholder(key), lambda k=key: reader.tensor(k))
        elif named == len(path) - 1:
            weights = grown[path[:-1]]
            for name in tensor_heirs.get(path[named], []):
                like = torch.empty(shapes[name], dtype=weights.dtypes[name], device="meta")
                put((*path[:-1], name), like, lambda n=name, weights=weights: weights[n])
        else:
            for name in parameter_heirs.get(path[named], []):
                place = (*path[:named], name, *path[named + 1 :])
                if reader.is_bytes(key):
                    put(place, io.BytesIO(), lambda k=key: reader.raw(k))
                else:
                    entries = [path[-1], MISSED] if path[-1] == "step" else [path[-1]]
                    dtypes = dtypes_of(state[name])
                    for entry in (entry for entry in entries if entry in dtypes):
                        shape = shapes[name] if entry == MISSED else family.shape_of(entry, shapes[name])
                        like = torch.empty(shape, dtype=dtypes[entry], device="meta")
                        put((*place[:-1], entry), like, lambda n=name, entry=entry: state[n][entry])
    return content, makers


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


def _optimizer_state(reader: DistributedTensors, names: set[str]) -> dict[str, Weights]:
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
        raise MeristemError(f"{_flat(path)} is not a list of parameter names: {first_line(error)}") from error
    renamed = io.BytesIO()
    torch.save([heir for name in names for heir in heirs.get(name, [])], renamed)
    renamed.seek(0)
    return renamed


def _flat(path: Keys) -> str:
    return ".".join(str(part) for part in path)
