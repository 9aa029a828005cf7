"""A Trainer's optimizer in shards (`optimizer_0/`, as accelerate writes it for FSDP) grows as what it is."""

from __future__ import annotations

import pico
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import meristem
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import meristem as ms


def step(model, optimizer):
    ids = torch.arange(24).view(2, 12) % 60 + 3
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.fixture
def checkpoint(tmp_path):
    model = pico.build("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        step(model, optimizer)
    folder = tmp_path / "checkpoint-3"
    model.save_pretrained(folder)
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    torch.save({"last_epoch": 3}, folder / "scheduler.pt")
    dcp.save(
        {"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / "optimizer_0", no_dist=True
    )
    return folder, model, optimizer


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (["--width", 2, "--noise", 0], ms.HyperCloning(width=2, noise=0.0)),
        (["--method", "identity_blocks", "--depth", 2], ms.IdentityBlocks(depth=2)),
    ],
)
def test_grows_as_it_is(tmp_path, checkpoint, flags, method):
    folder, small, optimizer = checkpoint
    out = tmp_path / "out"
    done = meristem("grow", folder, out, *flags)
    assert done.returncode == 0, done.stderr
    assert "optimizer state grown" in done.stdout
    assert (out / "trainer_state.json").read_text() == '{"global_step": 3}'
    assert (out / "scheduler.pt").is_file()
    big = type(small).from_pretrained(out).train()
    loaded = torch.optim.AdamW(big.parameters(), lr=1e-3)
    state = {"optimizer": get_optimizer_state_dict(big, loaded)}
    dcp.load(state, checkpoint_id=out / "optimizer_0", no_dist=True)
    set_optimizer_state_dict(big, loaded, state["optimizer"])
    growth = ms.Growth.of(small, method)
    wanted = growth.grow_optimizer(optimizer)
    names = {parameter: name for name, parameter in growth.model.named_parameters()}
    moments = {names[parameter]: state for parameter, state in wanted.state.items()}
    assert len(moments) == len(loaded.state)
    for name, parameter in big.named_parameters():
        for entry in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(loaded.state[parameter][entry], moments[name][entry]), (name, entry)
    assert max(float(s["exp_avg"].abs().max()) for s in loaded.state.values()) > 0


def test_another_networks_optimizer_is_refused(tmp_path, checkpoint):
    folder, _, _ = checkpoint
    other = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(other.parameters())
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for file in (folder / "optimizer_0").iterdir():
        file.unlink()
    dcp.save(
        {"optimizer": get_optimizer_state_dict(other, optimizer)}, checkpoint_id=folder / "optimizer_0", no_dist=True
    )
    done = meristem("grow", folder, tmp_path / "out", "--width", 2)
    assert done.returncode == 2
    assert "holds no state under the names of this network's parameters; pass --drop optimizer_0" in done.stderr
    assert not (tmp_path / "out").exists()
