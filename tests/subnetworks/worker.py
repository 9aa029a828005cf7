"""One process of test_processes.py: twelve steps of RAPTR on a pico llama; rank 0 writes the losses."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import leave, train
from torch.nn.parallel import DistributedDataParallel

import meristem as ms


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = pico.build("llama", num_hidden_layers=5).train()
    if mode == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    if mode == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    schedule = ms.SubnetworkSchedule(5, 12, stages=[3, 5], seed=dist.get_rank() if mode == "divergent" else 0)

    def loss_of(step: int, batch: torch.Tensor) -> torch.Tensor:
        with ms.subnetwork(model, schedule, step, check_ranks=True):
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
        return loss

    try:
        losses = train(model, loss_of, 12)
    except ms.MeristemError as error:
        losses = [str(error)]
    leave(losses, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
