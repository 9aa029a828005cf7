"""Starting a worker in several processes (torchrun, gloo), and the loop that such workers run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def losses_of(worker: Path, mode: str, processes: int, folder: Path) -> list[str]:
    """Run `worker MODE FOLDER` in that many processes; what rank 0 left in FOLDER/losses."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0",
               "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(worker), mode, str(folder)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return (folder / "losses").read_text().split()


def train(model: torch.nn.Module, loss_of: Callable[[int, torch.Tensor], torch.Tensor], steps: int) -> list[str]:
    """In a worker: train on this process's share of every batch; the losses, averaged over the processes.

    `loss_of(step, batch)` runs forward and backward.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return [train_step(optimizer, loss_of, step) for step in range(steps)]


def train_step(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[int, torch.Tensor], torch.Tensor], step: int
) -> str:
    """In a worker: one step of the same."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batch = torch.randint(3, 67, (4, 12), generator=torch.Generator().manual_seed(step))
    loss = loss_of(step, batch[rank * 4 // world : (rank + 1) * 4 // world])
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return f"{float(mean) / world:.8f}"


def language_model_loss(model: torch.nn.Module) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """In a worker: forward and backward of a causal language model."""

    def loss_of(_: int, batch: torch.Tensor) -> torch.Tensor:
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        return loss

    return loss_of


def leave(losses: list[str], folder: Path) -> None:
    """In a worker, at its end, when all that can be wrong has been raised.

    The interpreter is left at once: torch 2.13 aborts now and then ("terminate called without an active exception")
    when it takes gloo's threads down while a DistributedDataParallel still holds the group.
    """
    if dist.get_rank() == 0:
        (folder / "losses").write_text(" ".join(losses))
    dist.barrier()
    sys.stderr.flush()
    os._exit(0)
