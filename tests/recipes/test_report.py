"""The page of a run: every node with its state and costs, links that resolve, curves; nothing from elsewhere."""

from __future__ import annotations

import json
import re
import time
from xml.etree import ElementTree

import pytest
from small import TRAIN, corpus
from transformers import TrainerCallback

import meristem as ms
from meristem.recipes import run, status
from meristem.recipes.node import Job, load_result
from meristem.recipes.pages import watch
from meristem.recipes.specs.schema import parse_recipe


def test_the_page_of_a_run(tmp_path):
    nodes = {
        "small": {"train": TRAIN},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2}},
        "big": {"train": {**TRAIN, "model": None, "from": "grown"}},
        "wild": {
            "train": {**TRAIN, "learning_rate": 1e18, "warmup": 0.0, "trainer": {"optim": "sgd", "max_grad_norm": 0}}
        },
    }
    out = tmp_path / "out"
    with pytest.raises(ms.MeristemError, match="1 of 4 nodes did not finish"):
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), out)
    page = (out / "report.html").read_text()
    rows = re.findall(r"<tr[^>]*><td>(\w+)</td><td>0</td><td><span[^>]*>(\w+)</span>", page)
    assert rows == [("small", "done"), ("grown", "done"), ("big", "done"), ("wild", "failed")]
    assert "diverged" in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert links
    assert all((out / link).exists() for link in links)
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert len(anchors) == 4
    assert all(f'id="{anchor}"' in page for anchor in anchors)
    assert "http" not in page
    graph, whole, curves = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S))
    assert len(graph.findall("a/rect")) == 4
    assert len(graph.findall("path")) == 2
    assert len(curves.findall("polyline")) == 2
    results = {job.name: load_result(job.directory) for job in map(Job.load, out.glob("*-s0-*"))}
    small, big = results["small"], results["big"]
    assert f">{(small.flops + big.flops) / 1e12:.3f}</td>" in page
    ends = [line.get("points").split()[-1].split(",")[0] for line in whole.findall("polyline")]
    assert float(ends[1]) == pytest.approx(640, abs=0.1)  # the one that has spent most
    assert float(ends[0]) == pytest.approx(60 + 580 * small.flops / (small.flops + big.flops), abs=0.1)
    said = [title.text for title in curves.findall("circle/title")]
    assert f"big (seed 0), step 10: {big.metrics['eval_loss']:.4f}" in said


class Look(TrainerCallback):
    """What the page says while a node runs."""

    def __init__(self, out):
        self.out, self.pages = out, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (3, 8):
            time.sleep(0.4)
            self.pages.append((self.out / "report.html").read_text())


def test_the_page_follows_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(status, "EVERY_SECONDS", 0.0)
    nodes = {"small": {"train": TRAIN}, "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2}}}
    look = Look(tmp_path / "out")
    run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), look.out, callbacks=[look], watch=True)
    assert f"watch {(look.out / 'report.html').as_uri()}" in capsys.readouterr().err
    for page, step, points in zip(look.pages, (3, 8), (0, 2), strict=True):
        assert f"train, step {step} of 10" in page
        assert "grow, waiting" in page
        assert 'http-equiv="refresh"' in page
        assert page.count("<circle") == 2 * points  # in both pictures
    last = (look.out / "report.html").read_text()
    assert 'http-equiv="refresh"' not in last
    assert "grow, done" in last


def test_the_page_names_what_was_tuned(tmp_path):
    tune = {"learning_rate": [1e-3, 4e-3], "on": {"seeds": [100]}}
    train = {**TRAIN, "tune": tune}
    train.pop("learning_rate")
    out = tmp_path / "out"
    run(parse_recipe({"data": corpus(tmp_path), "nodes": {"small": {"train": train}}}), out)
    chosen = json.loads((out / "tuning" / "small.json").read_text())
    page = (out / "report.html").read_text()
    for trial in chosen["trials"]:
        said = f"learning_rate {trial['numbers']['learning_rate']:g}: {trial['losses'][0]:.4f}"
        assert (f"<b>{said}</b>" if trial["numbers"] == chosen["chosen"] else f"<span>{said}</span>") in page
