"""Inputs by which somebody who knew only the README lost a source, got an empty proof, or saw a traceback."""

from __future__ import annotations

import json
import math

import pico
import pytest
import torch
from command_line import meristem, refused
from transformers import BertModel

import meristem as ms


@pytest.fixture
def small(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def changed(source, out, **tensors):
    """A copy in which these entries of tensors are other numbers: {name: value of the first entry}."""
    model = type(pico.build("llama")).from_pretrained(source)
    with torch.no_grad():
        for name, value in tensors.items():
            model.get_parameter(name).view(-1)[0] = value
    model.save_pretrained(out)
    return out


def widths(directory):
    return json.loads((directory / "config.json").read_text())["hidden_size"]


@pytest.mark.parametrize("verb", ["grow", "shrink", "fuse", "average"])
def test_a_source_whose_files_are_links_into_out_is_not_lost(small, tmp_path, verb):
    links = tmp_path / "links"
    links.mkdir()
    for file in small.iterdir():
        (links / file.name).symlink_to(file)
    before = (small / "model.safetensors").read_bytes()
    more = {"grow": ["--width", 2], "shrink": ["--intermediate-size", 40]}.get(verb, [])
    sources = [links] if verb in ("grow", "shrink") else [links, links]
    refused(meristem(verb, *sources, small, *more, "--overwrite"), "links to, which would be lost")
    assert (small / "model.safetensors").read_bytes() == before


def test_a_target_is_not_replaced_by_what_grows_to_it(small, tmp_path):
    target = tmp_path / "target"
    ms.grow(pico.build("llama"), ms.HyperCloning(width=2)).save_pretrained(target)
    before = (target / "model.safetensors").read_bytes()
    refused(meristem("grow", small, target, "--like", target, "--overwrite"), "is the source", "would be lost")
    assert (target / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("method", ["weight_selection", "prune"])
def test_nothing_is_cut_out_of_weights_that_are_not_finite(small, tmp_path, value, method):
    broken = changed(small, tmp_path / "broken", **{"model.layers.1.mlp.up_proj.weight": value})
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({"input_ids": [[5, 6, 7, 8]]}))
    more = ["--method", "prune", "--inputs", inputs] if method == "prune" else []
    refused(
        meristem("shrink", broken, tmp_path / "out", "--intermediate-size", 24, *more),
        "the network's weights are not finite (NaN or infinite: 1 in model.layers.1.mlp.up_proj.weight)",
    )
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_weights_prove_nothing(small, tmp_path, value):
    infinite = changed(small, tmp_path / "infinite", **{"model.norm.weight": value})
    said = ("not finite", "model.norm.weight")
    refused(meristem("grow", infinite, tmp_path / "big", "--width", 2), *said)
    refused(meristem("fuse", small, infinite, tmp_path / "big"), *said)
    refused(meristem("verify", infinite, infinite), *said)
    assert not (tmp_path / "big").exists()


def test_minus_infinity_for_some_outputs_alone_is_no_fault():
    """As of a class that puts it out for tokens that may not come."""
    from meristem.anatomy.finite import check_finite

    masked = torch.tensor([[0.5, -math.inf], [1.0, -math.inf]])
    check_finite(pico.build("llama"), {"logits": masked})
    for broken in (masked.fill_(math.nan), torch.full((2, 2), -math.inf)):
        with pytest.raises(ms.MeristemError, match="outputs are not finite"):
            check_finite(pico.build("llama"), {"logits": broken})


def test_what_computes_differently_is_not_averaged_without_a_word(small, tmp_path):
    other = tmp_path / "other"
    model = pico.build("llama")
    model.config.rms_norm_eps = 1e-3
    model.save_pretrained(other)
    refused(
        meristem("average", small, other, tmp_path / "mean"), "compute differently", "rms_norm_eps: 1e-06 and 0.001"
    )
    assert meristem("average", small, other, tmp_path / "mean", "--allow-differences").returncode == 0
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["rms_norm_eps"] == 1e-3


def test_a_mean_that_is_not_a_number_is_refused(small, tmp_path):
    broken = changed(small, tmp_path / "nan", **{"model.norm.weight": math.nan})
    refused(meristem("average", small, broken, tmp_path / "mean"), "the mean of model.norm.weight is not finite")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    "ids, words", [([[1, -2, 3]], "index out of range"), ([[1.5, 2.0]], "does not run on these inputs")]
)
def test_tokens_that_are_none_are_one_sentence(tmp_path, ids, words):
    """The network is tied, and its plan is mended by a pass on these inputs."""
    small = tmp_path / "tied"
    pico.build("llama", tie_word_embeddings=True).save_pretrained(small)
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"input_ids": ids}))
    refused(
        meristem("grow", small, tmp_path / "big", "--width", 2, "--inputs", file), "does not run on these inputs", words
    )


def test_bytes_that_are_no_text_are_one_sentence(tmp_path):
    from meristem.data.corpus import first_tokens

    file = tmp_path / "noise.txt"
    file.write_bytes(bytes([0xCD, 0xFF, 0xFE]) * 1000)
    with pytest.raises(ms.MeristemError, match="is not text in UTF-8"):
        first_tokens(str(file), "bytes", 100)


def test_a_target_config_nested_beyond_reading_is_one_sentence(small, tmp_path):
    file = tmp_path / "config.json"
    file.write_text("[" * 100_000)
    refused(meristem("grow", small, tmp_path / "big", "--like", file), "not valid JSON")


