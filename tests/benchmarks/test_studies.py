"""The studies' engine: equal compute, one search for all, rows that are never measured twice, statistics with known values, pages from rows."""

import math
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import transformers

from benchmarks.__main__ import main
from benchmarks._report import measured, pages
from benchmarks.studies.catalogue import studies
from benchmarks.studies.engine import Engine
from benchmarks.studies.junctions import with_warmups, without_warmups
from benchmarks.studies.nodes import Prices, asked, is_readable, recipe_of
from benchmarks.studies.page import study_page, summary
from benchmarks.studies.results import Finding, current_rows, findings
from benchmarks.studies.rows import Rows, identity
from benchmarks.studies.statistics import Saving, flops_to, gap_with_parents_given, gate_passes, saving
from benchmarks.studies.study import Claim, Gate, Setting, Side, Stage, Study, Tune, deeper, layers_of, llama
from benchmarks.studies.verdicts import verdict
from benchmarks.support.statistics import effect, sign_flip, t_test

SETTING = Setting(
    networks={"large": llama(16, 2, 2), "small": llama(8, 2, 1)},
    budgets=(2, 4),
    tune=Tune(budget=2, rates=(1e-3, 2e-3, 4e-3), seeds=(100,)),
    data="python-stdlib",
    sequence_length=32,
    eval_sequences=16,
    batch_size=8,
    warmup=4,
)
PADDED = {"grow": {"method": "zero_padding", "width": 2, "optimizer": "carry"}}
STUDY = Study(
    name="toy",
    title="Toy",
    question="Does it work?",
    gate=Gate("large beats small", better="scratch", worse=("small",)),
    sides=[
        Side("scratch", [Stage("large")]),
        Side("small", [Stage("small")]),
        Side("grown", [Stage("small", until=1, rate="small"), Stage("large", make=PADDED)]),
        Side("whole", [Stage("small", until=0.25, rate="small"), Stage("large", make=PADDED)], whole=True),
        Side("averaged", [Stage("small", until=0.25, rate="small"), Stage("large", make=PADDED)], whole=True, average=2),
        Side("mean", [Stage("small", rate="small", members=2)], rate_of="small", whole=True),
        Side("fused", [Stage("small", until=1, rate="small", members=2), Stage("large", make={"fuse": {"norm": "grouped"}})]),
        Side("part", [Stage("large", train={"subnetwork": {"kind": "layer_drop", "rate": 0.5}})], whole=True),
        Side("learned", [Stage("small", until=0.5, rate="small"),
                         Stage("large", make={"grow": {"method": "ligo", "width": 2, "steps": 3}})]),
    ],
    settings={"toy": SETTING},
    claims=[Claim("grown", "a paper: saves half", saves=0.5)],
)  # fmt: skip


def engine_at(path, study=STUDY, setting=SETTING, seeds=()):
    return Engine(study, setting, Rows(path / "toy.toy.jsonl"), path / "out", seeds)


def row(side, seed, budget, loss, flops=None, rate=1e-3, split="eval", parents=1e-3):
    rates = [parents if stage.rate else rate for stage in STUDY.side(side).stages]
    asked_for = asked(SETTING, STUDY.side(side), rates, budget, seed, split)
    fixed = {"side": side, "split": split, "seed": seed, "rate": rate, "rates": rates, "budget": budget}
    return {"id": identity(asked_for), **fixed, "loss": loss, "flops": flops or budget * 1e9, "parents_flops": 0}


def searched(*sides, best=1e-3, budget=2):
    """The rows of a search that has found `best`."""
    rates = [best * 2.0**power for power in range(-2, 3)]
    return [
        row(side, 100, budget, abs(math.log2(rate / best)), rate=rate, split="tune") for side in sides for rate in rates
    ]


QUICK = ("grown", "fused")


