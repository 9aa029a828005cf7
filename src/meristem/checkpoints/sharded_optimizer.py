"""An optimizer in shards beside a Trainer's weights (`optimizer_0/`, as accelerate writes it for FSDP): grown as what it is.

It is a directory of torch.distributed.checkpoint that holds {"optimizer": {"state": {NAME: ...}, "param_groups": [...]}}. The
grown one is such a directory again, which any number of processes load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torch import nn

from meristem.checkpoints.distributed import Networks, is_distributed, read_family, save_content
from meristem.checkpoints.distributed_tensors import DistributedTensors
from meristem.checkpoints.stateless import say_stateless
from meristem.checkpoints.trainer_state import keep_beside
from meristem.errors import MeristemError
from meristem.growth import Growth
from meristem.growth.optimizer_families import Family

NAME = "optimizer_0"


@dataclass(frozen=True)
class ShardedOptimizer:
    """The optimizer of a Trainer's checkpoint: the checkpoint's directory, a reader of the shards, and what optimizer it is."""

    directory: Path
    reader: DistributedTensors
    family: Family


def read_sharded_optimizer(directory: Path, small: nn.Module, drop: Sequence[str] = ()) -> ShardedOptimizer | None:
    """The sharded optimizer of a Trainer's checkpoint of `small`; None, if it has none or `drop` has a pattern for it.

    Raises:
        MeristemError: if its index is none, names files that are not there, or if the growth of its state is not known.
    """
    trainers = (directory / "trainer_state.json").is_file() and is_distributed(directory / NAME)
    if not trainers or any(fnmatch(NAME, pattern) for pattern in drop):
        return None
    reader = DistributedTensors(directory / NAME)
    names = [name for name, _ in small.named_parameters()]
    known = {part for path in reader.paths.values() for part in path}
    if not known & set(names):
        raise MeristemError(
            f"{directory / NAME} holds no state under the names of this network's parameters; pass --drop {NAME} to grow the weights alone"
        )
    say_stateless(directory / NAME, (name for name, p in small.named_parameters() if p.requires_grad), known)
    return ShardedOptimizer(directory, reader, read_family(reader, names))


def grow_sharded_optimizer(saved: ShardedOptimizer, growth: Growth, out: Path) -> None:
    """Write the grown optimizer into `out`, and copy the files that growth does not touch.

    Raises:
        MeristemError: for optimizer state whose growth is not known, or if the disk is full.
    """
    save_content(growth, Networks(saved.reader, {}, frozenset()), out / NAME)
    keep_beside(saved.directory, out)
