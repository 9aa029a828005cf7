"""What a node's result depends on is in its hash, and random streams are independent of each other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small import MODEL, TRAIN, corpus
from test_run import word_tokenizer

import meristem as ms
from meristem.checkpoints import open_model
from meristem.data.token_files import fingerprint_of
from meristem.recipes import node, run
from meristem.recipes.code import WITHOUT_INFLUENCE
from meristem.recipes.nodes import perform
from meristem.recipes.run import plan_jobs
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.tasks.language import causal_language_model
from meristem.streams import Streams, stream


def hashes(content, out):
    recipe = parse_recipe(content)
    return {job.name: job.hash for job in plan_jobs(recipe, out, open_task(recipe.data).fingerprint)}


@pytest.fixture
def checkpoints(tmp_path):
    """Nodes on checkpoints that read data without training on them."""
    for name in "ab":
        causal_language_model(MODEL, 256, 32, 0).save_pretrained(tmp_path / name)
    return {
        "a": {"checkpoint": {"source": str(tmp_path / "a")}},
        "b": {"checkpoint": {"source": str(tmp_path / "b")}},
        "grown": {"grow": {"from": "a", "method": "hypercloning", "width": 2}},
        "learned": {"grow": {"from": "a", "method": "ligo", "hidden_size": 32, "steps": 1}},
        "mixed": {"ensemble": {"from": ["a", "b"]}},
        "tuned": {"train": {**TRAIN, "model": None, "from": "a"}},
    }


def test_another_corpus_is_another_result(checkpoints, tmp_path):
    content = {"data": corpus(tmp_path), "nodes": checkpoints}
    before = hashes(content, tmp_path)
    corpus(tmp_path, lines=2001)
    after = hashes(content, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"learned", "mixed", "tuned"}


def swap(file, old, new):
    """Other contents of the same size and time of change."""
    state = file.stat()
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_contents_of_the_same_size_and_time_are_another_result(checkpoints, tmp_path):
    """A text, a checkpoint and a token file; a text that is only touched is the same."""
    content = {"data": corpus(tmp_path), "nodes": checkpoints}
    before = hashes(content, tmp_path)
    (tmp_path / "text.txt").touch()
    assert hashes(content, tmp_path) == before
    swap(tmp_path / "text.txt", b"7 times 7", b"8 times 7")
    text = hashes(content, tmp_path)
    assert {name for name in before if before[name] != text[name]} == {"learned", "mixed", "tuned"}
    weights = tmp_path / "b" / "model.safetensors"
    swap(weights, weights.read_bytes()[-1:], b"\x01" if weights.read_bytes()[-1:] != b"\x01" else b"\x02")
    assert {name for name in text if text[name] != hashes(content, tmp_path)[name]} == {"b", "mixed"}
    np.save(tmp_path / "tokens.npy", np.arange(3_000_000, dtype=np.uint16) % 100)
    known = fingerprint_of(tmp_path / "tokens.npy")
    swap(tmp_path / "tokens.npy", np.uint16([42, 43]).tobytes(), np.uint16([43, 42]).tobytes())
    assert fingerprint_of(tmp_path / "tokens.npy") != known


def test_another_tokenizer_of_the_same_name_is_another_result(tmp_path):
    words = ["<unk>", "<eos>", "times", "is", "."]
    data = {**corpus(tmp_path), "tokenizer": word_tokenizer(tmp_path / "tokenizer", [*words, *map(str, range(50))])}
    content = {"data": data, "nodes": {"small": {"train": TRAIN}}}
    before = hashes(content, tmp_path)
    word_tokenizer(tmp_path / "tokenizer", [*words, *map(str, range(500))])
    assert hashes(content, tmp_path)["small"] != before["small"]


def test_other_code_is_another_result_and_is_recorded(tmp_path, monkeypatch):
    content = {"data": corpus(tmp_path), "nodes": {"small": {"train": TRAIN}}}
    before = hashes(content, tmp_path)
    done = run(parse_recipe(content), tmp_path)[0]["small"]
    assert done.made_by["revision"] == node.code_revision()
    assert done.made_by["torch"] == torch.__version__
    assert done.hash == before["small"]
    monkeypatch.setattr(node, "code_revision", lambda: "another")
    assert hashes(content, tmp_path)["small"] != before["small"]
    recipe = parse_recipe(content)
    (job,) = plan_jobs(recipe, tmp_path, open_task(recipe.data).fingerprint)
    job.save()
    with pytest.raises(ms.MeristemError, match="another revision of Meristem's code"):
        perform.perform(job.directory)


def test_what_shows_runs_is_no_part_of_a_result():
    root = Path(ms.__file__).parent
    assert [name for name in WITHOUT_INFLUENCE if not (root / name).exists()] == []
    assert {"recipes/pages/", "recipes/training/progress.py"} <= set(WITHOUT_INFLUENCE)


def test_when_it_can_be_resumed_is_no_part_of_a_result(tmp_path):
    content = {"data": corpus(tmp_path), "nodes": {"small": {"train": TRAIN}}}
    before = hashes(content, tmp_path)
    content["nodes"]["small"] = {"train": {**TRAIN, "checkpoint_every": 256, "keep_every": 512}}
    assert hashes(content, tmp_path) == before


def test_streams_are_independent():
    assert stream(0, 1, "weights") != stream(1, 0, "weights")
    assert Streams(0, 1).seed("weights") != Streams(1, 0).seed("weights")
    purposes = [
        Streams(a, b).seed(purpose) for a in range(9) for b in range(9) for purpose in ("weights", "order", "x")
    ]
    assert len(set(purposes)) == len(purposes)
    assert all(0 <= seed < 2**32 for seed in purposes)
    assert Streams(3, 4).seed("order") == Streams(3, 4).seed("order")


def test_replicates_are_no_copies_of_each_other(tmp_path):
    """Node b, with seed 1, of recipe seed 0 is not node a of recipe seed 1."""
    nodes = {"a": {"train": TRAIN}, "b": {"train": {**TRAIN, "seed": 1}}}
    results = run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes, "seeds": [0, 1]}), tmp_path)
    starts = [results[seed][name].curve[0]["eval_loss"] for seed in (0, 1) for name in "ab"]
    assert len(set(starts)) == 4


def test_the_noise_of_a_growth_follows_the_recipes_seed(tmp_path):
    causal_language_model(MODEL, 256, 32, 0).save_pretrained(tmp_path / "a")
    nodes = {
        "a": {"checkpoint": {"source": str(tmp_path / "a")}},
        "grown": {"grow": {"from": "a", "method": "hypercloning", "width": 2, "noise": 0.1}},
        "other": {"grow": {"from": "a", "method": "hypercloning", "width": 2, "noise": 0.1, "seed": 1}},
    }
    run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes, "seeds": [0, 1]}), tmp_path)
    models = [
        open_model(str(next(tmp_path.glob(f"{name}-s{seed}-*/model"))))
        for seed in (0, 1)
        for name in ("grown", "other")
    ]
    weights = [tuple(model.model.layers[0].mlp.up_proj.weight.flatten().tolist()) for model in models]
    assert len(set(weights)) == 4
    again = tmp_path / "again"
    run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes, "seeds": [0]}), again)
    same = open_model(str(next(again.glob("grown-s0-*/model"))))
    assert tuple(same.model.layers[0].mlp.up_proj.weight.flatten().tolist()) == weights[0]


def test_the_job_says_all_that_a_machine_needs(tmp_path):
    recipe = parse_recipe({"data": corpus(tmp_path), "nodes": {"small": {"train": TRAIN}}})
    (job,) = plan_jobs(recipe, tmp_path, open_task(recipe.data).fingerprint)
    job.save()
    assert node.Job.load(job.directory) == job
    assert json.loads((job.directory / "job.json").read_text())["revision"] == node.code_revision()
