"""One process of test_distributed.py: train, save with torch.distributed.checkpoint, load what was grown, train on."""

import sys
from pathlib import Path

import pico
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import language_model_loss, leave, train_step
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import meristem as ms


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    small = pico.build("qwen2", tie_word_embeddings=True).train()
    if mode == "save":
        model = sharded(small)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = [train_step(optimizer, language_model_loss(model), number) for number in range(4)]
        weights, moments = get_state_dict(model, optimizer)
        extra = {"position": 1234, "rows": torch.arange(5)}
        dcp.save({"model": weights, "optim": moments, "data": extra}, checkpoint_id=folder / "saved")
        losses.append(
            train_step(optimizer, language_model_loss(model), 4)
        )  # what the small network would have done next
    else:
        model = sharded(ms.grow(small, [ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)]).train())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optim": moments, "data": {"position": 0, "rows": torch.zeros(5, dtype=torch.long)}}
        dcp.load(state, checkpoint_id=folder / "grown")
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        assert state["data"]["position"] == 1234
        assert state["data"]["rows"].tolist() == list(range(5))
        ms.load_missed_steps(optimizer, model, folder / "grown")
        assert {float(entries["step"]) for entries in optimizer.state.values()} == {0.0, 4.0}  # silent blocks begin
        losses = [train_step(optimizer, language_model_loss(model), number) for number in (4, 5)]
    leave(losses, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