def test_nothing_to_fuse_is_one_sentence():
    with pytest.raises(ms.MeristemError, match="at least two networks"):
        ms.fuse([])


@pytest.mark.parametrize("size", ["-5GB", "0GB", "0", "infGB", "nanGB", "five"])
def test_a_shard_size_that_is_none_is_refused_before_anything_is_read(small, tmp_path, size):
    for verb in (["grow", small], ["fuse", small, small], ["average", small, small], ["shrink", small]):
        refused(meristem(*verb, tmp_path / "out", f"--max-shard-size={size}"), "a shard's size is like 5GB")


@pytest.mark.parametrize("pattern", ["nope", "model.norm.weight", "v_head.*"])
def test_a_pattern_that_drops_nothing_is_refused(small, tmp_path, pattern):
    for verb in (["grow", small], ["fuse", small, small]):
        options = ["--width", 2] if verb[0] == "grow" else []
        done = meristem(*verb, tmp_path / "out", *options, "--drop", pattern)
        refused(done, f"--drop {pattern!r} leaves nothing out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["nan,1", "1,nan", "inf,1", "0.5,0.6"])
def test_weights_of_a_fusion_that_are_none_are_named(small, tmp_path, weights):
    refused(
        meristem("fuse", small, small, tmp_path / "out", f"--weights={weights}"), "2 positive numbers that sum to 1"
    )
    with pytest.raises(ms.MeristemError, match="positive numbers that sum to 1"):
        ms.Rebasin(weights=[float(weight) for weight in weights.split(",")]).convex(2)


def edited(small, **entries):
    file = small / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"model_type": 5}, 'model_type is 5, and should be the name of a kind of model, such as "llama"'),
        ({"model_type": ["llama"]}, "model_type is ['llama'], and should be the name"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', and should be a list of names"),
        ({"architectures": [5]}, "architectures is [5], and should be a list of names"),
    ],
)
def test_entries_of_another_kind_are_named(small, tmp_path, entries, words):
    edited(small, **entries)
    refused(meristem("grow", small, tmp_path / "out", "--width", 2), f"config.json: {words}")


def test_places_that_are_none_are_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file/below", "file/below/it"):
        done = meristem("grow", small, tmp_path / out, "--width", 2)
        refused(done, f"would lie in {tmp_path / 'file'}, which is a file")
    refused(meristem("grow", "", tmp_path / "out", "--width", 2), "the name of a model is empty")
    (small / "config.json").unlink()
    (small / "config.json").mkdir()
    refused(
        meristem("grow", small, tmp_path / "out", "--width", 2), "config.json is a directory, and should be the file"
    )


def test_an_interrupt_when_all_is_done_says_so(monkeypatch, capsys):
    from meristem.cli import main, output

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupted)
    for done, words in ((False, "nothing is left half-written. Run the same"), (True, "all was done by then")):
        monkeypatch.setattr(output, "_DONE", [done])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert (left.value.code, words in capsys.readouterr().err) == (130, True)


def test_a_model_without_a_part_that_its_class_may_leave_out(tmp_path):
    """Its files say so: it grows as what it is, and is not completed by a part that nobody trained."""
    model = BertModel(pico.build("bert").config, add_pooling_layer=False).eval()
    pico.randomise(model)
    model.save_pretrained(tmp_path / "small")
    done = meristem("grow", tmp_path / "small", tmp_path / "big", "--width", 2)
    assert done.returncode == 0, done.stderr
    assert "its files fit BertModel(config, add_pooling_layer=False), which it is read as" in done.stderr.replace(
        "\n", " "
    )
    from meristem.checkpoints import open_model

    big = open_model(str(tmp_path / "big"))
    assert big.pooler is None
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours, theirs = (network(input_ids=ids).last_hidden_state for network in (model, big))
    torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, rtol=1e-4, atol=1e-5)
    ms.grow(model, ms.HyperCloning(width=2)).save_pretrained(tmp_path / "by_python")
    assert open_model(str(tmp_path / "by_python")).pooler is None


def test_a_sampled_proof_of_a_fusion_is_refused_by_its_name(small, tmp_path):
    fused = tmp_path / "fused"
    assert meristem("fuse", small, small, fused).returncode == 0
    refused(
        meristem("verify", small, fused, "--sample", 2), "was made by deep_fusion, of which there is no sampled proof"
    )


def test_a_plan_of_a_network_of_images_counts_examples(tmp_path):
    pico.build("vit").save_pretrained(tmp_path / "vit")
    planned = meristem("plan", tmp_path / "vit", "--width", 2, "--tokens", "1M", "--json")
    found = json.loads(planned.stdout)
    assert [route["name"] for route in found["routes"]][1] == "grow, same examples"
    assert found["advice"]["evidence"][0].startswith("hypercloning, of language models: grown at 8, ")


def test_a_plan_leaves_something_to_the_large_network(small):
    """Twice as wide, the layers cost four times as much: 20 million tokens of the small network leave something of 10 million, 100 do not."""
    planned = meristem("plan", small, "--width", 2, "--tokens", "10M", "--small-tokens", "20M")
    assert planned.returncode == 0
    assert "same FLOPs" in planned.stdout
    assert "same tokens" not in planned.stdout
    refused(
        meristem("plan", small, "--width", 2, "--tokens", "10M", "--small-tokens", "100M"),
        "leaves nothing to train it with; fewer than",
    )
