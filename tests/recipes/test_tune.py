"""Numbers chosen by one rule, on seeds and text of their own."""

from __future__ import annotations

import json

import pytest
from small import TRAIN, corpus

import meristem as ms
from meristem.recipes import run
from meristem.recipes.node import Job, NodeResult
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tune import choose_numbers

OPEN = {key: value for key, value in TRAIN.items() if key != "learning_rate"}


def recipe_for(folder, tune, **train):
    return parse_recipe({"data": corpus(folder), "nodes": {"small": {"train": {**OPEN, **train, "tune": tune}}}})


def finishing(loss_of):
    """Runs no training: each trial ends with the loss that a function of its node gives."""
    ran = []

    def execute(jobs):
        for job in jobs:
            if not (job.directory / "node.json").exists():
                job.save()
                ran.append(job)
                loss = loss_of(job)
                NodeResult.of(job, {"seconds": 0.0, "flops": 7, "parameters": 1, "metrics": {"eval_loss": loss}}).save(
                    job.directory
                )
        return {}

    return execute, ran


def test_the_grid_goes_on_while_its_highest_is_best(tmp_path):
    execute, ran = finishing(lambda job: abs(job.node.train.learning_rate - 0.03) + job.seed / 1e6)
    chosen = choose_numbers(recipe_for(tmp_path, {"learning_rate": [1e-3, 2e-3]}), tmp_path, "data", execute)
    assert chosen.nodes["small"].train.learning_rate == pytest.approx(0.032)
    assert chosen.nodes["small"].train.tune is None
    tried = sorted({job.node.train.learning_rate for job in ran})
    assert tried == pytest.approx([1e-3 * 2**i for i in range(7)])  # one beyond the best
    assert {job.seed for job in ran} == {100, 101}
    assert {job.split for job in ran} == {"tune"}
    told = json.loads((tmp_path / "tuning" / "small.json").read_text())
    assert told["chosen"] == {"learning_rate": pytest.approx(0.032)}
    assert (len(told["trials"]), told["flops"], told["at_lowest"]) == (7, 14 * 7, [])
    assert told["at_highest"] == []
    before = len(ran)
    choose_numbers(recipe_for(tmp_path, {"learning_rate": [1e-3, 2e-3]}), tmp_path, "data", execute)
    assert len(ran) == before  # cached like nodes


def test_a_grid_that_ends_before_its_best_says_so(tmp_path, capsys):
    """It goes on by eight numbers; a best one at its end may not be the best there is."""
    execute, ran = finishing(lambda job: -job.node.train.learning_rate)
    chosen = choose_numbers(recipe_for(tmp_path, {"learning_rate": [1e-3, 2e-3]}), tmp_path, "data", execute)
    assert chosen.nodes["small"].train.learning_rate == pytest.approx(1e-3 * 2**9)
    assert len(ran) == 2 * 10
    assert "the highest learning_rate is best, so begin the grid higher" in capsys.readouterr().err
    assert json.loads((tmp_path / "tuning" / "small.json").read_text())["at_highest"] == ["learning_rate"]


def test_several_numbers_and_shares_that_end_at_one(tmp_path):
    execute, ran = finishing(lambda job: -job.node.train.warmup - (job.node.train.batch_size == 8))
    tune = {"warmup": [0.3, 0.6], "batch_size": [4, 8, 16], "on": {"seeds": [7], "tokens": 640}}
    train = recipe_for(tmp_path, tune, learning_rate=1e-3)
    chosen = choose_numbers(train, tmp_path, "data", execute).nodes["small"].train
    assert (chosen.warmup, chosen.batch_size, chosen.tokens) == (0.6, 8, 1280)
    assert {job.node.train.tokens for job in ran} == {640}
    assert all(isinstance(job.node.train.batch_size, int) for job in ran)
    assert len(ran) == 6


