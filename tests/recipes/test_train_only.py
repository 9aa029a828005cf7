"""Recipes that train only what has grown, and recipes that average what a constant rate has left."""

from __future__ import annotations

import pytest
import torch
from small import MODEL, TRAIN, corpus

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes.run import directory_of, run
from meristem.recipes.specs.schema import parse_recipe

SHORT = {"tokens": 1280, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}


def places(folder):
    return {place.name.split("-s0-")[0]: place for place in folder.glob("*-s0-*")}


def test_old_entries_stay_through_two_trainings(tmp_path):
    nodes = {
        "small": {"train": TRAIN},
        "grown": {"grow": {"from": "small", "method": "zero_padding", "intermediate_size": 48, "optimizer": "carry"}},
        "new": {"train": {"from": "grown", "train_only": "fresh", "fresh": {"learning_rate": 1e-2, "warmup": 0.2}, **SHORT}},
        "again": {"train": {"from": "new", "train_only": "copied", **SHORT}},
        "all": {"train": {"from": "new", **SHORT}},
    }  # fmt: skip
    results = run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")
    found = places(tmp_path / "out")
    states = {name: open_model(str(place / "model")).state_dict() for name, place in found.items()}
    provenance = ms.provenance(found["again"] / "model")
    assert results[0]["new"].details["entries"] == provenance.counts()
    for name, tensor in states["grown"].items():
        old = provenance.mask(name, "old")
        for node in ("new", "again"):
            assert torch.equal(states[node][name][old], tensor[old]), name
    up = "model.layers.0.mlp.up_proj.weight"
    fresh = provenance.mask(up, "fresh")
    assert not torch.equal(states["new"][up][fresh], states["grown"][up][fresh])
    assert not torch.equal(states["all"][up][~fresh], states["grown"][up][~fresh])
    losses = [point["eval_loss"] for point in results[0]["new"].curve]
    assert losses[-1] < losses[0]


def test_the_last_checkpoints_are_averaged(tmp_path):
    constant = {"schedule": "constant_with_warmup", "warmup": 0.1}
    nodes = {
        "run": {"train": {**TRAIN, "tokens": 2560, "keep_every": 512, **constant}},
        "mean": {"average": {"from": "run", "last": 3}},
    }
    results = run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")
    found = places(tmp_path / "out")
    parts = [found["run"] / "kept/12/model", found["run"] / "kept/16/model", found["run"] / "model"]
    states = [open_model(str(part)).state_dict() for part in parts]
    mean = open_model(str(found["mean"] / "model")).state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(state[name] for state in states) / 3)
    assert results[0]["mean"].details["weights"] == pytest.approx([1 / 3] * 3)
    assert results[0]["mean"].metrics["eval_loss"] < results[0]["run"].curve[0]["eval_loss"]


def test_an_average_follows_the_keep_every_of_its_run(tmp_path):
    """The run itself is the same, and so are the checkpoints that it has kept."""

    def asked(keep_every):
        constant = {"schedule": "constant_with_warmup", "warmup": 0.1}
        nodes = {
            "run": {"train": {**TRAIN, "tokens": 2560, "keep_every": keep_every, **constant}},
            "mean": {"average": {"from": "run", "last": 3}},
        }
        return parse_recipe({"data": corpus(tmp_path), "nodes": nodes})

    first = run(asked(512), tmp_path / "out")[0]
    again = run(asked(1024), tmp_path / "out")[0]
    assert (again["run"].hash, again["run"].seconds) == (first["run"].hash, first["run"].seconds)
    (mean,) = tmp_path.glob(f"out/mean-s0-{again['mean'].hash[:8]}")
    place = places(tmp_path / "out")["run"]
    parts = [open_model(str(part / "model")).state_dict() for part in (place / "kept/8", place / "kept/16", place)]
    for name, tensor in open_model(str(mean / "model")).state_dict().items():
        torch.testing.assert_close(tensor, sum(part[name] for part in parts) / 3)
    with pytest.raises(
        ms.MeristemError, match=r"run \(seed 0\) has kept no checkpoint at step 18, only at \[4, 8, 12, 16\]"
    ):
        run(asked(256), tmp_path / "out")


@pytest.mark.parametrize("node, message", [
    ({"train": {**TRAIN, "train_only": "fresh"}}, "train_only and fresh need `from`"),
    ({"train": {"from": "small", **SHORT, "train_only": "new"}}, "'fresh', 'copied', 'grown' or 'all'"),
    ({"train": {"from": "small", **SHORT, "fresh": {"rate": 1}}}, "unknown key 'rate'"),
    ({"train": {"from": "small", **SHORT, "train_only": "fresh", "majority": {"kernels": 2}}}, "majority and train_only cannot be combined"),
    ({"average": {"from": "small", "last": 3}}, "averages the last 3 checkpoints of 'small', which keeps 0"),
    ({"average": {"from": "small"}}, "`from: NODE` with `last: N`"),
    ({"average": {"from": ["small", "small"]}}, "at least two different nodes"),
])  # fmt: skip
def test_refusals(tmp_path, node, message):
    with pytest.raises(ms.MeristemError) as error:
        parse_recipe({"data": corpus(tmp_path), "nodes": {"small": {"train": TRAIN}, "node": node}})
    assert message in str(error.value)


def test_a_model_that_has_not_grown_says_so(tmp_path):
    """Said when the recipe is read; of a checkpoint, when it is opened."""
    assert MODEL["hidden_size"] == 16
    nodes = {"small": {"train": TRAIN}, "node": {"train": {"from": "small", **SHORT, "train_only": "fresh"}}}
    with pytest.raises(ms.MeristemError, match="no node before it grows one"):
        parse_recipe({"data": corpus(tmp_path), "nodes": nodes})
    results = run(parse_recipe({"data": corpus(tmp_path), "nodes": {"small": nodes["small"]}}), tmp_path / "out")
    nodes["small"] = {"checkpoint": {"source": str(directory_of(tmp_path / "out", results[0]["small"]) / "model")}}
    with pytest.raises(ms.MeristemError, match="no record says which entries of this one are new"):
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")
