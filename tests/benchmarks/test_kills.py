"""A recipe of the page, killed at random moments, ends with the same bytes; and what it is compared by sees a change."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kills import ROOT, digest
from support.small_recipes import published, small

from meristem.recipes.specs.schema import parse_recipe


@pytest.mark.parametrize("processes", [1, 2])
def test_every_recipe_of_the_page_has_a_small_one(processes):
    found = published()
    assert len(found) > 8
    for content in found.values():
        recipe = parse_recipe(small(content, processes))
        assert list(recipe.nodes) == list(content["nodes"])
        steps = [node.train.steps(32) for node in recipe.nodes.values() if node.train]
        assert max(steps) <= 16


def test_what_runs_are_compared_by(tmp_path):
    node = tmp_path / "out" / "a-s0-1234"
    (node / "model").mkdir(parents=True)
    (node / "model" / "model.safetensors").write_bytes(b"weights")
    (node / "node.json").write_text(json.dumps({"seconds": 1.0, "flops": 2, "curve": [{"seconds": 1, "loss": 2}]}))
    before = digest(tmp_path / "out")
    assert len(before) == 2
    (node / "node.json").write_text(json.dumps({"seconds": 9.0, "flops": 2, "curve": [{"seconds": 8, "loss": 2}]}))
    assert digest(tmp_path / "out") == before
    (node / "model" / "model.safetensors").write_bytes(b"weightz")
    assert digest(tmp_path / "out") != before


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    script = ROOT / "benchmarks" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--small", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "kills_small.json").read_text())
    assert found["kills"] >= 6
    assert (found["unequal"], found["survivors"]) == (0, 0)
    assert all(trial["files"] > 10 for trial in found["trials"])