@pytest.mark.parametrize(
    "name", [pytest.param(side.name, marks=[] if side.name in QUICK else pytest.mark.slow) for side in STUDY.sides]
)
def test_every_side_spends_its_budget_and_no_more(name, tmp_path):
    """All that is counted, parents, fits and fusions included, within two optimizer steps of each kind; `part` in expectation."""
    engine, side = engine_at(tmp_path), STUDY.side(name)
    found = engine.measure(side, 2e-3, SETTING.budgets, 0, "eval") if not side.rate_of else None
    if found is None:
        engine.rate_of = lambda side, at_first=False: 2e-3
        found = engine.measure(side, 2e-3, SETTING.budgets, 0, "eval")
    spent = {own["budget"]: own["flops"] / Prices.of(SETTING).unit for own in found}
    assert spent == pytest.approx({2: 2, 4: 4}, rel=0.25 if name == "part" else 0.03)
    assert all(math.isfinite(own["loss"]) for own in found)
    assert found[1]["loss"] < found[0]["loss"] < 5.6


@pytest.fixture(autouse=True)
def _no_search(monkeypatch, request):
    if "every_side" in request.node.name:
        monkeypatch.setattr(Engine, "rate_of", lambda self, side, at_first=False: 2e-3)


def test_rows_that_are_there_are_not_measured_again_and_a_killed_run_keeps_them(tmp_path, monkeypatch):
    engine = engine_at(tmp_path)
    engine.measure(STUDY.side("scratch"), 2e-3, [2], 0, "eval")
    again = engine_at(tmp_path)
    ran = []

    def stop(*arguments):
        ran.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_run", stop)
    assert again.measure(STUDY.side("scratch"), 2e-3, [2], 0, "eval") == list(engine.rows.found.values())
    with pytest.raises(KeyboardInterrupt):
        again.measure(STUDY.side("scratch"), 2e-3, [2, 4], 0, "eval")
    assert [arguments[2] for arguments in ran] == [[4]]
    assert len(Rows(tmp_path / "toy.toy.jsonl").found) == 1


def test_a_row_that_another_study_has_measured_is_taken_from_there(tmp_path):
    """Two studies with one target share its training from random numbers."""
    other = Rows(tmp_path / "other.toy.jsonl")
    other.add([{"id": "a", "side": "dense", "loss": 1.5}, {"id": "c", "side": "dense", "loss": 9.0}])
    made, new = [], {"id": "b", "side": "scratch", "loss": 2.5}
    own = Rows(tmp_path / "toy.toy.jsonl")
    found = own.once(["a", "b"], tmp_path / "out", lambda missing: made.append(missing) or [new], {"side": "scratch"})
    assert (found, made) == ([{"id": "a", "side": "scratch", "loss": 1.5}, new], [["b"]])
    assert list(Rows(tmp_path / "toy.toy.jsonl").found) == ["a", "b"]


@pytest.mark.parametrize("best", [1e-3 / 4, 2e-3, 4e-3 * 4])
def test_the_search_goes_on_at_either_edge(best, tmp_path, monkeypatch):
    engine = engine_at(tmp_path)
    monkeypatch.setattr(
        engine, "measure", lambda side, rate, budgets, seed, split: [{"loss": abs(math.log2(rate / best))}]
    )
    assert engine.rate_of(STUDY.side("scratch")) == pytest.approx(best)


def test_the_search_uses_no_reported_seed_and_no_reported_split(tmp_path, monkeypatch):
    engine, used = engine_at(tmp_path), []
    monkeypatch.setattr(
        engine, "measure", lambda side, rate, budgets, seed, split: used.append((seed, split)) or [{"loss": rate}]
    )
    engine.rate_of(STUDY.side("scratch"))
    assert set(used) == {(100, "tune")}
    assert not {seed for seed, _ in used} & set(SETTING.seeds)


def test_all_studies_tune_on_other_seeds_than_they_report():
    for study in studies().values():
        for setting in study.settings.values():
            assert not set(setting.seeds) & set(setting.tune.seeds), study.name
            assert len(setting.seeds) >= 3


