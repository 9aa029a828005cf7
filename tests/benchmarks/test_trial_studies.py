"""Trials: one search for all sides, gates by task, rows that are never measured twice, splits that do not mix, pages from rows."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import meristem as ms
from benchmarks.studies.rows import Rows, identity
from benchmarks.studies.search import search
from benchmarks.studies.study import Claim
from benchmarks.trials.catalogue import trials
from benchmarks.trials.data import augmented, examples, sequences
from benchmarks.trials.engine import Engine
from benchmarks.trials.page import summary_rows, trial_page
from benchmarks.trials.problems import problem_of
from benchmarks.trials.results import Found, chosen, current_rows, gate_holds
from benchmarks.trials.trial import Condition, Scale, Trial, Way

BEST = {"plain": 2e-3, "better": 16e-3, "worse": 1e-3}
LEAD = {"plain": 0.0, "better": -2.0, "worse": 1.0}


def pretend(task, options, value, seed, split):
    """Errors with a known minimum over the tuned number; the seed shifts all sides alike."""
    way = options["way"]
    error = 10 + LEAD[way] + abs(math.log2(value / BEST[way])) + seed / 100
    return {"value": error, "train_accuracy": task["learned"]}


SCALE = Scale(
    tasks={"learned": {"learned": 100.0}, "unlearned": {"learned": 90.0}},
    values=(1e-3, 2e-3, 4e-3),
    tuned_on=(100,),
    seeds=(0, 1, 2),
)
TRIAL = Trial(
    name="toy",
    title="Toy",
    question="Does it work?",
    metric="test error, %",
    gate=Condition("plain has learned its rows", ("plain",), lambda rows: all(r["train_accuracy"] >= 99.9 for r in rows["plain"])),
    sides=[Way(name, {"way": name}) for name in BEST],
    fit=pretend,
    settings={"toy": SCALE},
    claims=[Claim("better", "a paper: two points"), Claim("worse", "another"), Claim("better", "a third", versus="worse")],
    baseline="plain",
    protocol="None.",
)  # fmt: skip


def run(path, trial=TRIAL, scale=SCALE, **more):
    engine = Engine(trial, scale, Rows(path / "toy.toy.jsonl"), path / "out", **more)
    return engine, engine.run()


def test_every_side_finds_its_best_value_and_the_gate_is_judged_by_task(tmp_path):
    _, tested = run(tmp_path)
    assert tested
    found = Found.of(TRIAL, "toy", tmp_path)
    tuned = {row["side"]: row["tuned"] for row in found.rows if (row["task"], row["split"]) == ("learned", "eval")}
    assert tuned == pytest.approx(BEST)
    assert (found.gate("learned"), found.gate("unlearned")) == ("passes", "fails")
    assert {row["side"] for row in found.rows if row["task"] == "unlearned"} == {"plain"}
    assert found.gap("learned", "better").mean == pytest.approx(-2.0)
    better, worse, third = TRIAL.claims
    assert found.verdict("learned", better) == "holds here: better than the baseline"
    assert found.verdict("learned", worse) == "does not hold here: worse than the baseline"
    assert found.verdict("learned", third) == "holds here: better than `worse`"
    assert found.gap("learned", "better", "worse").mean == pytest.approx(-3.0)
    assert found.verdict("unlearned", better) == "not testable on this task"
    assert {row["seed"] for row in found.rows if row["split"] == "tune"} == {100}


def test_nothing_is_measured_twice_and_a_new_definition_is_measured_anew(tmp_path, monkeypatch):
    run(tmp_path)
    count = len(Rows(tmp_path / "toy.toy.jsonl").found)
    run(tmp_path, replace(TRIAL, fit=lambda *asked: pytest.fail("it ran something")))
    other = replace(SCALE, tasks={"learned": {"learned": 100.0, "epochs": 2}})
    run(tmp_path, scale=other)
    assert len(Rows(tmp_path / "toy.toy.jsonl").found) == count + sum(
        row["task"] == "learned" for row in Found.of(TRIAL, "toy", tmp_path).rows
    )


def test_a_side_that_diverges_counts_as_infinitely_bad_and_not_as_missing(tmp_path):
    def diverging(task, options, value, seed, split):
        found = pretend(task, options, value, seed, split)
        return {**found, "value": math.inf} if options["way"] == "worse" and split == "eval" else found

    run(tmp_path, replace(TRIAL, fit=diverging))
    found = Found.of(TRIAL, "toy", tmp_path)
    assert found.values("learned", "worse") == {0: math.inf, 1: math.inf, 2: math.inf}
    assert found.verdict("learned", TRIAL.claims[1]) == "does not hold here: worse than the baseline"


def test_the_gate_wants_three_seeds(tmp_path):
    engine, tested = run(tmp_path, seeds=(0, 1))
    assert not tested
    assert not gate_holds(TRIAL, SCALE, "learned", engine.rows.found.values())
    assert Found.of(TRIAL, "toy", tmp_path).gate("learned") == "not measured"


def test_pages_say_what_the_rows_say(tmp_path):
    run(tmp_path)
    found = [Found.of(TRIAL, "toy", tmp_path)]
    page, lines = trial_page(TRIAL, found), list(summary_rows(TRIAL, found))
    assert "| `better` | 0.016 | 8.01 | -2.0000 [-2.0000, -2.0000] | 3 | 100 |" in page
    assert "**Not testable on this task.**" in page
    assert lines[0][2:] == [
        "passes",
        "-2.0000 [-2.0000, -2.0000] test error, %",
        "",
        "holds here: better than the baseline",
    ]
    assert [line[1:] for line in lines if "unlearned" in line[0]] == [
        ["3 claims", "plain has learned its rows: fails", "", "", "not testable on this task"]
    ]
    assert trial_page(TRIAL, []).count("Not run yet.") == 1


@pytest.mark.parametrize("best, expected", [(1.0, 1.0), (8.0, 8.0), (0.25, 0.25), (1000.0, 64.0)])
def test_the_search_goes_on_at_an_edge_and_ends(best, expected):
    assert search((1.0, 2.0), lambda value: abs(math.log2(value / best))) == expected


def test_only_rows_of_the_chosen_number_are_reported(tmp_path):
    """A side was reported at 4e-3; the search on more seeds then chose 2e-3. Nothing of the first report is left in the second."""
    run(tmp_path)
    engine, _ = run(tmp_path, scale=replace(SCALE, tuned_on=(100, 101)))
    engine.measure("learned", TRIAL.side("plain"), 4e-3, 0, "eval")
    rows = list(Rows(tmp_path / "toy.toy.jsonl").found.values())
    kept = [
        row
        for row in current_rows(TRIAL, SCALE, rows)
        if (row["side"], row["split"], row["task"]) == ("plain", "eval", "learned")
    ]
    assert [(row["tuned"], row["seed"]) for row in kept] == [(2e-3, 0), (2e-3, 1), (2e-3, 2)]
    unsearched = replace(SCALE, tuned_on=(100, 102))
    assert not [row for row in current_rows(TRIAL, unsearched, rows) if row["split"] == "eval"]


def test_of_equal_figures_another_decides():
    """Errors of few rows are often equal, and the first would win: at 2 it is the loss, and 4 is tried beyond it."""
    seen = []
    found = search((1.0, 2.0), lambda value: seen.append(value) or (1.0 + (value > 2), -value))
    assert (found, seen) == (2.0, [1.0, 2.0, 4.0])


def test_a_search_in_which_all_diverged_says_so():
    with pytest.raises(ValueError, match="every value diverged"):
        search((1.0, 2.0), lambda value: math.inf)


def test_the_rows_of_the_search_neither_train_nor_test():
    """Of digits: 1,438 rows train and 359 test; of the 1,438 a fifth judges the search, and these do not train then."""
    (x, _), (judged, _) = examples("digits", None, "eval")
    (part, _), (held, _) = examples("digits", None, "tune")
    assert (len(x), len(judged), len(part), len(held)) == (1438, 359, 1151, 287)
    assert float(torch.cdist(held, part).min()) > 0
    assert float(torch.cdist(judged, x).min()) > 0


def test_all_trials_tune_on_other_seeds_than_they_report():
    for trial in trials().values():
        names = {side.name for side in trial.sides}
        assert {trial.baseline, *trial.gate.sides, *(claim.side for claim in trial.claims)} <= names
        for scale in trial.settings.values():
            assert len(scale.seeds) >= 3
            assert len(scale.values) == 1 or not set(scale.seeds) & set(scale.tuned_on), trial.name
            assert set(scale.sides) <= names


TINY = {
    "majority": {"data": "digits", "rows": 300, "width": 16, "epochs": 1, "batch_size": 100},
    "majority_text": {
        "data": "python-stdlib",
        "sequence_length": 16,
        "sequences": 20,
        "judged": 8,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "epochs": 1,
        "batch_size": 10,
        "warmup_steps": 1,
    },
    "energynet": {"data": "digits", "rows": 300, "labels": 30},
    "likelihood": {"data": "digits", "passes": 1, "tuning_passes": 1, "chains": 20, "temperatures": 500},
    "incubation": {
        "data": "digits",
        "fraction": 0.05,
        "modules": 2,
        "layers": 4,
        "width": 16,
        "patch": 4,
        "epochs": 4,
        "batch_size": 16,
    },
}


def test_a_pair_of_classes_is_told_from_a_table():
    from benchmarks.support.cifar_pairs import is_pair

    named = {
        name
        for scale in trials()["adanet"].settings.values()
        for task in scale.tasks.values()
        for name in [task["data"]]
    }
    assert {name for name in named if not is_pair(name)} == {
        "sonar",
        "ionosphere",
        "phoneme",
        "mammography",
        "adult-train",
    }
    assert len(named) == 10


@pytest.mark.parametrize("name", ["adanet", "logistic", "network"])
def test_a_side_of_adanets_trial_chooses_by_inner_folds_and_is_judged_outside(name):
    """Of 178 rows of wine a tenth judges."""
    trial = trials()["adanet"]
    task = {"data": "wine", "steps": 2, "rounds": 1}
    found = [trial.fit(task, trial.side(name).options, 0.0, 3, "eval") for _ in range(2)]
    assert found[0] == found[1]
    assert round(found[0]["value"] / 100 * 18, 6).is_integer()
    assert found[0]["chosen"] in range(8)


@pytest.mark.parametrize("name", TINY)
def test_every_side_of_a_trial_runs_and_two_seeds_differ(name):
    trial = trials()[name]
    for side in trial.sides:
        first, again, other = (trial.fit(TINY[name], side.options, 2e-3, seed, "tune") for seed in (0, 0, 1))
        assert 0 <= first["value"] <= 100
        assert first == again, side.name
        assert first != other, side.name


@pytest.mark.parametrize("task", [{"data": "digits", "width": 16}, {"data": "cifar10", "width": 4, "network": "resnet"},
                                  {"data": "cifar10", "width": 4, "network": "resnet18"}])  # fmt: skip
def test_the_head_never_has_kernels(task):
    problem = problem_of(task)
    model = problem.new(0, 0.0)
    many = ms.majority(model, kernels=2, exclude=problem.head)
    several = {
        name.partition(".parametrizations")[0] for name, _ in many.named_parameters() if "parametrizations" in name
    }
    layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    assert layers - several == {problem.head}


@pytest.mark.parametrize("network, seen", [("resnet", 2), ("resnet18", 4)])
def test_the_stem_of_a_residual_network_keeps_the_image_where_it_should(network, seen):
    """32 x 32 pixels: quartered by the stem and twice halved by stages; or whole, and thrice halved."""
    model = problem_of({"data": "cifar10", "width": 4, "network": network}).new(0, 0.0).eval()
    x = torch.zeros(1, 3, 32, 32)
    assert model.body(x).last_hidden_state.shape[-1] == seen
    assert model(x).shape == (1, 10)


def test_augmented_images_are_shifted_by_an_eighth_at_most_or_mirrored():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(400, 1, 1, 1)
    padded = torch.nn.functional.pad(x[:1], (1,) * 4, mode="replicate")[0, 0]
    shifts = [padded[top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    found = augmented(x, ["crop"], torch.Generator().manual_seed(0))[:, 0]
    drawn = [[torch.equal(image, shift) for shift in shifts].index(True) for image in found]
    assert set(drawn) == set(range(9))
    flipped = augmented(x, ["flip"], torch.Generator().manual_seed(0))
    mirrored = [torch.equal(image, x[0].flip(-1)) for image in flipped]
    assert 160 < sum(mirrored) < 240
    assert all(m or torch.equal(image, x[0]) for m, image in zip(mirrored, flipped, strict=True))


def test_sequences_that_judge_a_search_are_others_than_those_of_results():
    (train, following), (judged, _) = sequences("python-stdlib", 16, 50, 20, "eval")
    (again, _), (held, _) = sequences("python-stdlib", 16, 50, 20, "tune")
    assert torch.equal(train, again)
    assert torch.equal(train[:, 1:], following[:, :-1])
    rows = [{tuple(row) for row in part.tolist()} for part in (train, judged, held)]
    assert not rows[1] & rows[2]
    assert train.shape == (50, 16)
    assert judged.shape == held.shape == (20, 16)


def test_labels_are_as_many_of_each_class_and_outnumbered():
    from benchmarks.trials.energynet import drawn

    x, (_, labels), (judged, _) = drawn({"data": "digits", "rows": None, "labels": 50}, 3, "eval")
    assert sorted(labels.tolist()) == sorted([*range(10)] * 5)
    assert (len(x), len(judged)) == (1438, 359)


def test_rows_are_known_by_what_was_asked():
    one = identity(TRIAL.asked({"learned": 1.0}, TRIAL.side("plain"), 1e-3, 0, "eval"))
    assert one != identity(TRIAL.asked({"learned": 1.0}, TRIAL.side("plain"), 1e-3, 0, "tune"))
    assert one != identity(TRIAL.asked({"learned": 2.0}, TRIAL.side("plain"), 1e-3, 0, "eval"))
    assert one != identity(TRIAL.asked({"learned": 1.0}, TRIAL.side("better"), 1e-3, 0, "eval"))


def test_the_sides_of_incubation_cost_the_same():
    """Counted FLOPs, the meta network's and all modules' included; the control of twice the epochs costs twice."""
    trial, costs = trials()["incubation"], {}
    for side in trial.sides:
        costs[side.name] = trial.fit({**TINY["incubation"], "epochs": 20}, side.options, 1e-3, 0, "eval")["flops"]
    whole = costs["end_to_end"]
    assert costs.pop("stochastic_depth") < whole
    assert costs.pop("end_to_end_twice") == pytest.approx(2 * whole, rel=0.05)
    assert costs == pytest.approx(dict.fromkeys(costs, whole), rel=0.1)


def test_a_run_that_diverged_is_worse_than_any_other_in_every_gate():
    """Longer training that diverges does not help; networks that diverge do not beat the logistic regression."""
    learned = [{"seed": seed, "value": 10.0 + seed, "train_accuracy": 100.0} for seed in range(3)]
    better = [row | {"value": row["value"] - 1} for row in learned]
    diverged = [*better[:2], better[2] | {"value": None}]
    incubation, text, adanet = (trials()[name].gate.holds for name in ("incubation", "majority_text", "adanet"))
    for twice, holds in ((diverged, True), (better, False)):
        assert incubation({"end_to_end": learned, "end_to_end_twice": twice}) is holds
        assert text({"plain": learned, "plain_twice": twice}) is holds
        assert adanet({"network": twice, "logistic": learned}) is not holds


def test_the_likelihood_is_that_of_an_enumeration_and_a_killed_fit_goes_on(tmp_path, monkeypatch):
    """Eight units are few enough to sum over all their states."""
    from benchmarks.trials import likelihood
    from meristem.adaptive import RBM
    from meristem.adaptive.rbm.progress import Progress

    rows = likelihood.images("digits")["eval"]
    machine = RBM(8, n_iter=3, random_state=0).fit(likelihood.images("digits")["train"])
    found = likelihood.likelihood(machine, rows, chains=200, count=2000)
    exact = -float(machine.score_samples(rows).mean())
    assert found["value"] == pytest.approx(exact, abs=0.1)
    assert 0 < found["interval"] < 0.5

    monkeypatch.setattr(likelihood, "STATES", tmp_path)
    asked = ({**TINY["likelihood"], "passes": 4}, {"way": "infinite"}, 0.03, 0, "eval")
    whole, passes = likelihood.fit(*asked), []
    assert not list(tmp_path.iterdir())

    def save(progress, record, keep=Progress.save):
        keep(progress, record)
        passes.append(record)
        if len(passes) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", save)
    with pytest.raises(KeyboardInterrupt):
        likelihood.fit(*asked)
    assert likelihood.fit(*asked) == whole
    assert len(passes) == 4


def test_the_gate_of_the_likelihood_wants_every_estimate_to_a_nat():
    holds = trials()["likelihood"].gate.holds
    sharp, blunt, unknown = ([{"interval": width}] for width in (0.9, 1.1, None))
    assert holds({"rbm_500": sharp, "infinite": sharp})
    assert not holds({"rbm_500": sharp, "infinite": blunt})
    assert not holds({"rbm_500": unknown, "infinite": sharp})


def test_equal_counts_of_errors_are_equal_whatever_their_rounding():
    """Five means of float32 percentages of 21 errors: the lower loss decides, not the sixth digit."""
    rows = {1e-3: (3.0, 0.9), 2e-3: (1.4634156, 0.0642), 4e-3: (1.4634144, 0.0721), 8e-3: (1.8, 0.5)}
    scale = replace(SCALE, values=tuple(rows))
    found = chosen(
        scale, TRIAL.side("plain"), lambda value, seed: dict(zip(("value", "test_loss"), rows[value], strict=True))
    )
    assert found == 2e-3


def test_a_seed_that_is_not_reported_does_not_count(tmp_path):
    run(tmp_path)
    run(tmp_path, seeds=(0, 7))
    rows = Rows(tmp_path / "toy.toy.jsonl").found.values()
    assert {row["seed"] for row in rows if row["split"] == "eval"} == {0, 1, 2, 7}
    assert set(Found.of(TRIAL, "toy", tmp_path).values("learned", "plain")) == {0, 1, 2}


def test_a_trial_of_which_only_the_search_is_known_is_in_the_summary(tmp_path):
    engine = Engine(TRIAL, SCALE, Rows(tmp_path / "toy.toy.jsonl"), tmp_path / "out")
    engine.measure("learned", TRIAL.side("plain"), 1e-3, 100, "tune")
    lines = list(summary_rows(TRIAL, [Found.of(TRIAL, "toy", tmp_path)]))
    assert [line[1:] for line in lines] == [["3 claims", "not measured yet", "", "", "not measured yet"]] * 2


def test_a_kill_while_the_likelihood_is_estimated_loses_no_training(tmp_path, monkeypatch):
    from benchmarks.trials import likelihood
    from meristem.adaptive.rbm.progress import Progress

    monkeypatch.setattr(likelihood, "STATES", tmp_path)
    asked = (TINY["likelihood"], {"way": "infinite"}, 0.03, 0, "eval")
    with monkeypatch.context() as killed:
        killed.setattr(likelihood, "likelihood", lambda *given, **effort: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            likelihood.fit(*asked)
    monkeypatch.setattr(Progress, "save", lambda *given: pytest.fail("it trained again"))
    assert likelihood.fit(*asked)["value"] > 0
