"""An ensemble node on another device (run by `test_ensemble_node.py`): on one that every machine has (`elsewhere`), and on a GPU where there is one."""

from __future__ import annotations

import json

import pytest
import torch
from small import corpus
from test_ensemble_node import DATA, vits

from meristem.recipes import run
from meristem.recipes.nodes import ensemble
from meristem.recipes.specs.schema import parse_recipe

GPU = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")],
)


def on(device, content, out, monkeypatch):
    """The ensemble of this recipe, judged there; and the devices that networks answered on."""
    seen, plain = set(), ensemble._said

    def watched(networks, examples, task):
        seen.update(p.device.type for network in networks.values() for p in network.parameters())
        return plain(networks, examples, task)

    monkeypatch.setattr(ensemble, "_said", watched)
    monkeypatch.setattr(ensemble, "fastest_device", lambda: device)
    for old in out.glob("net-*"):
        old.rename(out / "earlier")
    result = run(parse_recipe(content), out)[0]["net"]
    assert seen == {device.type}
    return result


def text(folder):
    model = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    train = {"model": model, "examples": 64, "batch_size": 8, "learning_rate": 1e-2, "evaluations": 1}
    nodes = {name: {"train": {**train, "seed": seed}} for seed, name in enumerate("ab")}
    return {
        "data": {**corpus(folder), "documents": "within"},
        "nodes": {**nodes, "net": {"ensemble": {"from": ["a", "b"], "examples": 20}}},
    }


def images(folder):
    nodes = vits()
    for name in ("deep", "wide"):
        nodes[name]["train"]["examples"] = 320
    return {"data": DATA, "nodes": nodes}


@pytest.mark.parametrize("content", [text, images])
@pytest.mark.parametrize("place", ["elsewhere", GPU])
def test_it_is_what_it_is_on_the_cpu(place, content, tmp_path, monkeypatch):
    own = content(tmp_path)
    if place == "elsewhere":
        run(parse_recipe({**own, "nodes": {k: v for k, v in own["nodes"].items() if k != "net"}}), tmp_path / "out")
        from elsewhere import DEVICE, Elsewhere

        with Elsewhere():
            there = on(DEVICE, own, tmp_path / "out", monkeypatch)
    else:
        there = on(place, own, tmp_path / "out", monkeypatch)
    monkeypatch.undo()
    here = on(torch.device("cpu"), own, tmp_path / "out", monkeypatch)
    assert there.metrics == pytest.approx(here.metrics, rel=1e-3)
    assert there.flops == here.flops
    for part in ("members", "candidates"):
        assert there.details[part].keys() == here.details[part].keys()
    weights = [[m["weights"] for m in result.details["members"].values()] for result in (there, here)]
    assert weights[0] == pytest.approx(weights[1], rel=1e-2, abs=1e-3)
    assert json.loads((tmp_path / "out" / "earlier" / "node.json").read_text())["metrics"] == there.metrics
