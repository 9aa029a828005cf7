"""From a table to a learned network: reading, the one command, what it leaves, what it refuses."""

import json

import numpy as np
import pytest
from command_line import meristem

import meristem as ms
from meristem.adaptive import AdaNetClassifier, EnergyNetRegressor
from meristem.adaptive.learn import estimator_for, learn, new_estimator
from meristem.adaptive.tables import open_table

WRITTEN = {"model", "encoder.skops", "table.json", "metrics.json", "summary.txt", "structure.png", "report.html"}


@pytest.fixture
def csv_file(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 3))
    names = np.where((x**2).sum(1) > 2.4, "far", "near")
    lines = ["a,kind,b,c", *(f"{row[0]},{name},{row[1]},{row[2]}" for row, name in zip(x, names, strict=True))]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_file(csv_file):
    table = open_table(str(csv_file), "kind")
    assert table.names == ["a", "b", "c"]
    assert table.x.shape == (120, 3)
    assert set(table.y) == {"far", "near"}
    assert table.is_classification
    assert not open_table("diabetes").is_classification
    assert open_table("digits").x.to_numpy().max() == 1


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("a,b\n1,2\n3,4\n", "c", "no column 'c'"),
        ("a,b\n1,2\n3\n5,6\n", None, "row 3: 1 fields, the header has 2"),
        ("a,b\n1,2\n", None, "at least 2 are needed"),
        ("b\n1\n2\n", None, "no column except 'b'"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, target, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ms.MeristemError, match=message):
        open_table(str(path), target)


def test_a_table_that_is_not_there():
    with pytest.raises(ms.MeristemError, match="did you mean 'breast_cancer'"):
        open_table("breast-cancer")
    with pytest.raises(ms.MeristemError, match="for CSV files only"):
        open_table("wine", "alcohol")


def test_the_command_learns_writes_and_replays(csv_file, tmp_path):
    options = ["--target", "kind", "--option", "width=8", "--option", "max_rounds=2"]
    done = meristem("learn", "adanet", csv_file, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "round 1: depth 1" in done.stderr
    assert "accuracy on 24 test rows" in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir() if p.name[0] != "."} == WRITTEN
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    model = AdaNetClassifier.load(tmp_path / "out" / "model")
    assert set(model.classes_) == {"far", "near"}
    learned = learn("adanet", open_table(str(csv_file), "kind"), tmp_path / "again", {"width": 8, "max_rounds": 2})
    assert learned.metrics["test_score"] == metrics["test_score"]


def test_regression_by_energynet(tmp_path):
    learned = learn(
        "energynet", open_table("diabetes"), tmp_path / "out", {"structure_iter": 3, "max_epochs": 30, "max_layers": 1}
    )
    assert learned.metrics["measure"] == "R^2"
    assert EnergyNetRegressor.load(tmp_path / "out" / "model").predict(open_table("diabetes").x[:3]).shape == (3,)


def test_a_killed_run_goes_on(csv_file, tmp_path, monkeypatch):
    """The second round dies; the same call again makes only what is missing, and ends with the same network."""
    from meristem.adaptive.adanet import search

    table, options = open_table(str(csv_file), "kind"), {"width": 8, "max_rounds": 3, "min_improvement": 0.0}
    whole = learn("adanet", table, tmp_path / "whole", options)
    proposals, made = search.propose, []

    def dying(*arguments):
        made.append(arguments)
        if len(made) > 1:
            raise KeyboardInterrupt
        return proposals(*arguments)

    monkeypatch.setattr(search, "propose", dying)
    with pytest.raises(KeyboardInterrupt):
        learn("adanet", table, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    made.clear()
    monkeypatch.setattr(search, "propose", lambda *a: made.append(a) or proposals(*a))
    resumed = learn("adanet", table, tmp_path / "out", options)
    assert resumed.metrics == whole.metrics
    assert all(len(arguments[2]) > 0 for arguments in made)  # no proposal beside an empty ensemble again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adanett", "wine"), "did you mean 'adanet'"),
        (("adanet", "wine", "--option", "widht=3"), "did you mean 'width'"),
        (("adanet", "wine", "--option", "variant=Q"), "known: base, R, P, D, SD, CVX"),
        (("adanet", "wine", "--option", "width=wide"), "width is a whole number"),
        (("adanet", "wine", "--test-share", "2"), "between 0 and 1"),
    ],
)
def test_bad_calls_exit_2(tmp_path, arguments, message):
    done = meristem("learn", *arguments[:2], tmp_path / "out", *arguments[2:])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_options_of_both_kinds_are_checked():
    assert new_estimator("energynet", True, {"beta": 3}).beta == 3
    with pytest.raises(ms.MeristemError, match="no option 'random_state'"):
        new_estimator("energynet", True, {"random_state": 3})
    assert new_estimator("adanet", True, {"embedding": "none"}).embedding == "none"  # a word, and not None


def test_small_tables_have_many_short_rounds_and_large_ones_few():
    table = open_table("breast_cancer")
    small, large = (estimator_for("adanet", table, rows, {}) for rows in (800, 80_000))
    assert (small.max_rounds, small.subsample, small.max_steps) == (8, 0.6, 15 * 800 // 128)
    assert (large.max_rounds, large.subsample, large.max_steps) == (4, 1.0, 1500)
    assert estimator_for("adanet", table, 80_000, {"max_rounds": 2}).max_rounds == 2
