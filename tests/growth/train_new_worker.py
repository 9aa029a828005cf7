"""One process of test_train_new.py: steps of a grown network of which only new entries move, by three optimizers; rank 0 writes clipped
norms and losses."""

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
from meristem.growth.tensors.dtensors import whole


def optimizers(model: torch.nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """One optimizer; Muon is for matrices, AdamW beside it for the rest."""
    moving = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return [torch.optim.SGD(moving, lr=1e-1, momentum=0.9, nesterov=True, weight_decay=0.1)]
    matrices = [p for p in moving if p.dim() == 2] if name == "muon" else []
    others = [p for p in moving if not any(p is matrix for matrix in matrices)]
    made: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)] if matrices else []
    return [*made, *([torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1)] if others else [])]


def steps_of(mode: str, name: str) -> list[str]:
    """Clipped norms and losses of four steps; raises where an old entry has moved or its gradient counts in the norm."""
    growth = ms.Growth.of(pico.build("llama"), [ms.Net2Net(intermediate_size=88), ms.IdentityBlocks(depth=2)])
    model: torch.nn.Module = growth.model.train()
    if mode == "fsdp2" and dist.get_world_size() > 1:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    before = {n: whole(parameter).clone() for n, parameter in model.named_parameters()}
    ms.freeze_old(model, growth)
    run = DistributedDataParallel(model) if mode == "ddp" else model
    made = optimizers(model, name)
    loss_of, rank, world = language_model_loss(run), dist.get_rank(), dist.get_world_size()
    seen: list[str] = []
    for number in range(4):
        for optimizer in made:
            optimizer.zero_grad()
        batch = torch.randint(3, 67, (4, 12), generator=torch.Generator().manual_seed(7))
        mean = loss_of(number, batch[rank * 4 // world : (rank + 1) * 4 // world]).detach().clone()
        own = [(n, whole(p.grad)) for n, p in model.named_parameters() if p.grad is not None]
        moves = torch.cat([grad[~growth.provenance.mask(n, "old")] for n, grad in own]).norm()
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        torch.testing.assert_close(norm, moves, rtol=1e-5, atol=1e-6)
        for optimizer in made:
            optimizer.step()
        dist.all_reduce(mean)
        seen += [f"{float(norm):.8f}", f"{float(mean) / world:.8f}"]
    for n, parameter in model.named_parameters():
        old = growth.provenance.mask(n, "old")
        assert torch.equal(whole(parameter)[old], before[n][old]), n
    return seen


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    leave([line for name in ("adamw", "sgd", "muon") for line in steps_of(mode, name)], folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
