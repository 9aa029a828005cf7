"""What lies beside the weights comes along from every kind of source, by every command, or is named."""

from __future__ import annotations

import json

import pico
import pytest
import torch.distributed.checkpoint as dcp
from hostile import invoke

import meristem as ms
from meristem.checkpoints import open_model
from meristem.checkpoints.distributed import open_distributed
from meristem.checkpoints.vocabularies import tokens_of


@pytest.fixture
def pair(tmp_path):
    """Two models of one family, with tokenizers of their own and a run's remains."""
    for name, seed in (("one", 0), ("other", 1)):
        pico.build("llama", seed).save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(f'"{name}"')
        (tmp_path / name / "LICENSE").write_text("the same")
        (tmp_path / name / "optimizer.bin").write_text("of the run")
    return tmp_path / "one", tmp_path / "other"


def test_a_distributed_checkpoint_keeps_its_tokenizer(tmp_path):
    source, out = tmp_path / "small", tmp_path / "big"
    small = pico.build("llama")
    dcp.save({"model": small.state_dict()}, checkpoint_id=source, no_dist=True)
    small.config.architectures = ["LlamaForCausalLM"]
    small.config.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    (source / "templates").mkdir()
    (source / "templates" / "a.jinja").write_text("a")
    (source / "evil.py").write_text("raise SystemExit")
    code, said = invoke(["grow", str(source), str(out), "--width", "2"])
    assert code == 0, said
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "templates" / "a.jinja").read_text() == "a"
    assert "not copied from" in said
    assert ": evil.py\n" in said
    assert ms.verify(small, open_distributed(str(out))[0]).holds


@pytest.mark.parametrize("verb, first, last", [("fuse", "one", "other"), ("average", "other", "one")])
def test_of_several_sources_it_is_said_whose_files_are_taken(pair, tmp_path, verb, first, last):
    code, said = invoke([verb, *map(str, pair), str(tmp_path / "out")])
    assert code == 0, said
    assert f"{tmp_path / last} and {tmp_path / first} differ in tokenizer.json; the latter's are copied" in said
    assert (tmp_path / "out" / "tokenizer.json").read_text() == f'"{first}"'
    assert f"not copied from {tmp_path / first}, since not part of the new model: optimizer.bin" in said


def test_a_sampled_proof_of_models_by_their_hub_names(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, said = invoke(["grow", str(pair[0]), str(tmp_path / "out"), "--width", "2"])
    assert code == 0, said
    for name, folder in (("small", pair[0]), ("big", tmp_path / "out")):
        place = tmp_path / "hub" / f"models--acme--{name}"
        (place / "snapshots").mkdir(parents=True)
        folder.rename(place / "snapshots" / ("a" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("a" * 40)
    code, said = invoke(["verify", "acme/small", "acme/big", "--sample", "2"])
    assert code == 0, said
    assert ms.verify(open_model("acme/small"), open_model("acme/big")).holds


def vocabulary(directory, tokens) -> None:
    rules = {"model": {"vocab": {token: number for number, token in enumerate(tokens)}}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(rules))


@pytest.mark.parametrize("verb, made", [("fuse", "fused"), ("average", "averaged")])
def test_ids_that_stand_for_other_tokens_stop_it(pair, tmp_path, verb, made):
    for directory, tokens in zip(pair, (["a", "b", "c", "d"], ["a", "c", "b", "d", "e"]), strict=True):
        vocabulary(directory, tokens)
    code, said = invoke([verb, *map(str, pair), str(tmp_path / "out")])
    assert code == 2
    assert "give the same ids to different tokens: 1 is 'b' and 'c', and 2 of 4 differ; " + made in said
    assert not (tmp_path / "out").exists()
    code, said = invoke([verb, *map(str, pair), str(tmp_path / "out"), "--allow-differences"])
    assert code == 0, said
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_tokens_by_the_files_of_any_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": [["<unk>", 0.0], ["x", -1.5]]}, "added_tokens": [{"id": 2, "content": "<end>"}]})
    )
    assert tokens_of(tmp_path) == {0: "<unk>", 1: "x", 2: "<end>"}
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"x": 1, "y": 0}')
    assert tokens_of(tmp_path) == {0: "y", 1: "x"}
    (tmp_path / "vocab.json").rename(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\nword\n")
    assert tokens_of(tmp_path) == {0: "[PAD]", 1: "word"}


def test_a_card_that_is_replaced_is_named(pair, tmp_path):
    (pair[0] / "README.md").write_text("---\nlicense: mit\n---\nWhat it was trained on.")
    code, said = invoke(["grow", str(pair[0]), str(tmp_path / "out"), "--width", "2"])
    assert code == 0, said
    assert f"README.md of {pair[0]} is not copied: the result has a model card of its own" in said
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    code, said = invoke(["grow", str(tmp_path / "out"), str(tmp_path / "more"), "--width", "2"])
    assert code == 0, said
    assert "README.md" not in said  # Meristem's own, as it wrote it
    with (tmp_path / "out" / "README.md").open("a") as card:
        card.write("\nWhat I found out.")
    assert "README.md of" in invoke(["grow", str(tmp_path / "out"), str(tmp_path / "again"), "--width", "2"])[1]


@pytest.mark.parametrize("trusted", [False, True])
def test_files_name_no_code_that_is_not_copied(pair, tmp_path, trusted):
    source = pair[0]
    (source / "tokenization_x.py").write_text("class Own: pass\n")
    code = {"AutoTokenizer": ["tokenization_x.Own", None], "AutoProcessor": "acme/repo--processing.Own"}
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": code}))
    (source / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "absent.Own"}, "size": 4}')
    (source / "broken_config.json").write_text("{")
    code, said = invoke(
        ["grow", str(source), str(tmp_path / "out"), "--width", "2", *["--trust-remote-code"] * trusted]
    )
    assert code == 0, said
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["auto_map"]
    own = {"AutoTokenizer": ["tokenization_x.Own", None]} if trusted else {}
    assert named == {**own, "AutoProcessor": "acme/repo--processing.Own"}
    assert (tmp_path / "out" / "tokenization_x.py").exists() == trusted
    assert ("--trust-remote-code copies them all" in said) != trusted
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == {"size": 4}
    assert (tmp_path / "out" / "broken_config.json").read_text() == "{"
