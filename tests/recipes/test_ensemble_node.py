"""An ensemble node: AdaNet chooses among networks of other nodes, and mixes what they say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_tasks import BERT, SIZES, corpus_file, data_of  # noqa: F401

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes import run
from meristem.recipes.executors import build_executor
from meristem.recipes.nodes import ensemble
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task

VIT = {"model_type": "vit", "patch_size": 4, **SIZES}


def vits(**changes):
    train = {"batch_size": 16, "learning_rate": 3e-3, "evaluations": 1}
    return {
        "short": {"train": {"model": VIT, "examples": 160, **train}},
        "deep": {"train": {"model": {**VIT, "num_hidden_layers": 2}, "examples": 3200, **train}},
        "wide": {"train": {"model": {**VIT, "hidden_size": 32}, "examples": 3200, **train, "seed": 1}},
        "net": {"ensemble": {"from": ["short", "deep", "wide"], "examples": 200, **changes}},
    }


DATA = {"task": "image-classification", "source": "digits"}


def test_the_mixture_is_better_than_its_members_and_says_what_it_is(tmp_path):
    recipe = parse_recipe({"data": DATA, "nodes": vits()})
    done = run(recipe, tmp_path)[0]
    net = done["net"]
    content = json.loads((next(tmp_path.glob("net-*")) / "ensemble.json").read_text())
    assert content["candidates"]["short-s0-" + done["short"].hash[:8]]["complexity"] == 1
    assert content["candidates"]["deep-s0-" + done["deep"].hash[:8]]["complexity"] == pytest.approx(2**0.5)
    assert net.metrics["eval_loss"] < min(c["eval_loss"] for c in content["candidates"].values())
    for name in ("short", "deep", "wide"):
        own = content["candidates"][f"{name}-s0-{done[name].hash[:8]}"]
        assert own["eval_loss"] == pytest.approx(done[name].metrics["eval_loss"], rel=1e-4)
        assert own["eval_accuracy"] == pytest.approx(done[name].metrics["eval_accuracy"])
    scores = [record["score"] for record in content["rounds"]]
    assert scores == sorted(scores, reverse=True)

    images = open_task(recipe.data).evaluation_set()  # what the weights say, by hand
    x, y = (torch.stack([images[i][key] for i in range(len(images))]) for key in ("pixel_values", "labels"))
    with torch.no_grad():
        logits = sum(
            member["weights"] * open_model(member["model"]).eval()(x).logits for member in content["members"].values()
        )
    assert float(torch.nn.functional.cross_entropy(logits, y)) == pytest.approx(net.metrics["eval_loss"], rel=1e-4)
    assert net.parameters <= sum(done[name].parameters for name in ("short", "deep", "wide"))


def test_a_price_leaves_members_out_and_candidates_train_on_any_executor(tmp_path):
    free = run(parse_recipe({"data": DATA, "nodes": vits(mixture="vector")}), tmp_path / "a")[0]["net"]
    dear = vits(mixture="vector", adanet_lambda=0.2, complexities=[0, 0, 9])
    executor = build_executor("local", {"slots": 2})
    priced = run(parse_recipe({"data": DATA, "nodes": dear}), tmp_path / "b", executor=executor)[0]["net"]
    assert len(free.details["members"]) == 3
    assert not any(
        name.startswith("wide") and any(weights["weights"]) for name, weights in priced.details["members"].items()
    )
    assert free.details["candidates"].keys() == priced.details["candidates"].keys()


@pytest.mark.parametrize("task, model", [
    ("causal-lm", {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}),
    ("masked-lm", BERT),
])  # fmt: skip
def test_text(task, model, corpus_file, tmp_path):  # noqa: F811
    train = {"model": model, "examples": 400, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 1}
    nodes = {name: {"train": {**train, "seed": seed}} for seed, name in enumerate("ab")}
    nodes["net"] = {"ensemble": {"from": ["a", "b"], "examples": 16, "mixture": "mean"}}
    done = run(parse_recipe({"data": data_of(task, corpus_file), "nodes": nodes}), tmp_path)[0]
    own = list(done["net"].details["candidates"].values())
    assert [c["eval_loss"] for c in own] == pytest.approx([done[n].metrics["eval_loss"] for n in "ab"], rel=1e-3)
    assert done["net"].metrics["eval_loss"] < max(c["eval_loss"] for c in own)
    assert done["net"].tokens == 16 * 32


def test_of_a_large_vocabulary_a_random_choice_of_positions_judges(corpus_file, tmp_path, monkeypatch):  # noqa: F811
    """As many logits as memory allows, from every batch, the same again for the same seed; metrics are of all held-out positions."""
    model = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    train = {"model": model, "examples": 80, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 1}
    nodes = {name: {"train": {**train, "seed": seed}} for seed, name in enumerate("ab")}
    nodes["net"] = {"ensemble": {"from": ["a", "b"], "examples": 40}}
    content = {"data": data_of("causal-lm", corpus_file), "nodes": nodes}
    seen, plain = [], ensemble.EnsembleSearch

    def watched(propose, data, **options):
        seen.append(data[0][1])
        return plain(propose, data, **options)

    monkeypatch.setattr(ensemble, "EnsembleSearch", watched)
    whole = run(parse_recipe(content), tmp_path / "a")[0]["net"]
    monkeypatch.setattr(ensemble, "MOST_LOGITS", 2 * 256 * 31 * 20)  # half of them
    some, again = (run(parse_recipe(content), tmp_path / out)[0]["net"] for out in "bc")
    assert [len(targets) for targets in seen] == [40 * 31, 20 * 31, 20 * 31]
    assert torch.equal(seen[1], seen[2])
    assert some.details["rounds"] == again.details["rounds"]
    for name, own in whole.details["candidates"].items():
        assert own["eval_loss"] == pytest.approx(some.details["candidates"][name]["eval_loss"])
    assert some.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=0.02)
    assert some.examples == 40


def elsewhere(mark):
    suite = Path(__file__).with_name("ensemble_device_suite.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, str(suite)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=suite.parents[2])
    assert done.returncode == 0, done.stdout[-4000:]


def test_on_a_device_that_every_machine_has():
    elsewhere("not gpu")


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    elsewhere("gpu")


def test_bad_recipes():
    def refused(words, **nodes):
        with pytest.raises(ms.MeristemError, match=words):
            parse_recipe({"data": DATA, "nodes": {**vits(), **nodes}})

    refused("different members", net={"ensemble": {"from": ["deep", "deep"]}})
    refused("1 complexities for 2", net={"ensemble": {"from": ["deep", "wide"], "complexities": [1]}})
    refused("leaves no single network", more={"train": {"from": "net", "examples": 1, "learning_rate": 1}})
    with pytest.raises(ms.MeristemError, match="only train nodes have a loss curve"):
        parse_recipe({"data": DATA, "nodes": vits(), "race": {"challenger": "net", "baseline": "deep"}})
