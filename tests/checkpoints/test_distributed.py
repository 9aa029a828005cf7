"""torch.distributed.checkpoint: saved by two processes, grown by one, loaded by two or by one; nothing unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pico
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import meristem
from processes import losses_of

import meristem as ms
from meristem.checkpoints.distributed import open_distributed
from meristem.checkpoints.distributed_tensors import INDEX

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two processes, and the loss that the small network would have had next."""
    folder = tmp_path_factory.mktemp("dcp")
    losses = losses_of(WORKER, "save", 2, folder)
    config = pico.build("qwen2", tie_word_embeddings=True).config
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder / "saved")
    return folder / "saved", float(losses[-1])


@pytest.mark.dist
def test_grown_and_loaded_by_other_numbers_of_processes(saved, tmp_path):
    source, next_loss = saved
    options = ["--method", "hypercloning,identity_blocks", "--width", "2", "--depth", "2"]
    done = meristem("grow", source, tmp_path / "grown", *options)
    assert done.returncode == 0, done.stderr
    assert "certificate" in done.stdout
    one = [float(loss) for loss in losses_of(WORKER, "load", 1, tmp_path)]
    two = [float(loss) for loss in losses_of(WORKER, "load", 2, tmp_path)]
    assert one[0] == pytest.approx(next_loss, abs=1e-5)  # no spike: the same function, on the next batch
    assert two == pytest.approx(one, abs=2e-5)


def test_what_an_index_may_not_hold(tmp_path):
    bad = tmp_path / "bad"
    model = pico.build("qwen2")
    dcp.save({"model": model.state_dict()}, checkpoint_id=bad, no_dist=True)
    model.config.architectures = ["Qwen2ForCausalLM"]
    model.config.save_pretrained(bad)
    index = (bad / INDEX).read_bytes()
    open_distributed(str(bad))  # as it is, it opens

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    (bad / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ms.MeristemError, match=r"is not an index of a distributed checkpoint: it asks for posix.system"
    ):
        open_distributed(str(bad))
    assert not (tmp_path / "run").exists()
    (bad / INDEX).write_bytes(index)
    next(bad.glob("*.distcp")).unlink()
    with pytest.raises(ms.MeristemError, match="which is not there"):
        open_distributed(str(bad))
    (bad / "config.json").unlink()
    with pytest.raises(ms.MeristemError, match=r"no config.json"):
        open_distributed(str(bad))


def test_what_lies_outside_the_network_is_named(tmp_path):
    model = pico.build("qwen2")
    model.config.architectures = ["Qwen2ForCausalLM"]
    moments = {name: {"exp_avg": value, "exp_avg_sq": value.abs()} for name, value in model.state_dict().items()}
    del moments["model.norm.weight"]
    content = {"model": model.state_dict(), "value_head": torch.ones(1, 32), "clock": torch.tensor([5, 6])}
    dcp.save({**content, "optim": {"state": moments}}, checkpoint_id=tmp_path / "small", no_dist=True)
    model.config.save_pretrained(tmp_path / "small")
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--width", 2)
    assert done.returncode == 0, done.stderr
    said = done.stderr.replace("\n", " ")
    assert "value_head (1, 32) lie outside the network and are carried along as they are" in said
    assert "clock" not in said
    assert "holds no state of 1 of" in said
    assert "(model.norm.weight): the optimizer starts without a state" in said
