"""Tables that were misread, refused for no reason, or predicted from in silence: the right reading of each."""

import warnings

import numpy as np
import pytest

import meristem as ms
from meristem.adaptive import AdaNetClassifier, AdaNetRegressor, EnergyNetClassifier, EnergyNetRegressor, classes
from meristem.adaptive.learn import learn, result
from meristem.adaptive.learned import fitted_encoder
from meristem.adaptive.tables import build_encoder, encode, open_table
from meristem.adaptive.tables.columns import describe_column
from meristem.adaptive.tables.header import looks_like_header
from meristem.adaptive.tables.table import of_frame
from meristem.adaptive.tables.values import number_of

pd = pytest.importorskip("pandas")

QUICK = {"width": 4, "max_rounds": 1, "max_steps": 10}


def lines(header, rows):
    return "".join(",".join(map(str, row)) + "\n" for row in [header, *rows])


# -- words that look like numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [("E10", "E11"), (".E1", "+e11"), ("e0", "e1")])
def test_codes_of_e_and_digits_are_words(write, low, high):
    """They were exponents without a number, and `float` failed on them."""
    rows = [(i * 0.5, (low, high, "I20")[i % 3], (low, high)[i % 2]) for i in range(60)]
    table = open_table(write(lines(("age", "diagnosis", "t"), rows)))
    assert (table.columns[1].kind, table.columns[1].said) == ("category", "3 categories: one-hot")
    assert table.task == "classification"
    assert table.y.tolist()[:2] == [low, high]
    assert np.isnan([number_of(low), number_of(f"-{high}", ",")]).all()
    assert [number_of(word) for word in (".5", "5.", "1e3", "-.5e1")] == [0.5, 5, 1000, -5]


# -- one value and gaps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["X", "True", "2024-03-01", "10", "0"])
def test_a_value_or_nothing_is_one_and_zero(write, value):
    """The column was left out as "one value in all rows", where it said everything."""
    rows = [(i * 7 % 13, value if i % 3 == 0 else "", "yes" if i % 3 == 0 else "no") for i in range(60)]
    table = open_table(write(lines(("a", "marked", "t"), rows)))
    assert table.columns[1].said == f"{value!r} or empty, 66.7% empty: 1 and 0"
    encoder = build_encoder(table.columns, table.task)
    numbers = fitted_encoder(encoder, table.x, table.y, table.columns)
    assert set(numbers.columns) == {"a", "marked"}
    assert numbers["marked"].tolist() == [float(i % 3 == 0) for i in range(60)]
    new = pd.DataFrame({"a": [1, 2, 3, 4], "marked": [value, None, False, np.nan]})
    assert encode(encoder, new, table.columns)["marked"].tolist() == [1, 0, 0, 0]


def test_a_column_that_really_has_one_value_is_left_out():
    column = describe_column("c", pd.Series(["X"] * 9))
    assert (column.kind, column.said) == ("left out", "one value in all rows")
    column = describe_column("c", pd.Series([None] * 9))
    assert (column.kind, column.said) == ("left out", "no values")


# -- numbers in a header ------------------------------------------------------------------------------------------------------


def frame_of(columns):
    draw = np.random.default_rng(0)
    return pd.DataFrame({k: draw.normal(size=60).round(3) for k in range(columns)})


WITH_NUMBERS_AS_NAMES = {
    "years": (
        lines(("region", 2019, 2020, 2021), [(f"r{i % 4}", i * 7, i * 9, i * 11 + 5) for i in range(60)]),
        "2019",
    ),
    "every ten years": (lines((1990, 2000, 2010), [(i * 7 % 90, i % 9, i % 5) for i in range(60)]), "1990"),
    "one year": (lines(("region", 2019), [(f"r{i % 4}", i * 7) for i in range(60)]), "region"),
    "counted": (lines((0, 1, 2, "label"), [(i / 8, i / 4, i % 3, "in" if i % 2 else "out") for i in range(60)]), "2"),
    "fractions": (frame_of(3).to_csv(index=False), "1"),
    "the index of pandas": (frame_of(3).to_csv(), "0"),
    "whole numbers with the index of pandas": ((frame_of(3) * 1000).astype(int).to_csv(), "1"),
    "many whole numbers": ((frame_of(5) * 1000).astype(int).to_csv(index=False), "3"),
}


