"""Of processes that share a sharded network, the first opens the weights, and the others only know their shapes."""

from __future__ import annotations

import os

import psutil
import pytest
import torch
from small import MODEL

import meristem as ms
from meristem.checkpoints import open_streamed
from meristem.recipes.nodes import work
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks.language import causal_language_model

FSDP = {
    "fsdp": True,
    "fsdp_config": {"state_dict_type": "FULL_STATE_DICT", "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}
WIDE = {**MODEL, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 8}


def spec(**changes):
    own = {"from": "big", "tokens": "1k", "batch_size": 4, "learning_rate": 1e-3, **changes}
    nodes = {"big": {"checkpoint": {"source": "x"}}, "net": {"train": own, "resources": {"processes": 2}}}
    return parse_recipe({"data": {"sequence_length": 32}, "nodes": nodes}).nodes["net"].train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("opening") / "model"
    causal_language_model(WIDE, 256, 32, 0).to(torch.bfloat16).save_pretrained(place)
    return place


def resident():
    return psutil.Process(os.getpid()).memory_info().rss


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_not_the_first_reads_no_weights(checkpoint, rank, monkeypatch):
    """201 MB in float32: in the memory of the first, and of nobody else."""
    monkeypatch.setenv("RANK", str(rank))
    opened, plain = [], work.open_model
    monkeypatch.setattr(work, "open_model", lambda place: opened.append(place) or plain(place))
    before = resident()
    model = work._to_train(checkpoint, spec(trainer=FSDP))
    cost = resident() - before
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert size == pytest.approx(201e6, rel=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}  # by their addresses accelerate knows them
    if rank == 0:
        assert opened == [str(checkpoint)]
        assert cost > 0.3 * size  # what was freed before is used again
    else:
        assert opened == []
        assert cost < 0.1 * size
        shapes = {name: p.shape for name, p in open_streamed(str(checkpoint)).named_parameters()}
        assert {name: p.shape for name, p in model.named_parameters()} == shapes


@pytest.mark.parametrize("train", [{}, {"trainer": FSDP, "majority": {"kernels": 2}}], ids=["ddp", "kernels"])
def test_where_the_others_need_the_weights_all_open_them(checkpoint, train, monkeypatch):
    """DDP's processes each hold the network; kernels are made of the weights before they are sharded."""
    monkeypatch.setenv("RANK", "1")
    opened, plain = [], work.open_model
    monkeypatch.setattr(work, "open_model", lambda place: opened.append(place) or plain(place))
    model = work._to_train(checkpoint, spec(**train))
    assert opened == [str(checkpoint)]
    expected = open_streamed(str(checkpoint)).get_submodule("model.norm").weight
    assert model.get_parameter("model.norm.weight").shape == expected.shape


def test_a_new_network_too(monkeypatch):
    from meristem.recipes.sharding import all_sharded, without_weights

    monkeypatch.setenv("RANK", "1")
    before = resident()
    model = without_weights(lambda: causal_language_model(WIDE, 256, 32, 0))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert all_sharded(model)
    assert resident() - before < 0.1 * size
    with pytest.raises(ms.MeristemError, match="model_type 'nothing' is unknown"):
        without_weights(lambda: causal_language_model({"model_type": "nothing"}, 256, 32, 0))
