"""The arithmetic of a race, on curves whose answer is known."""

from __future__ import annotations

import pytest

import meristem as ms
from meristem.recipes.node import NodeResult
from meristem.recipes.race import cost_to_reach, loss_at, race, report
from meristem.recipes.specs.schema import parse_recipe


def points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"flops": flops, "seconds": flops / 2, "eval_loss": loss, "step": 0, "tokens": 0} for flops, loss in pairs]


def node(name: str, kind: str, curve: list, flops: int = 0) -> NodeResult:
    metrics = {"eval_loss": curve[-1]["eval_loss"]} if curve else {}
    return NodeResult(name, kind, 0, "h", [], flops, flops / 2, 0, 0, metrics, 1, curve)


RECIPE = parse_recipe({
    "nodes": {
        "small": {"train": {"model": {"model_type": "llama"}, "tokens": "10k", "learning_rate": 1}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "width": 2}},
        "big": {"train": {"from": "grown", "tokens": "10k", "learning_rate": 1}},
        "scratch": {"train": {"model": {"model_type": "llama"}, "tokens": "10k", "learning_rate": 1}},
    },
    "race": {"challenger": "big", "baseline": "scratch"},
})  # fmt: skip


def test_the_small_models_cost_counts_and_is_also_given():
    nodes = {
        "small": node("small", "train", points((0, 5.0), (20, 3.0)), 20),
        "grown": node("grown", "grow", []),
        "big": node("big", "train", points((0, 3.0), (40, 1.0)), 40),
        "scratch": node("scratch", "train", points((0, 5.0), (100, 2.0)), 100),
    }
    (lap,) = race(RECIPE, {0: nodes})
    assert lap.flops_to_baseline_loss == 40  # 20 of the small model, half of the 40
    assert lap.saving == pytest.approx(0.6)
    assert lap.saving_if_parents_are_given == pytest.approx(0.8)
    assert lap.time_saving == pytest.approx(0.6)
    assert lap.challenger_loss_at_equal_flops == 1.0  # both at 60, where the challenger ends
    assert lap.baseline_loss_at_equal_flops == pytest.approx(5 - 0.6 * 3)
    summary = report(RECIPE, [lap, lap], "here")["summary"]
    assert summary["saving"] == {"mean": pytest.approx(0.6), "std": 0.0, "seeds": 2, "reached": 2}


def test_a_loss_that_is_never_reached_is_said_to_be():
    nodes = {
        "small": node("small", "train", points((0, 5.0), (20, 3.0)), 20),
        "grown": node("grown", "grow", []),
        "big": node("big", "train", points((0, 3.0), (40, 2.5)), 40),
        "scratch": node("scratch", "train", points((0, 5.0), (100, 2.0)), 100),
    }
    (lap,) = race(RECIPE, {0: nodes})
    assert lap.saving is None
    assert report(RECIPE, [lap], "here")["summary"]["saving"]["reached"] == 0


def test_interpolation():
    curve = points((0, 4.0), (10, 2.0), (20, 1.0))
    assert loss_at(curve, 5) == 3.0
    assert loss_at(curve, 100) == 1.0
    assert cost_to_reach(curve, 1.5, "flops") == 15
    assert cost_to_reach(curve, 4.5, "flops") == 0
    assert cost_to_reach(curve, 0.5, "flops") is None


def test_a_race_needs_train_nodes():
    content = {
        **RECIPE.model_dump(by_alias=True, exclude_none=True),
        "race": {"challenger": "grown", "baseline": "scratch"},
    }
    with pytest.raises(ms.MeristemError, match="'grown', a node of kind grow; only train nodes have a loss curve"):
        parse_recipe(content)


def run_of(challenger: float, baseline: float, **schedules: dict) -> list[str]:
    """The cautions of a race whose sides end at these FLOPs; the challenger reaches the baseline's loss half-way."""
    content = RECIPE.model_dump(by_alias=True, exclude_none=True)
    for name, more in schedules.items():
        content["nodes"][name]["train"] |= more
    recipe = parse_recipe(content)
    nodes = {
        "small": node("small", "train", []),
        "grown": node("grown", "grow", []),
        "big": node("big", "train", points((0, 3.0), (challenger, 1.0)), 40),
        "scratch": node("scratch", "train", points((0, 5.0), (baseline, 2.0)), 100),
    }
    laps = race(recipe, {0: nodes})
    return report(recipe, laps, "here")["cautions"]


CONSTANT = {"schedule": "constant_with_warmup"}


def test_a_loss_that_is_read_before_the_rate_has_fallen_is_said_to_be():
    longer, saving = run_of(60, 100)
    assert longer.startswith(
        "at equal compute the baseline is read at 60% of its compute, before its learning rate has fallen"
    )
    assert "favours the challenger" in longer
    assert saving.startswith("the saving is read from the challenger's curve before its learning rate has fallen")
    assert "at least that" in saving
    (one,) = run_of(100, 60, big=CONSTANT, scratch=CONSTANT) + run_of(100.5, 100)  # equal, up to a per cent
    assert one == saving


def test_a_rate_that_falls_on_one_side_only_is_said_to():
    (words,) = run_of(100, 100, big=CONSTANT)
    assert words.startswith("the learning rate of the baseline falls at its end, and that of the challenger does not")
    wsd = {"schedule": "wsd", "decay": 0.2}
    assert run_of(100, 100, big={"schedule": "wsd", "decay": 0.0}, scratch=wsd) == [words]
