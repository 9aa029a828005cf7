"""Models that look alike and are not: heads, labels, tokens that a network itself looks for. And files that are."""

from __future__ import annotations

import json

import pico
import pytest
import torch
from command_line import meristem, refused
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, EsmConfig, EsmForMaskedLM, LlamaForCausalLM


@pytest.fixture
def small(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def copy_with(source, out, name="model.safetensors", **tensors):
    """A copy of a model directory with other or further tensors."""
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    save_file(load_file(source / name) | tensors, out / name, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("tied_last", [True, False])
def test_the_mean_of_a_tied_and_an_untied_network_has_both_heads(tmp_path, tied_last):
    torch.manual_seed(0)
    config = pico.build("llama").config
    models = {}
    for tied in (False, True):
        config.tie_word_embeddings = tied
        models[tied] = LlamaForCausalLM(config)
        models[tied].save_pretrained(tmp_path / str(tied))
    order = [tmp_path / str(tied) for tied in ((False, True) if tied_last else (True, False))]
    assert meristem("average", *order, tmp_path / "out").returncode == 0
    out = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    heads = [models[tied].lm_head.weight for tied in (False, True)]
    torch.testing.assert_close(out.lm_head.weight, (heads[0] + heads[1]) / 2)
    tokens = [models[tied].model.embed_tokens.weight for tied in (False, True)]
    torch.testing.assert_close(out.model.embed_tokens.weight, (tokens[0] + tokens[1]) / 2)


@pytest.mark.parametrize("verb", ["average", "fuse"])
@pytest.mark.parametrize(("entry", "value"), [("token_dropout", False), ("mask_token_id", 20)])
def test_what_a_protein_model_does_with_masks_counts(tmp_path, verb, entry, value):
    sizes = {
        "vocab_size": 33,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    for name, more in (("a", {}), ("b", {entry: value})):
        given = {"token_dropout": True, "mask_token_id": 32, "pad_token_id": 1, **more}
        EsmForMaskedLM(EsmConfig(**sizes, **given, max_position_embeddings=40)).save_pretrained(tmp_path / name)
    refused(meristem(verb, tmp_path / "a", tmp_path / "b", tmp_path / "out"), f"{entry}: ", str(value))


@pytest.mark.parametrize("verb", ["average", "fuse"])
def test_labels_in_another_order_are_other_labels(tmp_path, verb):
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    for name, labels in (("a", ["neg", "pos"]), ("b", ["pos", "neg"]), ("c", None)):
        named = {"id2label": dict(enumerate(labels))} if labels else {}
        BertForSequenceClassification(BertConfig(**sizes, **named)).save_pretrained(tmp_path / name)
    refused(meristem(verb, tmp_path / "a", tmp_path / "b", tmp_path / "out"), "id2label.0: 'neg' and 'pos'")
    assert meristem(verb, tmp_path / "a", tmp_path / "c", tmp_path / "out").returncode == 0  # LABEL_0 says nothing


def test_other_end_tokens_of_language_models_are_no_difference(small, tmp_path):
    """A base model and its chat model: nothing that a Llama computes depends on the token."""
    other = copy_with(small, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    assert meristem("average", small, other, tmp_path / "out").returncode == 0


@pytest.mark.parametrize("verb", ["grow", "fuse"])
def test_a_learned_tensor_is_not_taken_for_a_mask_by_its_shape(small, tmp_path, verb):
    more = copy_with(small, tmp_path / "more", **{"adapter.conv.weight": torch.ones(1, 1, 3, 3)})
    out = tmp_path / "out"
    arguments = [more, out, "--width", 2] if verb == "grow" else [more, more, out]
    refused(meristem(verb, *arguments), "adapter.conv.weight")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_named(small, tmp_path, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = load_file(small / "model.safetensors")[name].to(dtype)
    whole = copy_with(small, tmp_path / "whole", **{name: tensor})
    said = str(dtype).removeprefix("torch.")
    refused(meristem("grow", whole, tmp_path / "out", "--width", 2), f"{name} as {said}")


@pytest.mark.parametrize("verb", ["grow", "fuse", "verify", "average", "shrink"])
def test_a_weight_that_no_example_meets_has_to_be_a_number_too(small, tmp_path, verb):
    name = "model.embed_tokens.weight"
    tensor = load_file(small / "model.safetensors")[name]
    tensor[0, 0] = float("inf") if verb == "average" else float("nan")
    bad, out = copy_with(small, tmp_path / "bad", **{name: tensor}), tmp_path / "out"
    arguments = {
        "grow": [bad, out, "--width", 2],
        "shrink": [bad, out, "--intermediate-size", 40],
        "verify": [bad, bad],
        "fuse": [bad, bad, out],
        "average": [bad, small, out],
    }[verb]
    refused(meristem(verb, *arguments), "finite", name)
    assert not out.exists()


def test_a_directory_of_that_name_is_somebodys(small, tmp_path):
    own = tmp_path / ".out.partial"
    copy_with(small, own)
    before = (own / "model.safetensors").read_bytes()
    assert meristem("grow", small, tmp_path / "out", "--width", 2).returncode == 0
    assert (own / "model.safetensors").read_bytes() == before


def test_links_in_folders_of_the_source_count(small, tmp_path):
    source, base = copy_with(small, tmp_path / "source"), copy_with(small, tmp_path / "base")
    (source / "tok").mkdir()
    (source / "tok" / "g.json").symlink_to(base / "generation_config.json")
    refused(meristem("grow", source, base, "--width", 2, "--overwrite"), "tok/g.json", "links to")


def test_a_template_may_be_the_users(small, tmp_path):
    out = copy_with(small, tmp_path / "out")
    (out / "chat_template.jinja").write_text("{{ messages }}")
    refused(meristem("grow", small, out, "--width", 2, "--overwrite"), "has no record of and which may be yours")
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
