"""One process of test_train_new.py: steps of a grown network of which only new entries move; rank 0 writes losses and clipped norms."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
from processes import language_model_loss, leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import meristem as ms
from meristem.growth.dtensors import whole


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    growth = ms.Growth.of(pico.build("llama"), [ms.Net2Net(intermediate_size=88), ms.IdentityBlocks(depth=2)])
    model: torch.nn.Module = growth.model.train()
    if mode == "fsdp2" and dist.get_world_size() > 1:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    before = {name: whole(parameter).clone() for name, parameter in model.named_parameters()}
    ms.freeze_old(model, growth)
    run = DistributedDataParallel(model) if mode == "ddp" else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    loss_of, rank, world = language_model_loss(run), dist.get_rank(), dist.get_world_size()
    seen: list[str] = []
    for number in range(4):
        optimizer.zero_grad()
        batch = torch.randint(3, 67, (4, 12), generator=torch.Generator().manual_seed(7))
        mean = loss_of(number, batch[rank * 4 // world : (rank + 1) * 4 // world]).detach().clone()
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
        dist.all_reduce(mean)
        seen += [f"{float(norm):.8f}", f"{float(mean) / world:.8f}"]
    for name, parameter in model.named_parameters():
        old = growth.provenance.mask(name, "old")
        assert torch.equal(whole(parameter)[old], before[name][old]), name
    leave(seen, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
