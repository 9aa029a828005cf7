"""What loading with torch.distributed.checkpoint leaves out: how many of Adam's steps fresh entries have
missed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from meristem.checkpoints.distributed_tensors import INDEX, DistributedTensors
from meristem.errors import MeristemError
from meristem.growth.optimizers.block_steps import MISSED, count_blocks_apart
from meristem.growth.tensors.dtensors import as_part


def load_missed_steps(optimizer: Optimizer, model: nn.Module, directory: str | Path) -> None:
    """Load into an optimizer how many steps the entries have missed that a growth added. Call it after its
    state is loaded.

    `dcp.load` fills only the entries that an optimizer already has, and Adam has none for missed steps.
    Without them the first step of fresh entries is (1 - beta1) / sqrt(1 - beta2) learning rates long (3.2
    with the usual betas) instead of one. All processes have to call it in the same way. If the checkpoint
    holds no missed steps, nothing changes.

    Args:
        optimizer: Adam or AdamW of the grown network, with its state loaded.
        model: the grown network, sharded or not.
        directory: a directory of torch.distributed.checkpoint that `meristem grow` wrote.

    Raises:
        MeristemError: if it is not such a directory, or if it belongs to another network.
    """
    if not (Path(directory) / INDEX).is_file():
        raise MeristemError(f"{directory} is not a directory of torch.distributed.checkpoint: it has no {INDEX}")
    reader = DistributedTensors(Path(directory))
    parameters = dict(model.named_parameters())
    for key, path in reader.paths.items():
        if path[-1] != MISSED:
            continue
        parameter = parameters.get(str(path[-2]))
        missed = reader.tensor(key)
        if parameter is None or parameter.shape != missed.shape:
            raise MeristemError(
                f"{directory} records missed steps for {path[-2]} {tuple(missed.shape)}, and the model has no such tensor"
            )
        if parameter in optimizer.state:
            part = as_part(missed, parameter.detach())
            optimizer.state[parameter][MISSED] = part.to(parameter.device, torch.float32)
    count_blocks_apart(optimizer)