def test_the_interval_is_that_of_all_resamples():
    """Of 1, 2, 6 there are 27 resamples; their means run from 1 to 6, the lowest and the highest once each."""
    found = effect([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert (found.low, found.high) == pytest.approx((1.0 + 0.65 / 3, 6.0 - 0.65 * 4 / 3))


@pytest.mark.parametrize("values, below", [
    ([-0.0097, -0.0023, 0.0003], False), ([-0.0097, -0.0023, -0.0003], False),
    ([-0.0097, -0.0043, -0.0063], True), ([-math.inf, -0.1, -0.1], True), ([-0.3] * 9 + [0.1], True), ([-1.0, 1.0, 0.5], False),
])  # fmt: skip
def test_few_seeds_show_nothing_unless_all_of_them_agree(values, below):
    """The interval of the first leaves out zero, although one seed in three is above it. The second's differences have one sign, and differ so
    much that a one-sided t-test says p = 0.14.
    """
    assert effect([-0.0097, -0.0023, 0.0003]).high < 0
    found, mirrored = effect(values), effect([-value for value in values])
    assert (found.is_below, found.is_above) == (below, False)
    assert (mirrored.is_below, mirrored.is_above) == (False, below)


def saving_of(share):
    return None if share is None else Saving(effect([share] * 3), effect([share + 0.2] * 3), 3, 3, False)


@pytest.mark.parametrize("options, gap, share, said", [
    ({}, -0.1, None, "holds here: lower"),
    ({}, 0.1, None, "does not hold here: higher"),
    ({}, None, None, "no difference shown"),
    ({"direction": "behind"}, 0.1, None, "holds here: higher"),
    ({"direction": "behind"}, -0.1, None, "does not hold here: lower"),
    ({"direction": "equal"}, 0.1, None, "does not hold here: higher"),
    ({"direction": "equal"}, -0.1, None, "holds here: lower"),
    ({"saves": 0.5}, -0.1, 0.55, "holds here: lower"),
    ({"saves": 0.5}, -0.1, 0.05, "in part: lower, 5% of the compute saved where 50% is claimed"),
    ({"saves": 0.5, "given": True}, -0.1, 0.35, "holds here: lower"),
    ({"saves": 0.5}, -0.1, None, "in part: lower, an unknown share of the compute saved where 50% is claimed"),
    ({"saves": 0.5}, 0.1, 0.9, "does not hold here: higher"),
])  # fmt: skip
def test_a_verdict_is_about_what_is_claimed(options, gap, share, said):
    found = effect([0.1, -0.1, 0.2] if gap is None else [gap] * 3)
    assert verdict(Claim("grown", "a paper", **options), found, "lower", "higher", saving_of(share)) == said


@pytest.mark.parametrize("shares, said", [
    ([0.13, 0.19, 0.24], "holds here: lower, 19% of the compute saved where 20% is claimed"),
    ([0.13, 0.15, 0.19], "in part: lower, 16% of the compute saved where 20% is claimed"),
])  # fmt: skip
def test_a_share_that_the_interval_reaches_is_not_refuted(shares, said):
    saved = Saving(effect(shares), effect(shares), 3, 3, False)
    assert verdict(Claim("grown", "a paper", saves=0.2), effect([-0.1] * 3), "lower", "higher", saved) == said


def test_a_loss_that_was_reached_before_the_first_reading_gives_a_bound():
    saved = Saving(effect([0.0] * 3), effect([0.0] * 3), 3, 3, True)
    said = "in part: lower; at least 0% of the compute saved, the 20% that are claimed not shown"
    assert verdict(Claim("grown", "a paper", saves=0.2), effect([-0.1] * 3), "lower", "higher", saved) == said


def test_a_verdict_wants_three_seeds():
    assert verdict(Claim("grown", "a paper"), effect([-1.0, -1.0]), "lower", "higher") == "not measured yet"
    assert verdict(Claim("grown", "a paper"), None, "lower", "higher") == "not measured yet"


def test_with_the_parents_given_a_side_is_held_against_less_training():
    """At a budget of 4 of which the parents cost 2: against the baseline at 2, and where they cost 1, between its budgets."""
    base = [row("scratch", seed, b, loss) for seed in range(3) for b, loss in ((2, 3.0), (4, 2.0))]
    ours = [{**row("grown", seed, 4, 2.25), "parents_flops": 2e9} for seed in range(3)]
    assert gap_with_parents_given([*base, *ours], "grown", "scratch", 4) == pytest.approx([-0.75] * 3)
    ours = [{**own, "parents_flops": 4e9 - 8**0.5 * 1e9} for own in ours]
    assert gap_with_parents_given([*base, *ours], "grown", "scratch", 4) == pytest.approx([-0.25] * 3)
    assert (
        gap_with_parents_given([*base, *({**own, "parents_flops": 3e9} for own in ours)], "grown", "scratch", 4) == []
    )


def test_a_run_that_diverged_makes_the_interval_infinite_and_not_unknown():
    assert effect([math.inf] * 3).low == math.inf
    found = effect([-1.0, -1.0, math.inf])
    assert (found.low, found.high) == (-1.0, math.inf)


def test_flops_to_a_loss_lie_between_budgets_log_linearly():
    curve = [(1e9, 3.0), (4e9, 2.0)]
    assert flops_to(curve, 2.5) == pytest.approx(2e9)
    assert flops_to(curve, 1.9) is None


def test_the_saving_has_the_right_value_and_says_when_it_is_a_bound():
    base = [row("scratch", seed, b, loss) for seed in range(3) for b, loss in ((2, 3.0), (4, 2.5))]
    ours = [row("grown", seed, b, loss) for seed in range(3) for b, loss in ((2, 2.75), (4, 2.25))]
    ours = [{**own, "parents_flops": 1e9} for own in ours]
    found = saving([*base, *ours], "grown", "scratch", 4)
    assert found.effect.mean == pytest.approx(1 - 2 * 2**0.5 / 4)
    assert found.given.mean == pytest.approx(1 - (2 * 2**0.5 - 1) / 4)
    assert (found.reached, found.is_bound) == (3, False)
    at_once = saving([*base, *ours], "grown", "scratch", 2)
    assert at_once.is_bound
    assert str(at_once) == "reached at the first reading, so not known"


def test_a_seed_that_does_not_get_there_leaves_no_mean_of_the_others():
    base = [row("scratch", seed, b, loss) for seed in range(3) for b, loss in ((2, 3.0), (4, 2.5))]
    ours = [row("grown", seed, b, loss) for seed in range(3) for b, loss in ((2, 2.75), (4, 2.25 if seed else 2.6))]
    found = saving([*base, *ours], "grown", "scratch", 4)
    assert (found.effect, found.given, str(found)) == (None, None, "reached on 2 of 3 seeds")


@pytest.mark.parametrize("better, passes", [((2.0, 2.1, 2.2), True), ((2.0, 2.1, 2.6), False), ((2.0, 2.1), False)])
def test_the_gate_wants_three_seeds_and_the_whole_interval(better, passes):
    rows = [row("scratch", seed, 4, loss) for seed, loss in enumerate(better)]
    rows += [row("small", seed, 4, 2.3) for seed in range(3)]
    assert gate_passes(STUDY, SETTING, rows) == {2: False, 4: passes}


def test_a_study_whose_gate_fails_says_so_and_measures_nothing_else(tmp_path, monkeypatch):
    engine = engine_at(tmp_path)
    engine.rows.add(searched("scratch", "small"))
    engine.rows.add(
        [row(side, s, b, loss) for side, loss in (("scratch", 2.4), ("small", 2.3)) for s in range(3) for b in (2, 4)]
    )
    monkeypatch.setattr(engine, "rate_of", lambda side, at_first=False: 1e-3)
    monkeypatch.setattr(engine, "_run", lambda *arguments: pytest.fail("it ran something"))
    assert engine.run() is False
    finding = Finding.of(STUDY, "toy", tmp_path)
    page = study_page(STUDY, [finding], tmp_path, tmp_path)
    assert "**Not testable at this size.**" in page
    assert "a paper" not in page


def test_pages_say_what_the_rows_say(tmp_path, monkeypatch):
    losses = {"scratch": (3.0, 2.5), "small": (2.9, 2.6), "grown": (2.75, 2.25)}
    rows = [
        row(side, s, b, loss + s / 100)
        for side, own in losses.items()
        for s in range(3)
        for b, loss in zip((2, 4), own, strict=True)
    ]
    Rows(tmp_path / "toy.toy.jsonl").add(
        [*searched(*losses), *rows, {**rows[3], "id": "of another definition", "seed": 0, "budget": 4, "loss": 9.0}]
    )
    monkeypatch.setattr("benchmarks.studies.page.studies", lambda: {"toy": STUDY})
    waiting = [
        ["not run", "", "not measured", "", "", "not run yet"],
        ["gate", "", "fails", "", "", "not testable on this task"],
    ]
    said = summary({"toy": findings(STUDY, tmp_path)}, waiting)
    assert "passes at 4" in said
    cells = [line.split(" | ")[0] for line in said.splitlines() if line.startswith("| ")]
    assert [cell for cell in cells if "toy" not in cell] == [
        "| study",
        "| gate",
        "| not run",
    ]  # what was not tested comes last
    assert "toy" in cells[1]
    assert "-0.2500 [-0.2500, -0.2500] at 4" in said
    assert "in part: a lower loss, 29% of the compute saved where 50% is claimed" in said
    assert "29% [29%, 29%]" in said
    page = study_page(STUDY, findings(STUDY, tmp_path), tmp_path, tmp_path)
    assert "loss 2.5100" in page  # 2.5, 2.51, 2.52; with the row of another definition it would be another mean
    assert "`mean` that of `small`" in page


def cases():
    return [(study, name) for study in studies().values() for name in study.settings]


@pytest.mark.parametrize("study, name", cases(), ids=lambda value: getattr(value, "name", value))
def test_the_sides_of_every_study_are_recipes(study, name, monkeypatch):
    from meristem.recipes.specs.schema import parse_recipe

    monkeypatch.setattr("benchmarks.studies.nodes._source", lambda data: "python-stdlib")
    setting = study.settings[name]
    sizes = {
        network: 12 * layers_of(entries) * entries.get("hidden_size", entries.get("d_model")) ** 2
        for network, entries in setting.networks.items()
    }
    prices = Prices(
        sizes, {n: s / (layers_of(setting.networks[n]) + 2) for n, s in sizes.items()}, sizes, setting.target
    )
    for side in study.sides:
        budgets = [budget for budget in setting.budgets if is_readable(setting, side, budget)]
        assert side.rate_of or is_readable(setting, side, setting.tune.budget), f"{side.name} cannot be tuned"
        if not budgets:
            continue
        content, read = recipe_of(setting, prices, side, [1e-3] * len(side.stages), budgets, 0)
        recipe = parse_recipe(without_warmups(content)[0])
        assert list(read) == budgets
        assert set(read.values()) <= set(recipe.nodes)
    assert {claim.side for claim in study.claims} <= {side.name for side in study.sides}


DIAGNOSED = Side("diagnosed", [
    Stage("small", until=1, members=2),
    Stage("large", make={"fuse": {"norm": "grouped", "optimizer": "carry"}}, train={"warmup": "junction"}),
])  # fmt: skip


def test_a_study_can_go_on_at_a_side_whose_warmup_is_not_known_yet(tmp_path):
    """An engine that begins there, as after a kill, has not opened the data before."""
    (found,) = engine_at(tmp_path).measure(DIAGNOSED, 2e-3, [2], 0, "eval")
    assert 1 < found["loss"] < math.log(256)


def test_the_warmup_at_a_junction_is_what_diagnose_says(tmp_path):
    """In the recipe that the engine trains; the nodes before it are trained once."""
    from meristem.recipes.diagnose import diagnose
    from meristem.recipes.specs.schema import parse_recipe
    from meristem.recipes.tasks import open_task

    content, _ = recipe_of(SETTING, Prices.of(SETTING), DIAGNOSED, [2e-3, 2e-3], [2, 4], 0)
    recipe = parse_recipe(without_warmups(content)[0])
    found = with_warmups(content, tmp_path, open_task(recipe.data), 0, "eval")
    made = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/result.json"))
    (said,) = diagnose(recipe, "made1", tmp_path)
    train = found["nodes"]["run"]["train"]
    steps = train["tokens"] // (SETTING.batch_size * SETTING.sequence_length)
    assert train["warmup"] * steps == pytest.approx(min(said.warmup["run"], steps // 2) - 0.5)
    assert said.warmup["run"] == math.ceil(2e-3 / said.learning_rate) > 0
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob("*/result.json")) == made


def test_a_side_has_the_same_identity_whatever_runs_beside_it():
    more = replace(SETTING, budgets=(2, 4, 8), networks={**SETTING.networks, "other": llama(32, 2, 2)})
    one, other = (asked(setting, STUDY.side("grown"), [1e-3, 1e-3], 4, 0, "eval") for setting in (SETTING, more))
    assert identity(one) == identity(other)
    assert identity(one) != identity(asked(SETTING, STUDY.side("grown"), [1e-3, 2e-3], 4, 0, "eval"))


def test_an_averaged_side_has_no_decay_and_reads_the_share_that_the_decay_would_have():
    prices = Prices(
        {"large": 100.0, "small": 50.0}, {"large": 10.0, "small": 5.0}, {"large": 64_000, "small": 16_000}, "large"
    )
    content, read = recipe_of(SETTING, prices, STUDY.side("averaged"), [1e-3, 1e-3], [4], 0)
    run, mean = content["nodes"]["run_4"]["train"], content["nodes"][read[4]]["average"]
    assert run["decay"] == 0.0
    assert mean == {"from": "run_4", "last": 2, "weights": "1-sqrt"}
    steps, every = run["tokens"] // 256, run["keep_every"] // 256
    taken = [*range(every, steps, every), steps][-2:]
    share = 0.2 * 4 * 64_000 / 256  # the decay's steps
    assert taken[1] - taken[0] == pytest.approx(share / 2, rel=0.15)
    plain, averaged = (asked(SETTING, STUDY.side(name), [1e-3, 1e-3], 4, 0, "eval") for name in ("whole", "averaged"))
    assert identity(plain) != identity(averaged)


def test_tests_of_paired_differences():
    """Of three positive differences, 2 of 8 sign patterns are as far from zero; equal scores have no p."""
    assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert t_test([1.0, 2.0], [1.0, 2.0]) is None
    assert t_test([1.0, 2.0, 3.0]) == pytest.approx(
        0.0742, abs=1e-4
    )  # t = 2 / (1 / sqrt(3)) = 3.46 with 2 degrees of freedom


def test_processes_that_share_the_work_do_nothing_twice(tmp_path, monkeypatch):
    """Two engines over the same files: every unit is run once, and both end with all rows."""
    ran, lock = [], threading.Lock()

    def pretend(self, side, rates, budgets, seed, split):
        time.sleep(0.01)
        with lock:
            ran.append((side.name, rates[-1], seed, split))
        return {
            b: {"loss": 1 / b + ("small" in side.name) + abs(math.log2(rates[-1] / 2e-3)), "flops": b} for b in budgets
        }

    monkeypatch.setattr(Engine, "_run", pretend)
    engines = [Engine(STUDY, SETTING, Rows(tmp_path / "rows.jsonl"), tmp_path / "out", turn=turn) for turn in range(2)]
    threads = [threading.Thread(target=engine.run) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == len(set(ran)) > 40
    found = Rows(tmp_path / "rows.jsonl").found.values()
    assert sum(row["split"] == "eval" for row in found) == len(STUDY.sides) * len(SETTING.seeds) * len(SETTING.budgets)


@pytest.mark.parametrize(
    "words, said",
    [
        (["run", "grwoth"], "no study 'grwoth'; studies are growth"),
        (["run", "growth", "--setting", "huge"], "no setting 'huge'"),
        (["run", "growth", "--seeds", "0", "100"], "growth reports the seeds 0, 1, 2, and not 100"),
    ],
)
def test_what_is_not_there_is_named(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_growth_that_makes_another_network_than_was_counted_is_an_error(tmp_path, monkeypatch):
    grown = STUDY.side("grown")
    wrong = {
        "grow": {
            "method": "zero_padding",
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 40,
        }
    }
    side = replace(grown, stages=[grown.stages[0], replace(grown.stages[1], make=wrong)])
    engine = engine_at(tmp_path)
    engine.rate_of = lambda side, at_first=False: 2e-3
    with pytest.raises(ValueError, match=r"grown: made1 has .* parameters, the setting's 'large' "):
        engine.measure(side, 2e-3, [2], 0, "eval")
    assert not engine.rows.found


def test_a_budget_that_is_spent_before_its_last_stage_is_an_error(monkeypatch):
    """LiGO's fit costs too: here eight examples in each of 3 steps, and no more is left."""
    monkeypatch.setattr("benchmarks.studies.nodes._source", lambda data: data)
    prices = Prices({"large": 4e3, "small": 1e3}, {"large": 1e3, "small": 300}, {"large": 400, "small": 100}, "large")
    fit = 3 * 8 * SETTING.sequence_length / 400  # units
    with pytest.raises(ValueError, match="spent before 'large' begins"):
        recipe_of(SETTING, prices, STUDY.side("learned"), [1e-3, 1e-3], [(0.5 + fit) / 0.8], 0)


def test_every_network_of_a_study_can_have_one_layer_more():
    """What a layer costs is counted on it. Of a ModernBERT each layer has a type, and its first layer has no norm."""

    def size(entries):
        config = transformers.AutoConfig.for_model(**entries, vocab_size=8)
        with torch.device("meta"):
            return transformers.AutoModel.from_config(config).num_parameters()

    networks = {
        str(entries): entries
        for study in studies().values()
        for setting in study.settings.values()
        for entries in setting.networks.values()
    }
    assert {"llama", "t5", "modernbert", "mixtral"} <= {entries["model_type"] for entries in networks.values()}
    for entries in networks.values():
        one, two = deeper(entries), deeper(deeper(entries))
        assert size(two) - size(one) == size(one) - size(entries) > 0


def test_rows_of_other_rates_seeds_and_budgets_than_today_s_do_not_count(tmp_path):
    """A rate that lost the search, a seed of the search, a seed and a budget beyond the setting's, parents at another rate."""
    good = [row("grown", seed, 4, 2.0) for seed in SETTING.seeds]
    others = [
        row("grown", 0, 4, 1.0, rate=2e-3),
        row("grown", 100, 4, 1.0),
        row("grown", 7, 4, 1.0),
        row("grown", 0, 8, 1.0),
        row("grown", 0, 4, 1.0, parents=2e-3),
    ]
    rows = [*searched("small", "grown"), *good, *others]
    assert len({own["id"] for own in rows}) == len(rows)
    assert [own for own in current_rows(STUDY, SETTING, rows) if own["split"] == "eval"] == good
    unfinished = [own for own in rows if own["split"] == "eval" or own["rate"] != 5e-4]
    assert [own for own in current_rows(STUDY, SETTING, unfinished) if own["split"] == "eval"] == []


def test_a_longer_budget_may_lower_a_rate_but_not_its_parents(tmp_path, monkeypatch):
    """At 2 the best rate is 2e-3; at 4 it is 5e-4. The growth's parent trains for 1, and keeps its rate."""
    setting, asked_for = replace(SETTING, tune=replace(SETTING.tune, again=4)), []

    def pretend(self, side, rates, budgets, seed, split):
        asked_for.append((side.name, tuple(rates), tuple(budgets), split))
        return {b: {"loss": abs(math.log2(rates[-1] / {2: 2e-3, 4: 5e-4}[b]))} for b in budgets}

    monkeypatch.setattr(Engine, "_run", pretend)
    engine = engine_at(tmp_path, setting=setting)
    assert engine.rate_of(STUDY.side("grown")) == pytest.approx(5e-4)
    assert engine.rate_of(STUDY.side("grown"), at_first=True) == pytest.approx(2e-3)
    assert {rates[0] for side, rates, _, _ in asked_for if side == "grown"} == {2e-3}
    longer = [rates[-1] for side, rates, budgets, _ in asked_for if (side, budgets) == ("grown", (4,))]
    assert longer == pytest.approx([2e-3, 1e-3, 5e-4, 2.5e-4])
    engine.report(STUDY.side("grown"))
    current = current_rows(STUDY, setting, engine.rows.found.values())
    assert {tuple(own["rates"]) for own in current if own["split"] == "eval"} == {(2e-3, 5e-4)}
    assert len([own for own in current if own["split"] == "eval"]) == 6


def test_given_parents_that_cost_a_share_of_the_budget_are_taken_off_where_the_loss_is_reached():
    """Half of all compute is the parents'. The goal is reached at 2.83 of 4 GFLOPs, 1.41 of them the parents'."""
    base = [row("scratch", seed, b, loss) for seed in range(3) for b, loss in ((2, 3.0), (4, 2.5))]
    ours = [row("whole", seed, b, loss) for seed in range(3) for b, loss in ((2, 2.75), (4, 2.25))]
    ours = [{**own, "parents_flops": own["flops"] / 2} for own in ours]
    assert saving([*base, *ours], "whole", "scratch", 4).given.mean == pytest.approx(1 - 2**0.5 / 4)


def test_a_line_that_a_kill_has_cut_off_is_measured_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    Rows(file).add([{"id": "a", "loss": 1.0}])
    file.write_text(file.read_text() + '{"id": "b", "lo')
    rows = Rows(file)
    assert list(rows.found) == ["a"]
    rows.add([{"id": "b", "loss": 2.0}])
    assert file.read_text() == '{"id": "a", "loss": 1.0}\n{"id": "b", "loss": 2.0}\n'
    file.write_text('{"id": "a", "loss": 1.0}\nno row\n{"id": "b", "loss": 2.0}\n')
    with pytest.raises(SystemExit, match=r"rows\.jsonl, line 2, is no row of results: 'no row'"):
        Rows(file)
    file.write_text('{"id": "a", "loss": 1.0}')  # whole, but for its end
    Rows(file).add([{"id": "b", "loss": 2.0}])
    assert list(Rows(file).found) == ["a", "b"]


def test_the_pages_are_those_of_the_rows():
    """`python -m benchmarks report` would change nothing. Rows that arrive while a study runs make it fail until the next report."""
    root = Path(__file__).parents[2]
    for file, text in pages(root, measured(root)).items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run `python -m benchmarks report`"


@pytest.mark.slow
def test_processes_that_were_started_end_with_the_first(tmp_path):
    """Killed by SIGKILL, which it cannot pass on."""
    words = ["run", "majority", "--workers", "2", "--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "out")]
    first = subprocess.Popen([sys.executable, "-m", "benchmarks", *words], cwd=Path(__file__).parents[2])

    def spawned():
        return [own for own in psutil.Process(first.pid).children() if "spawn_main" in " ".join(own.cmdline())]

    try:
        (other,) = until(spawned)
        until((tmp_path / "out").exists)
    finally:
        first.kill()
        first.wait()
    until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)


def until(found, seconds=100.0):
    """What `found` gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (own := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return own
