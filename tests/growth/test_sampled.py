"""Sampled proofs: some blocks of both networks, and every tensor taken back by its dual maps."""

from __future__ import annotations

import json

import pico
import pytest
import torch
from command_line import here
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import meristem as ms
from meristem.anatomy import Anatomy
from meristem.checkpoints import open_streamed, write_model
from meristem.cli.main import _spelt_out
from meristem.growth.growth import sampled_certificate
from meristem.growth.proofs import sampled

DEEP = {"num_hidden_layers": 6}
METHODS = {
    "clone": ms.HyperCloning(width=2, noise=0.1),
    "odd": ms.LEMON(hidden_size=48, num_attention_heads=6),
    "deep": [ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)],
    "thirds": ms.HyperCloning(width=3, noise=0.2),
}


def deep(family, **more):
    name = "n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers"
    return pico.build(family, **{name: 6}, **more)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "mixtral", "bert"])
@pytest.mark.parametrize("method", ["clone", "thirds"])
def test_some_blocks_prove_what_all_do(family, method):
    growth = ms.Growth.of(deep(family), METHODS[method], sample=3)
    proof = growth.certificate
    assert proof.holds
    assert proof.relative_error <= 1e-5
    (blocks,) = proof.blocks.values()
    assert blocks[0] == 0
    assert blocks[-1] == 5
    assert len(blocks) == 3
    assert "by algebra" in proof.summary()
    assert ms.verify(growth.source, growth.model).holds  # and so does the whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_is_proved_as_it_is_written(method, dtype, tmp_path):
    deep("llama").to(dtype).save_pretrained(tmp_path / "small")
    small = open_streamed(str(tmp_path / "small"))
    growth = ms.Growth.of(small, METHODS[method], sample=4)
    assert growth.certificate.holds
    write_model(growth.model, tmp_path / "big", {"methods": list(growth.methods)})
    plain = ms.Growth.of(small, METHODS[method], verify=False)
    write_model(plain.model, tmp_path / "plain", {})
    assert (tmp_path / "big/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    assert ms.verify(small, open_streamed(str(tmp_path / "big"))).holds


def test_the_networks_compared_are_those_of_the_blocks_alone():
    """With blocks 0 and 5 of a network, what runs is the network of two layers that has their weights."""
    model = deep("llama")
    two = pico.build("llama", num_hidden_layers=2)
    state = model.state_dict()
    two.load_state_dict({n: state[n.replace("layers.1.", "layers.5.")] for n in two.state_dict()})
    tokens = torch.arange(12).view(2, 6)
    found = sampled.only(model, {"model.layers": [0, 5]})(input_ids=tokens, use_cache=False).logits
    assert torch.equal(found, two(input_ids=tokens, use_cache=False).logits)
    assert len(model.state_dict()) == len(state)  # the network itself is as it was


def test_layers_that_are_added_run_where_their_source_does():
    growth = ms.Growth.of(deep("llama"), METHODS["deep"], verify=False)
    grown = sampled.grown_blocks(growth.plans, {"model.layers": [0, 5]})
    assert grown == {
        "model.layers": [n for n, layer in enumerate(growth.plans[1].layers["layers"]) if layer.sources[0][0] in (0, 5)]
    }
    assert len(grown["model.layers"]) == 4


@pytest.mark.parametrize("damage", ["one entry", "a row", "a factor", "two heads exchanged"])
@pytest.mark.parametrize("where", ["model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"])
def test_damage_in_a_block_that_does_not_run_is_found(where, damage, tmp_path, monkeypatch):
    """By the algebra alone: block 3 is not in the sample."""
    deep("llama").save_pretrained(tmp_path / "small")
    small = open_streamed(str(tmp_path / "small"))
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0), verify=False)
    write_model(growth.model, tmp_path / "big", {"methods": list(growth.methods)})
    monkeypatch.setattr(sampled, "ROWS", 1000)  # all of them
    monkeypatch.setattr("meristem.growth.growth.choose_blocks", lambda *_: {"model.layers": [0, 5]})
    arguments = (small, open_streamed(str(tmp_path / "big")), ms.HyperCloning(width=2, noise=0.0), 2)
    assert sampled_certificate(*arguments).holds
    state = load_file(tmp_path / "big/model.safetensors")
    tensor = state[where]
    if damage == "one entry":
        tensor[7, 9] += 0.01
    elif damage == "a row":
        tensor[11] = 0
    elif damage == "a factor":
        tensor *= 1.001
    else:
        tensor[:8], tensor[8:16] = tensor[8:16].clone(), tensor[:8].clone()
    save_file(state, tmp_path / "big/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ms.PreservationError, match=where.replace(".", r"\.")):
        sampled_certificate(*arguments)


def test_a_maker_that_is_wrong_is_stopped_while_it_writes(tmp_path, monkeypatch):
    deep("llama").save_pretrained(tmp_path / "small")
    growth = ms.Growth.of(open_streamed(str(tmp_path / "small")), ms.HyperCloning(width=2, noise=0.0), sample=2)
    from meristem.growth.tensors import pieces

    right = pieces._rows
    monkeypatch.setattr(
        pieces, "_rows", lambda plan, *rest: right(plan, *rest) * (1.01 if "layers.3.mlp.up" in plan.name else 1)
    )
    with pytest.raises(ms.PreservationError, match=r"layers\.3\.mlp\.up_proj\.weight is wrong"):
        write_model(growth.model, tmp_path / "big", {})
    assert not (tmp_path / "big").exists()


def test_the_sample_is_refused_where_it_makes_no_sense(tmp_path):
    with pytest.raises(ms.MeristemError, match="sample must be at least 2; got 1"):
        ms.Growth.of(deep("llama"), METHODS["clone"], sample=1)
    deep("llama").save_pretrained(tmp_path / "small")
    with pytest.raises(ms.MeristemError, match="does not record how"):
        here("verify", tmp_path / "small", tmp_path / "small", "--sample", 2)


def test_the_command_line(tmp_path, capsys):
    deep("llama").save_pretrained(tmp_path / "small")
    small, big = tmp_path / "small", tmp_path / "big"
    assert here("grow", small, big, "--width", 2, "--noise", 0.1, "--sample", 3) == 0
    certificate = json.loads((big / "meristem.json").read_text())["certificate"]
    assert certificate["holds"]
    assert len(certificate["blocks"]["model.layers"]) == 3
    assert here("verify", small, big, "--sample", 2) == 0
    assert _spelt_out(["grow", "a", "b", "--verify", "sample=4"]) == ["grow", "a", "b", "--sample", "4"]
    assert _spelt_out(["grow", "--verify=sample=4", "a"]) == ["grow", "--sample", "4", "a"]
    assert _spelt_out(["grow", "--verify", "a", "sample=4"]) == ["grow", "--verify", "a", "sample=4"]
    for count in ("x", "", "-4", "2.5"):
        with pytest.raises(ms.MeristemError, match=f"--verify sample={count}: '{count}' is not a number of blocks"):
            _spelt_out(["grow", "a", "b", "--verify", f"sample={count}"])


def test_a_weight_whose_maps_cannot_be_undone_is_left_out():
    growth = ms.Growth.of(deep("llama"), ms.ShrinkZeroPadPerturb(hidden_size=48, num_attention_heads=6), verify=False)
    assert not any(sampled.checkable(p) for p in growth.plans[0].tensors.values() if len(p.maps) > 1)


def other_activation(layer):
    layer.mlp.act_fn = torch.nn.ReLU()


def hooked(layer):
    layer.mlp.register_forward_hook(lambda _, __, output: output * output.shape[-1] ** 0.5)


def own_forward(layer):
    usual = layer.mlp.forward
    layer.mlp.forward = lambda x: usual(x) * x.shape[-1] ** 0.5


def other_scaling(layer):
    layer.self_attn.scaling = 1.0


def other_epsilon(layer):
    layer.input_layernorm.variance_epsilon = 0.5


@pytest.mark.parametrize("change", [other_activation, hooked, own_forward, other_scaling, other_epsilon])
@pytest.mark.parametrize("layer", [2, 3])
def test_a_block_that_is_built_otherwise_runs(change, layer):
    """Each change is of one block; a sample of the first and the last does not hold it by itself."""
    small = deep("llama")
    change(small.model.layers[layer])
    kept = sampled.choose_blocks(small, Anatomy.of(small), 2)
    assert kept == {"model.layers": [0, layer, 5]}
    if change in (hooked, own_forward):  # which depend on the width
        with pytest.raises(ms.PreservationError):
            ms.Growth.of(small, ms.HyperCloning(width=2), sample=2)


def test_blocks_that_count_themselves_are_one_kind_and_each_seed_chooses_others():
    small = pico.build("llama", num_hidden_layers=12)
    anatomy = Anatomy.of(small)
    chosen = {tuple(sampled.choose_blocks(small, anatomy, 4, seed)["model.layers"]) for seed in range(8)}
    assert all(len(blocks) == 4 and {0, 11} <= set(blocks) for blocks in chosen)
    assert len(chosen) > 4
    by_seed = [ms.Growth.of(small, ms.HyperCloning(width=2, seed=s), sample=4).certificate.blocks for s in (1, 2)]
    assert by_seed[0] != by_seed[1]


def test_a_sample_holds_each_kind_of_block():
    """Of a Qwen3 mixture whose fourth block alone is dense."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        mlp_only_layers=[3],
    )
    small = Qwen3MoeForCausalLM(config)
    assert sampled.choose_blocks(small, Anatomy.of(small), 2)["model.layers"] == [0, 3, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_of_the_large_network_that_is_none_is_found(value, tmp_path):
    deep("llama").save_pretrained(tmp_path / "small")
    small = open_streamed(str(tmp_path / "small"))
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0), verify=False)
    write_model(growth.model, tmp_path / "big", {"methods": list(growth.methods)})
    state = load_file(tmp_path / "big/model.safetensors")
    state["model.layers.3.mlp.down_proj.weight"][1, 1] = value
    save_file(state, tmp_path / "big/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ms.MeristemError, match=r"1 in model\.layers\.3\.mlp\.down_proj\.weight"):
        sampled_certificate(small, open_streamed(str(tmp_path / "big")), ms.HyperCloning(width=2, noise=0.0), 2)


def test_the_certificate_of_a_sample_says_that_its_inputs_are_random():
    proof = ms.Growth.of(deep("llama"), ms.HyperCloning(width=2), sample=2).certificate
    assert proof.inputs == "random: input_ids (2, 24)"
