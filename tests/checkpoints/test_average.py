"""Checkpoints averaged: tensor by tensor, the numbers that their shape of decay says, and nothing but checkpoints of one network."""

from __future__ import annotations

import copy
import json
import math

import pico
import pytest
import torch
import transformers
from command_line import meristem

import meristem as ms
from meristem.checkpoints.average import average, likeness, shares
from meristem.checkpoints.record import keep_provenance


@pytest.fixture
def run(tmp_path):
    """Three checkpoints of one network, tied, in bfloat16."""
    models = [pico.build("llama", seed=seed, tie_word_embeddings=True).bfloat16() for seed in range(3)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    return tmp_path, models


def test_shapes_of_decay_are_weights():
    assert shares(4) == [0.25] * 4
    assert shares(4, "1-sqrt") == pytest.approx([math.sqrt(i + 1) / 2 - math.sqrt(i) / 2 for i in range(4)])
    assert shares(2, "cosine") == pytest.approx([0.5, 0.5])
    assert shares(3, [1, 1, 2]) == [0.25, 0.25, 0.5]
    assert all(sum(shares(7, shape)) == pytest.approx(1) for shape in ("mean", "1-sqrt", "cosine"))


def test_an_average_of_constant_steps_is_a_decayed_run():
    """WSM's identity: theta_j = j steps of one length each; a mean of k of them has made the steps behind the oldest by (k - 1) / 2."""
    steps = [float(number) for number in range(5, 11)]
    for shape in ("mean", "1-sqrt", "cosine"):
        parts = shares(6, shape)
        mean = sum(part * step for part, step in zip(parts, steps, strict=True))
        decayed = steps[0] + sum(sum(parts[number:]) for number in range(1, 6))
        assert mean == pytest.approx(decayed)


def test_the_command_line_averages(run):
    folder, models = run
    done = meristem("average", *(folder / str(number) for number in range(3)), folder / "mean", "--weights", "1,1,2")
    assert done.returncode == 0, done.stderr
    assert "weights 0.25, 0.25, 0.5" in done.stdout
    mean, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "mean", output_loading_info=True)
    assert not info["missing_keys"]
    states = [model.state_dict() for model in models]
    for name, tensor in mean.state_dict().items():
        wide = [state[name].float() for state in states]
        assert torch.equal(tensor, (wide[0] / 4 + wide[1] / 4 + wide[2] / 2).bfloat16()), name
    record = json.loads((folder / "mean/meristem.json").read_text())
    assert record["methods"] == [{"method": "average", "weights": [0.25, 0.25, 0.5]}]
    assert len({source["sha256"] for source in record["sources"]}) == 3


def test_experts_are_averaged_in_their_layout_on_disk(tmp_path):
    for seed in range(2):
        pico.build("mixtral", seed=seed).save_pretrained(tmp_path / str(seed))
    ms.average([str(tmp_path / "0"), str(tmp_path / "1")], tmp_path / "mean")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mean").state_dict()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    a, b = (pico.build("mixtral", seed=seed).state_dict()[name] for seed in range(2))
    assert torch.equal(found[name], 0.5 * a + 0.5 * b)


def test_what_a_growth_has_added_is_known_of_the_mean(tmp_path):
    """Checkpoints of one grown network: what was old of each is old of their mean, and only the rest trains."""
    growth = ms.Growth.of(pico.build("llama"), ms.GrowDontOverwrite())
    places = [tmp_path / str(number) for number in range(3)]
    for place in places[:2]:
        growth.model.save_pretrained(place)
        keep_provenance(place, growth.provenance)
    average([str(place) for place in places[:2]], tmp_path / "mean")
    found = ms.provenance(tmp_path / "mean")
    assert found.counts() == growth.provenance.counts()
    assert torch.equal(*(p.labels("model.layers.1.mlp.up_proj.weight") for p in (found, growth.provenance)))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "mean")
    assert ms.freeze_old(model, found).moving == growth.provenance.counts()["copied"]
    growth.model.save_pretrained(places[2])
    average([str(places[0]), str(places[2])], tmp_path / "other")  # one of them says nothing
    with pytest.raises(ms.MeristemError, match="records no provenance"):
        ms.provenance(tmp_path / "other")


def test_refusals(run):
    folder, _ = run
    pico.build("llama", intermediate_size=60).save_pretrained(folder / "wider")
    pico.build("qwen2").save_pretrained(folder / "other")
    first = str(folder / "0")
    with pytest.raises(ms.MeristemError, match=r"gate_proj.weight is \(44, 32\) in one .* and \(60, 32\) in the last"):
        ms.average([first, str(folder / "wider")], folder / "out")
    with pytest.raises(ms.MeristemError, match="a LlamaForCausalLM and a Qwen2ForCausalLM cannot be averaged"):
        ms.average([first, str(folder / "other")], folder / "out")
    with pytest.raises(ms.MeristemError, match="3 weights for 2 checkpoints"):
        ms.average([first, first], folder / "out", [1, 2, 3])
    with pytest.raises(ms.MeristemError, match="at least two"):
        ms.average([first], folder / "out")
    with pytest.raises(ms.MeristemError, match="unknown weights 'sqrt'"):
        ms.average([first, first], folder / "out", "sqrt")
    assert not (folder / "out").exists()
    done = meristem("average", first, folder / "1", folder / "out", "--weights", "0.5;0.5")
    assert done.returncode == 2
    assert "numbers such as 0.3,0.7" in done.stderr


def test_networks_of_two_runs_are_told_from_checkpoints_of_one(run, tmp_path, recwarn):
    folder, models = run
    later = copy.deepcopy(models[0]).float()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in later.parameters():
            weight += 0.5 * weight.std() * torch.randn_like(weight)
    later.bfloat16().save_pretrained(folder / "later")
    average([str(folder / "0"), str(folder / "later")], tmp_path / "near")
    assert not [warning for warning in recwarn if "one run" in str(warning.message)]
    with pytest.warns(
        UserWarning, match=r"do not look like checkpoints of one run: the cosine between their weights is 0\.0\d"
    ):
        average([str(folder / "0"), str(folder / "1")], tmp_path / "far")


def test_likeness_is_the_cosine_of_the_middle_matrix():
    """A quarter of the weights' power in noise of its own: a cosine of 1 / sqrt(1.25)."""
    first, second = pico.build("llama", seed=0), pico.build("llama", seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in second.parameters():
            weight += 0.5 * weight.std() * torch.randn_like(weight)
    assert likeness(first, first) == pytest.approx(1.0)
    assert likeness(first, second) == pytest.approx(1 / math.sqrt(1.25), abs=0.02)
