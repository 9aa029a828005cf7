"""Directories of torch.distributed.checkpoint. They grow like any other checkpoint, and any number of
processes can load the result.

Such a directory names every tensor by a path: ("model", NAME), ("optim", "state", NAME, "exp_avg"). The
weights and moments of the network's tensors grow, and lists of parameter names are adapted. Everything else
(schedules, data positions, random states) is copied as bytes. The config.json of the model has to be next to
the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException

from meristem.anatomy.streamed import Weights, streamed
from meristem.checkpoints.architecture import architecture_of
from meristem.checkpoints.companions import companions, copy_companions
from meristem.checkpoints.directory import atomic_directory, write_json
from meristem.checkpoints.distributed_content import Networks, flat, grown_content, optimizer_state
from meristem.checkpoints.distributed_tensors import INDEX, DistributedTensors, Keys
from meristem.checkpoints.open_streamed import weights_from, without_weights
from meristem.checkpoints.source import Source, find_source
from meristem.checkpoints.unplaced import check_unplaced
from meristem.checkpoints.write import save_all_but_weights
from meristem.errors import MeristemError
from meristem.growth import Growth
from meristem.growth.optimizers.optimizer_families import Family, stored_family


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
        name = Source(f"{found} ({flat(path)})", found.path) if path else found
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
            f"{source} holds {len(paths)} networks ({', '.join(map(flat, paths))}), and which is the model is not clear; "
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
    return stored_family(optimizer_state(reader, set(names)))


def save_content(growth: Growth, networks: Networks, directory: Path) -> None:
    """Write the contents of the grown checkpoint, tensor by tensor.

    Raises:
        MeristemError: if it is not known how the state of the optimizer grows, or if the disk is full.
    """
    entries = {flat(entry.path): entry for entry in grown_content(growth, networks)}
    writer = FileSystemWriter(directory, single_file_per_rank=False)  # a file stays in memory until it ends
    planner = _OnDemand(lambda key: entries[key].make())
    nested = unflatten_state_dict(
        {key: entry.stand_in for key, entry in entries.items()}, {key: entry.path for key, entry in entries.items()}
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
