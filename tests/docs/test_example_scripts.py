"""Every script of examples/ runs, and what it prints is what it promises."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from meristem.recipes.run import run as execute
from meristem.recipes.specs.data_specs import parse_count
from meristem.recipes.specs.schema import parse_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 30


@pytest.fixture
def run(monkeypatch):
    """`main` of a script, called in this process."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(name: str, *args, **kwargs) -> dict[str, float]:
        return importlib.import_module(name).main(*args, **kwargs)

    return call


def learns_on(found: dict[str, float], before: str, after: str) -> None:
    """The growth changes nothing, and training on from it helps by more than a tenth of a nat."""
    assert found[after] == pytest.approx(found[before], abs=1e-4)
    assert found["trained on"] < found[after] - 0.1


def test_growing_in_a_loop(run):
    learns_on(run("grow_in_a_loop", STEPS), "small", "grown")


@pytest.mark.slow
@pytest.mark.dist
def test_growing_in_a_loop_sharded_over_two_processes(run):
    alone = run("grow_in_a_loop", STEPS)

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = [str(EXAMPLES / "grow_in_a_loop.py"), "--steps", str(STEPS)]
    ran = subprocess.run([*command, *script], capture_output=True, text=True, env=environment, timeout=280)

    assert ran.returncode == 0, ran.stderr[-2000:]
    together = ast.literal_eval(ran.stdout.strip().splitlines()[-1])
    assert together == pytest.approx(alone, abs=2e-3)


def test_growing_in_the_trainer(run, tmp_path):
    found = run("grow_in_trainer", tmp_path / "run", None, STEPS)

    learns_on(found, "small", "grown")
    assert (tmp_path / "run" / "large" / f"checkpoint-{2 * STEPS}" / "optimizer.pt").is_file()


def test_upcycling(run):
    found = run("upcycle", STEPS)

    learns_on(found, "dense", "mixture")
    assert found["distance of experts"] > 0.01


def test_fusing(run):
    found = run("fuse_two", STEPS)

    assert found["fused"] < max(found["parent 0"], found["parent 1"])
    assert found["trained on"] < min(found["parent 0"], found["parent 1"]) - 0.1


def test_adanet_on_a_table(run):
    found = run("adanet_on_a_table")

    assert found["adanet"] > 0.95  # age and job decide together, which a linear model cannot express
    assert found["linear"] < 0.75


def test_the_race_of_the_best_recipe_is_at_equal_compute(tmp_path):
    """A fiftieth of its length: the shares of the stages are those of the study, and both sides cost the same."""
    content = yaml.safe_load((EXAMPLES / "gradual_stacking.yaml").read_text())
    for node in (node["train"] for node in content["nodes"].values() if "train" in node):
        node |= {"tokens": parse_count(node["tokens"]) // 50, "evaluations": 1}
    recipe = parse_recipe({**content, "seeds": [0], "data": {**content["data"], "eval_sequences": 16}})
    (nodes,) = execute(recipe, tmp_path).values()
    stages = [nodes[name].flops for name in ("one", "two_trained", "three_trained", "challenger")]
    total = nodes["scratch"].flops
    assert [cost / total for cost in stages] == pytest.approx([0.05, 0.075, 0.075, 0.8], abs=0.01)  # whole steps
    assert sum(stages) == pytest.approx(total, rel=0.01)


def test_the_page_of_examples_lists_all_scripts():
    scripts = {path.name for kind in ("*.py", "*.ipynb", "*.yaml") for path in EXAMPLES.glob(kind)} - {"text.py"}
    assert scripts == {
        line.split("](")[1].split(")")[0] for line in (EXAMPLES / "README.md").read_text().splitlines() if "](" in line
    }
