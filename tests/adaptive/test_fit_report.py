"""What a fit says of itself: what each block adds, calibration, importance of columns, one page that needs nothing else."""

import re

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from meristem.adaptive import AdaNetRegressor, EnergyNetClassifier, InfiniteRBM, evidence
from meristem.adaptive.evidence import additions, calibration, importances, loss_of
from meristem.adaptive.learn import learn
from meristem.adaptive.learned import Learned
from meristem.adaptive.report import page
from meristem.adaptive.tables import encode, open_table
from meristem.adaptive.tables.table import of_frame

pd = pytest.importorskip("pandas")
FAST = {"max_steps": 40, "width": 8, "max_rounds": 3, "min_improvement": 0}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A table in which one number and one word decide, and another number says nothing."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"age": draw.normal(40, 10, 400), "job": draw.choice(["<baker>", "smith"], 400)})
    frame["noise"] = draw.normal(size=400)
    frame["insured"] = np.where((frame["age"] > 40) ^ (frame["job"] == "smith"), "yes", "no")
    folder = tmp_path_factory.mktemp("people")
    frame.to_csv(folder / "people.csv", index=False)
    table = open_table(str(folder / "people.csv"))
    return learn("adanet", table, folder / "out", FAST), table, folder / "out"


def test_the_first_blocks_alone(people):
    learned, table, _ = people
    x = learned.numbers(table.x)
    found = additions(learned.estimator, x, table.y)
    module = learned.estimator.module_
    assert [one.parts for one in found] == list(range(1, len(module.blocks) + 1))
    import torch

    inputs = torch.as_tensor(x.to_numpy(), dtype=torch.float64)
    first = module.units(inputs)[0][-1] @ module.output_weights[0]
    said = learned.estimator.classes_[(first[:, 0] > 0).long().numpy()]
    assert found[0].score == accuracy_score(table.y, said)
    assert found[-1].score == learned.estimator.score(x, table.y)
    assert found[-1].loss == loss_of(learned.estimator, x, table.y) < found[0].loss
    assert learned.estimator.score(x, table.y) == found[-1].score  # nothing of the estimator has changed


def test_importance_is_of_columns_and_finds_those_that_decide(people):
    learned, table, _ = people
    found = {one.column: one.fall for one in importances(learned, table.x, table.y)}
    assert list(found)[-1] == "noise"
    assert found["age"] > 0.3 < found["job"]
    assert abs(found["noise"]) < 0.05


def test_exchanged_numbers_are_exchanged_values(people):
    """What `importances` relies on: the encoder reads rows one by one."""
    learned, table, _ = people
    order = np.random.default_rng(1).permutation(len(table.y))
    for column, features in (("age", ["age"]), ("job", [name for name in learned.numbers(table.x) if "job" in name])):
        frame = table.x.copy()
        frame[column] = frame[column].to_numpy()[order]
        changed = encode(learned.encoder, table.x, learned.columns)
        changed[features] = changed[features].to_numpy()[order]
        pd.testing.assert_frame_equal(encode(learned.encoder, frame, learned.columns), changed)


def test_the_features_of_each_column(people):
    learned, table, _ = people
    x = learned.numbers(table.x)
    columns = [column.name for column in learned.columns if column.kind != "left out"]
    found = evidence._features_of(learned, table.x, x, columns)
    assert list(found) == columns
    order = np.random.default_rng(1).permutation(len(table.y))
    for column, features in found.items():
        frame = table.x.assign(**{column: table.x[column].to_numpy()[order]})
        changed = (encode(learned.encoder, frame, learned.columns) != x).any()
        assert features == list(x.columns[changed])
        assert features


def test_a_wide_table_is_encoded_a_few_times(tmp_path, monkeypatch):
    """It was encoded once for each of its columns: the report of 1,500 columns took an hour."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(400, 300)), columns=[f"f{k}" for k in range(300)])
    frame["t"] = np.where(frame["f7"] > 0, "yes", "no")
    table = of_frame(frame, "t")
    learned = learn("adanet", table, tmp_path / "out", {"width": 8, "max_rounds": 1, "max_steps": 100})
    times = []
    monkeypatch.setattr(evidence, "encode", lambda *given: times.append(1) or encode(*given))
    found = importances(learned, table.x, table.y)
    assert len(found) == 50
    assert found[0].column == "f7"
    assert "for the 50 of 300 columns" in (tmp_path / "out" / "report.html").read_text()
    assert len(times) == 1 + 9  # 300 has nine binary digits


def test_calibration_by_hand():
    class Says:
        classes_ = np.array(["a", "b"])

        def predict_proba(self, x):
            return np.array([[0.95, 0.05]] * 4 + [[0.35, 0.65]] * 2)

    found = calibration(Says(), None, np.array(["a", "a", "a", "b", "b", "a"]))
    np.testing.assert_allclose(found.said, [0.65, 0.95])
    np.testing.assert_allclose(found.held, [0.5, 0.75])
    assert found.rows.tolist() == [2, 4]
    assert found.error == pytest.approx((2 * 0.15 + 4 * 0.2) / 6)


def test_the_page_stands_alone_and_says_what_was_measured(people):
    learned, table, folder = people
    text = (folder / "report.html").read_text()
    for heading in (
        "Structure",
        "What each block added",
        "Rounds",
        "Calibration",
        "How much each column matters",
        "The table",
    ):
        assert f"<h2>{heading}" in text
    assert f"{learned.metrics['test_score']:.4g}" in text
    assert not re.findall(r"""<(?:script|img|link)[^>]*(?:src|href)=["']http""", text)
    assert "<baker>" not in text
    assert "age</td><td>number: scaled" in text
    again = Learned.load(folder)
    rows = slice(0, 80)
    assert "What each block added" in page(again, table.x[rows], table.y[rows])  # a loaded one, too


@pytest.mark.parametrize(("kind", "source"), [("adanet", "diabetes"), ("energynet", "iris")])
def test_pages_of_regressions_and_of_energynet(kind, source, tmp_path):
    options = FAST if kind == "adanet" else {"structure_iter": 2, "max_epochs": 3}
    learn(kind, open_table(source), tmp_path / "out", options)
    text = (tmp_path / "out" / "report.html").read_text()
    assert ("Predicted and true values" if kind == "adanet" else "What each layer added") in text
    assert (
        "nan" not in re.sub(r"<svg.*?</svg>|<style.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL).lower()
    )


def test_names_of_features_and_diagrams(people):
    learned, _, folder = people
    assert learned.get_feature_names_out().tolist() == learned.metrics["features"] == ["age", "noise", "job_smith"]
    assert Learned.load(folder).get_feature_names_out().tolist() == learned.metrics["features"]
    drawn = learned._repr_html_()
    assert "sk-estimator" in drawn
    assert "AdaNetClassifier" in drawn
    assert "OneHotEncoder" in drawn
    for estimator in (AdaNetRegressor(), EnergyNetClassifier(), InfiniteRBM()):
        assert type(estimator).__name__ in estimator._repr_html_()


def test_machines_name_their_units():
    x = pd.DataFrame(np.random.default_rng(0).random((40, 3)), columns=list("abc"))
    machine = InfiniteRBM(n_iter=2, gibbs_steps=1, random_state=0).set_output(transform="pandas").fit(x)
    names = [f"infiniterbm{k}" for k in range(machine.n_components_)]
    assert machine.get_feature_names_out().tolist() == names
    assert list(machine.transform(x).columns) == names