@pytest.mark.parametrize("case", WITH_NUMBERS_AS_NAMES)
def test_a_header_of_numbers(write, case):
    """The names were taken for the first row of values."""
    text, name = WITH_NUMBERS_AS_NAMES[case]
    table = open_table(write(text))
    assert table.notes[0].endswith("a header")
    assert len(table.x) == 60
    assert name in table.names


@pytest.mark.parametrize(
    "rows",
    [
        ["1,2,3", "4,5,6", "7,8,9"],
        ["0,1", "0.5,1.25", "1,1.5"],  # "1" for 1.0
        ["0,1,a", "1,1,a", "0,0,b", "1,0,b"],
        ["0,1,rare", "1,1,a", "0,0,a", "0,1,b", "1,1,b"],
        ["1999,2001", "2003,2004", "2005,1998"],
        ["2004,1999,a", "3,4,a", "5,6,b"],
        ["0,1,2,3", "1,2,3,0", "2,3,0,1", "0,1,2,3"],
    ],
)
def test_a_first_row_of_values(rows):
    assert not looks_like_header([row.split(",") for row in rows])


# -- prediction ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes():
    """A table with a number, a date and the numbers 3 size + 1."""
    size = np.random.default_rng(0).normal(size=80).round(3)
    days = [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(80)]
    return pd.DataFrame({"size": size, "day": days, "t": (3 * size + 1).round(3)})


@pytest.fixture(scope="module")
def learned(sizes, tmp_path_factory):
    return learn("adanet", of_frame(sizes, "t"), tmp_path_factory.mktemp("learned") / "out", QUICK)


def test_a_column_that_cannot_be_read_is_named(learned, sizes):
    """Every prediction was that of the median, and nothing was said."""
    new = sizes.head(4).assign(size=["abc", "b", "c", "d"], day=["x", "2024-01-02", None, "y"])
    with pytest.warns(UserWarning, match="read as missing") as said:
        learned.predict(new)
    assert [str(one.message) for one in said] == [
        "column 'size': none of 4 values is a number ('abc', 'b', 'c', ...); all are read as missing",
        "column 'day': only 1 of 3 values is a date ('x', 'y'); the others are read as missing",
    ]
    assert said[0].filename == __file__


def test_names_of_numbers_over_few_rows(sizes, tmp_path, write):
    """A file of two rows does not show that its first row is a header, but the learned names do."""
    frame = pd.DataFrame({"7": sizes["size"], "9": sizes["size"] ** 2, "t": sizes["t"]})
    learned = learn("adanet", of_frame(frame, "t"), tmp_path / "out", QUICK)
    new = write("7,9\n1,1\n-2,4\n", "new.csv")
    np.testing.assert_array_equal(learned.predict(new), learned.predict(pd.DataFrame({"7": [1, -2], "9": [1, 4]})))


