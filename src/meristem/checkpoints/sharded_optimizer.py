"""An optimizer in shards next to the weights of a Trainer (`optimizer_0/`, as accelerate writes it for FSDP).
The grown one has the same format.

It is a directory of torch.distributed.checkpoint that holds {"optimizer": {"state": {NAME: ...},
"param_groups": [...]}}. Any number of processes can load the result.
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
from meristem.growth.optimizers.optimizer_families import Family

NAME = "optimizer_0"


@dataclass(frozen=True)
class ShardedOptimizer:
    """The optimizer of a Trainer's checkpoint: the directory of the checkpoint, a reader of the shards, and
    the kind of optimizer.
    """

    directory: Path
    reader: DistributedTensors
    family: Family


def read_sharded_optimizer(directory: Path, small: nn.Module, drop: Sequence[str] = ()) -> ShardedOptimizer | None:
    """The sharded optimizer of a Trainer's checkpoint of `small`. None if it has none, or if `drop` has a
    pattern for it.

    Raises:
        MeristemError: if its index is not valid or names files that do not exist, or if it is not known how
            its state grows.
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
    """Write the grown optimizer into `out`, and copy the files that growth does not change.

    Raises:
        MeristemError: if it is not known how the state of the optimizer grows, or if the disk is full.
    """
    save_content(growth, Networks(saved.reader, {}, frozenset()), out / NAME)
    keep_beside(saved.directory, out)
