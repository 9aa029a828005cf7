"""The page of a run: every node with its state and costs, links that resolve, curves; nothing from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from small import TRAIN, corpus

import meristem as ms
from meristem.recipes import run
from meristem.recipes.schema import parse_recipe


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
    rows = re.findall(r"<tr><td>(\w+)</td><td>0</td><td><span[^>]*>(\w+)</span>", page)
    assert rows == [("small", "done"), ("grown", "done"), ("big", "done"), ("wild", "failed")]
    assert "diverged" in page
    links = re.findall(r'href="([^"]+)"', page)
    assert links
    assert all((out / link).exists() for link in links)
    assert "http" not in page
    graph, curves = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S))
    assert len(graph.findall("rect")) == 4
    assert len(graph.findall("path")) == 2
    assert len(curves.findall("polyline")) == 2