def test_nothing_is_said_of_gaps_and_readable_values(learned, sizes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.predict(sizes)
        learned.predict(sizes.astype(str))
        learned.predict(sizes.assign(size=None))


def test_decimal_commas_give_the_same_predictions(learned, sizes, tmp_path):
    """They were read as points between thousands or as gaps, where the network was learned from points."""
    expected = learned.predict(sizes)
    sizes.to_csv(tmp_path / "commas.csv", index=False, sep=";", decimal=",")
    with pytest.warns(
        UserWarning, match=r"commas.csv has decimal commas, and the table that was learned has decimal points"
    ):
        np.testing.assert_array_equal(learned.predict(tmp_path / "commas.csv"), expected)
    words = pd.read_csv(tmp_path / "commas.csv", sep=";")
    with pytest.warns(UserWarning, match=r"column 'size', with words such as '-?0,\d+', has decimal commas") as said:
        np.testing.assert_array_equal(learned.predict(words), expected)
    assert said[0].filename == __file__


def test_a_network_learned_from_commas_reads_all_forms(sizes, tmp_path):
    sizes.to_csv(tmp_path / "commas.csv", index=False, sep=";", decimal=",")
    sizes.to_csv(tmp_path / "points.csv", index=False)
    sizes.to_csv(tmp_path / "points.txt", index=False, sep=";")
    learned = learn("adanet", open_table(str(tmp_path / "commas.csv")), tmp_path / "out", QUICK)
    expected = learned.predict(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(learned.predict(tmp_path / "commas.csv"), expected)
        np.testing.assert_array_equal(learned.predict(tmp_path / "points.csv"), expected)
        np.testing.assert_array_equal(learned.predict(pd.read_csv(tmp_path / "commas.csv", sep=";")), expected)
    with pytest.warns(
        UserWarning, match="points.txt has decimal points, and the table that was learned has decimal commas"
    ):
        np.testing.assert_array_equal(learned.predict(tmp_path / "points.txt"), expected)


# -- targets ------------------------------------------------------------------------------------------------------------------


def test_the_linear_model_keeps_the_digits_of_a_large_target(sizes, tmp_path):
    """Its R^2 was -86196 for y + 1e9, in float32."""
    one = learn("adanet", of_frame(sizes, "t"), tmp_path / "one", QUICK)
    large = learn("adanet", of_frame(sizes.assign(t=sizes["t"] + 1e9), "t"), tmp_path / "large", QUICK)
    assert one.metrics["linear_test_score"] > 0.99
    for score in ("linear_test_score", "test_score", "train_score"):
        assert large.metrics[score] == pytest.approx(one.metrics[score], abs=1e-4)


@pytest.mark.parametrize(
    ("factor", "said"),
    [(1e300, "has numbers as large as"), (1e-320, "differs by .* at most"), (1e-200, "differs by .* at most")],
)
@pytest.mark.parametrize("kind", [AdaNetRegressor, EnergyNetRegressor])
def test_targets_without_squares_are_refused(sizes, kind, factor, said):
    """The scores were NaN, -inf, or 1.0 from a network without a unit."""
    y = sizes["t"].to_numpy() * factor
    with pytest.raises(ms.MeristemError, match=f"column 't': the target {said}"):
        of_frame(sizes.assign(t=y), "t", "regression")
    with pytest.raises(ms.MeristemError, match=f"y {said}"):
        kind().fit(sizes[["size"]], y)


def test_targets_of_unusual_size_are_learned(sizes):
    x, y = sizes[["size"]], sizes["t"].to_numpy()
    for factor in (1e90, 1e-90):
        assert AdaNetRegressor(random_state=0, **QUICK).fit(x, y * factor).score(x, y * factor) > 0.5


# -- OUT ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a file", "a foreign folder", "below a file"])
def test_what_may_not_be_replaced_is_said_before_training(sizes, tmp_path, monkeypatch, what):
    """It was said after the training, and the state of the training stayed."""
    out = tmp_path / "out"
    if what == "a foreign folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    place = out / "deeper" if what == "below a file" else out
    monkeypatch.setattr(AdaNetRegressor, "fit", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ms.MeristemError, match=r"is a file|holds mine.txt|which is a file"):
        learn("adanet", of_frame(sizes, "t"), place, QUICK, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# -- what is no table, no target, no weight -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["to_numpy", "to_dict", "list", "series", "none", "empty"])
def test_what_cannot_be_predicted_from(learned, sizes, form):
    """These were errors of pandas, numpy and scikit-learn."""
    forms = {"list": [1, 2], "series": sizes.iloc[0], "none": None, "empty": sizes.head(0)}
    rows = forms[form] if form in forms else getattr(sizes, form)()
    said = "no rows to predict from" if form == "empty" else f"from a pandas data frame .* got {type(rows).__name__}"
    with pytest.raises(ms.MeristemError, match=said):
        learned.predict(rows)


X = np.random.default_rng(0).normal(size=(40, 2))
FEW_STEPS = {
    AdaNetClassifier: QUICK,
    AdaNetRegressor: QUICK,
    EnergyNetClassifier: {"structure_iter": 1, "max_epochs": 1},
}


@pytest.mark.parametrize("kind", [AdaNetRegressor, EnergyNetRegressor])
@pytest.mark.parametrize("y", [np.array(["1.5", "2"] * 20), ["1.5", "2"] * 20, pd.Series(["1.5", "2"] * 20)])
def test_words_are_no_targets_of_a_regression(kind, y):
    with pytest.raises(ms.MeristemError, match=r"needs numbers, got words such as '1\.5'"):
        kind().fit(X, y)


@pytest.mark.parametrize("kind", [AdaNetClassifier, EnergyNetClassifier])
def test_labels_with_gaps_or_of_two_types(kind):
    with pytest.raises(ms.MeristemError, match="20 of 40 labels are missing"):
        kind().fit(X, np.array(["a", None] * 20, dtype=object))
    with pytest.raises(ms.MeristemError, match=r"of several types \(int, str\)"):
        kind().fit(X, np.array(["a", 1] * 20, dtype=object))
    with pytest.raises(ValueError, match=r"found 1 class: 0$"):
        kind().fit(X, np.zeros(40, dtype=int))


def test_rows_without_a_label_among_words():
    y = np.array(["a", "b", -1, -1] * 10, dtype=object)
    fitted = EnergyNetClassifier(random_state=0, **FEW_STEPS[EnergyNetClassifier]).fit(X, y)
    assert fitted.classes_.tolist() == ["a", "b"]


@pytest.mark.parametrize("kind", [AdaNetClassifier, AdaNetRegressor, EnergyNetClassifier, EnergyNetRegressor])
def test_a_single_row_of_weight(kind):
    with pytest.raises(ms.MeristemError, match="of all rows but one are zero; at least two rows must count"):
        kind().fit(X, np.arange(40) % 2, sample_weight=np.eye(40)[3])


@pytest.mark.parametrize("kind", [AdaNetClassifier, EnergyNetClassifier])
def test_a_state_below_a_file(kind, tmp_path):
    (tmp_path / "file").write_text("mine")
    place = tmp_path / "file" if kind is EnergyNetClassifier else tmp_path / "file" / "state"
    with pytest.raises(ms.MeristemError, match="cannot keep the state of the training at"):
        kind(checkpoint=str(place), random_state=0, **FEW_STEPS[kind]).fit(X, np.arange(40) % 2)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_long_text_refuses_no_table(write):
    """Python's csv reads 131,072 characters at most in a field by default."""
    rows = [(i * 0.5, "word " * 30_000 if i == 250 else f"text {i}", "yes" if i % 2 else "no") for i in range(260)]
    table = open_table(write(lines(("a", "text", "t"), rows)))
    assert len(table.x) == 260
    assert len(table.x["text"].iloc[250]) == 150_000 - 1
    assert table.columns[1].kind == "left out"


# -- words --------------------------------------------------------------------------------------------------------------------


def test_classes_are_counted(write, tmp_path):
    names = ["rare"] * 4 + ["common"] * 32 + ["some"] * 14
    table = open_table(write(lines(("a", "t"), [(i * 7 % 50 / 2, name) for i, name in enumerate(names)])))
    assert table.notes[1] == "target 't': classification, 3 classes: common 32, some 14, rare 4"
    metrics = learn("adanet", table, tmp_path / "out", QUICK, test_share=0.5).metrics
    assert metrics["classes"] == {"common": 32, "some": 14, "rare": 4}
    assert metrics["largest_class"] == {"class": "common", "share": 0.64, "test_score": 0.64}
    assert result(metrics).endswith("; always 'common', 64.0% of the rows: 0.6400)")
    assert "rows of class 'rare'</td><td class=\"n\">4<" in (tmp_path / "out" / "report.html").read_text().replace(
        "&#x27;", "'"
    )


def test_ten_classes_are_named():
    y = np.repeat(np.arange(14), np.arange(14) + 1)
    assert classes.said(y).startswith("14 classes: 13 14, 12 13, 11 12,")
    assert classes.said(y).endswith("4 5, and 4 more")


def test_small_numbers_in_words(learned, tmp_path):
    metrics = {"measure": "R^2", "test_rows": 1, "test_score": 0.5, "linear_test_score": 0.25}
    assert result(metrics) == "R^2 on 1 test row: 0.5000 (a linear model: 0.2500)"
    learned.estimator.save(tmp_path / "model")
    with pytest.raises(ms.MeristemError, match="holds an AdaNetRegressor, not an EnergyNetClassifier"):
        EnergyNetClassifier.load(tmp_path / "model")
    with pytest.raises(ms.MeristemError, match="'groß', 'klein' are no numbers, and"):
        of_frame(pd.DataFrame({"a": range(8), "t": ["groß", "klein"] * 4}), "t", "regression")
