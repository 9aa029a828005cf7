"""torch.distributed.checkpoint directories with more in them than one network."""

from __future__ import annotations

import json

import pico
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import meristem

import meristem as ms
from meristem.checkpoints.distributed import open_distributed
from meristem.checkpoints.distributed_tensors import DistributedTensors


def save(folder, **state):
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    config = pico.build("qwen2", tie_word_embeddings=True).config
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    return folder


def network(seed, **changes):
    return pico.build("qwen2", seed, **{"tie_word_embeddings": True, **changes})


def tensors(folder, prefix):
    reader = DistributedTensors(folder)
    return {
        path[-1]: reader.tensor(key)
        for key, path in reader.paths.items()
        if path[:-1] == prefix and not reader.is_bytes(key)
    }


@pytest.mark.parametrize("order", [("model", "ema"), ("ema", "model")])
def test_each_network_grows_from_its_own_weights(tmp_path, order):
    small = {"model": network(0), "ema": network(1)}
    state = {name: small[name].state_dict() for name in order} | {"rows": torch.arange(5), "epoch": 3}
    source = save(tmp_path / "small", **state)
    done = meristem(
        "grow", source, tmp_path / "big", "--width", 2, "--depth", 2, "--method", "hypercloning,identity_blocks"
    )
    assert done.returncode == 0, done.stderr
    for name, model in small.items():
        expected = ms.grow(model, [ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)])
        found = tensors(tmp_path / "big", (name,))
        assert found.keys() == expected.state_dict().keys()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(found[key], tensor), (name, key)
    assert tensors(tmp_path / "big", ())["rows"].tolist() == [0, 1, 2, 3, 4]
    again, networks = open_distributed(str(tmp_path / "big"))
    assert list(networks.models) == [("model",), ("ema",)]
    assert ms.verify(small["model"], again).holds


def test_which_network_it_is_has_to_be_clear(tmp_path):
    source = save(tmp_path / "small", student=network(0).state_dict(), teacher=network(1).state_dict())
    with pytest.raises(
        ms.MeristemError, match=r"holds 2 networks \(student, teacher\), and which is the model is not clear"
    ):
        open_distributed(str(source))
    alone = save(tmp_path / "alone", teacher=network(1).state_dict())
    assert ms.verify(network(1), open_distributed(str(alone))[0]).holds


def test_a_network_is_whole_and_nothing_besides(tmp_path):
    weights = network(0).state_dict()
    half = {name: tensor for name, tensor in network(1).state_dict().items() if "layers.1" not in name}
    with pytest.raises(ms.MeristemError, match=r"small \(ema\): .* tensors of Qwen2ForCausalLM are missing"):
        open_distributed(str(save(tmp_path / "small", model=weights, ema=half)))
    source = save(tmp_path / "head", model={**weights, "value_head.weight": torch.ones(1, 32)})
    with pytest.raises(
        ms.MeristemError, match=r"head \(model\): .*no place for 1 tensors of its files \(value_head.weight\)"
    ):
        open_distributed(str(source))
    done = meristem("grow", source, tmp_path / "out", "--width", 2, "--drop", "value_head.*")
    assert done.returncode == 0, done.stderr
    assert "value_head.weight" not in tensors(tmp_path / "out", ("model",))
    assert json.loads((tmp_path / "out" / "meristem.json").read_text())["dropped"] == ["value_head.*"]


@pytest.mark.parametrize("name", ["optimizer_0/rank0.bin", "optimizer.bin", "global_step5/mp_rank_00_model_states.pt"])
def test_a_trainers_optimizer_in_shards_is_not_lost(tmp_path, name):
    source = tmp_path / "checkpoint-5"
    pico.build("llama").save_pretrained(source)
    (source / "trainer_state.json").write_text("{}")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("")
    done = meristem("grow", source, tmp_path / "out", "--width", 2)
    assert done.returncode == 2
    first = name.split("/")[0]
    assert f"is a Trainer's checkpoint whose optimizer is in {first}, which cannot grow" in done.stderr
    assert not (tmp_path / "out").exists()
    done = meristem("grow", source, tmp_path / "out", "--width", 2, "--drop", first)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "trainer_state.json").exists()