def test_a_tuned_node_runs_with_what_was_chosen_and_never_reads_eval_before(tmp_path, monkeypatch):
    from meristem.recipes.tasks.language import CausalLanguage

    asked, original = [], CausalLanguage.evaluation_set
    monkeypatch.setattr(
        CausalLanguage, "evaluation_set", lambda self, split="eval": asked.append(split) or original(self, split)
    )
    nodes = {
        "small": {"train": {**TRAIN, "tokens": 640}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2}},
        "big": {
            "train": {
                **OPEN,
                "model": None,
                "from": "grown",
                "tokens": 640,
                "tune": {"learning_rate": [1e-4, 1e-3], "on": {"seeds": [100]}},
            }
        },
    }
    recipe = parse_recipe({"data": corpus(tmp_path), "nodes": nodes})
    done = run(recipe, tmp_path / "out")[0]
    assert "eval" in asked
    assert "tune" not in asked[asked.index("eval") :]
    told = json.loads((tmp_path / "out" / "tuning" / "big.json").read_text())
    best = min(told["trials"], key=lambda trial: trial["losses"][0])
    assert told["chosen"] == best["numbers"]
    job = Job.load(next((tmp_path / "out").glob("big-*")))
    assert job.node.train.learning_rate == best["numbers"]["learning_rate"]
    assert done["big"].hash == job.hash
    assert len(list((tmp_path / "out" / "tuning").glob("small-s100-*"))) == 1  # the parent's once for all trials
    assert run(recipe, tmp_path / "out")[0] == done


def test_numbers_that_diverge_lose(tmp_path):
    """Plain SGD at 1e18 is no number after two steps."""
    sgd = {"trainer": {"optim": "sgd", "max_grad_norm": 0}, "warmup": 0.0, "evaluations": 5}
    tune = {"learning_rate": [1e-2, 1e18], "on": {"seeds": [100]}}
    run(recipe_for(tmp_path, tune, **sgd), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "tuning" / "small.json").read_text())
    assert told["chosen"] == {"learning_rate": 1e-2}
    assert [trial["losses"][0] is None for trial in told["trials"]] == [False, True]
    with pytest.raises(ms.MeristemError, match="every number of the grid diverged"):
        run(recipe_for(tmp_path, {"learning_rate": [1e18, 2e18], "on": {"seeds": [100]}}, **sgd), tmp_path / "out")


@pytest.mark.parametrize("tune, train, words", [
    ({"learning_rate": [1e-3]}, {}, "at least two rising numbers"), ({"learning_rate": [2e-3, 1e-3]}, {}, "rising"),
    ({"learning_rate": [1e-3, "much"]}, {}, "rising numbers"), ({}, {}, "needs a list of numbers"),
    ({"weight_decay": [0.0, 0.1]}, {}, "give either `learning_rate` or a grid"),
    ({"learning_rate": [1e-3, 2e-3]}, {"learning_rate": 1e-3}, "give either `learning_rate` or a grid"),
    ({"weight_dekay": [0.0, 0.1]}, {"learning_rate": 1e-3}, "not a number of this node; did you mean 'weight_decay'"),
    ({"seed": [1, 2]}, {"learning_rate": 1e-3}, "not a number of this node"),
    ({"learning_rate": [1e-3, 2e-3], "on": {"seeds": [0]}}, {}, "the recipe's own"),
    ({"learning_rate": [1e-3, 2e-3], "on": {"sedes": [0]}}, {}, "did you mean 'seeds'"),
])  # fmt: skip
def test_what_cannot_be_tuned(tmp_path, tune, train, words):
    with pytest.raises(ms.MeristemError, match=words):
        recipe_for(tmp_path, tune, **train)


def test_a_number_inside_a_method(tmp_path):
    execute, _ = finishing(lambda job: abs(job.node.train.subnetwork.schedule(2, 10, 0, ()).rate - 0.2))
    tune = {"subnetwork.rate": [0.1, 0.2, 0.3]}
    recipe = recipe_for(tmp_path, tune, learning_rate=1e-3, subnetwork={"kind": "layer_drop", "rate": 0.5})
    chosen = choose_numbers(recipe, tmp_path, "data", execute).nodes["small"].train
    assert chosen.subnetwork.schedule(2, 10, 0, ()).rate == 0.2
