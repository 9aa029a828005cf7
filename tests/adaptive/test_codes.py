"""Categories that look like numbers: they stay as they are written, in the table that is learned and in later ones."""

import json
import warnings

import numpy as np
import pytest
from command_line import meristem

from meristem.adaptive.learn import learn
from meristem.adaptive.tables import open_table
from meristem.errors import MeristemError

pd = pytest.importorskip("pandas")

QUICK = {"width": 16, "max_rounds": 1, "max_steps": 200, "adanet_lambda": 1e-4, "embedding": "none"}


@pytest.fixture(scope="module")
def rows():
    """The code alone decides, and no number says which: "01" is yes, and "1" no."""
    generator = np.random.default_rng(0)
    code = generator.choice(["01", "1", "02", "2"], 400)
    return pd.DataFrame(
        {"id": generator.integers(10**9, size=400), "code": code, "x": generator.normal(size=400)}
    ).assign(answer=np.where(np.isin(code, ["01", "2"]), "yes", "no"))


def learned(table, out):
    return learn("adanet", table, out, QUICK)


def written(rows, path):
    rows.to_csv(path, index=False)
    return path


def test_a_file_of_fewer_kinds_of_codes_is_read_as_the_learned_one(rows, tmp_path):
    """Where all codes of a file are digits, they were read as numbers, and "01" became an unknown "1"."""
    mixed = rows.assign(code=rows["code"].where(rows.index % 10 > 1, "A7"))
    model = learned(open_table(str(written(mixed, tmp_path / "t.csv"))), tmp_path / "out")
    digits = mixed[mixed["code"] != "A7"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.predict(written(digits.drop(columns="answer"), tmp_path / "new.csv"))
    assert (found == digits["answer"]).all()


def test_a_column_is_of_categories_where_the_user_says_so(rows, tmp_path):
    path = str(written(rows, tmp_path / "t.csv"))
    assert open_table(path).columns[1].kind == "number"
    table = open_table(path, categories=["code"], leave_out=["1"])
    assert [(column.name, column.kind) for column in table.columns] == [
        ("id", "left out"),
        ("code", "category"),
        ("x", "number"),
    ]
    assert set(table.x["code"]) == {"01", "1", "02", "2"}
    model = learned(table, tmp_path / "out")
    assert not any("id" in name for name in model.get_feature_names_out())
    loaded = type(model).load(tmp_path / "out")
    assert (loaded.predict(path) == rows["answer"]).all()
    with pytest.warns(UserWarning, match="column 'code' has numbers, and categories such as '01' were learned"):
        loaded.predict(pd.read_csv(path))


def test_a_column_of_codes_that_all_differ_is_learned_if_asked(tmp_path):
    rows = pd.DataFrame({"code": [f"{i:03}" for i in range(40)], "x": range(0, 120, 3), "y": ["a", "b"] * 20})
    table = open_table(str(written(rows, tmp_path / "t.csv")), categories=["code"])
    assert table.columns[0].kind == "many categories"
    assert table.columns[0].said == "40 categories, as asked: encoded by the target"


def test_categories_that_were_never_seen_are_said(rows, tmp_path):
    model = learned(open_table(str(written(rows, tmp_path / "t.csv")), categories=["code"]), tmp_path / "out")
    new = rows.assign(code=["x1"] * 300 + ["01"] * 100)
    with pytest.warns(
        UserWarning, match=r"column 'code': 300 of 400 values are none of .*'x1'; learned: '01', '02', '1', \.\.\."
    ):
        model.predict(new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(rows.assign(code=["x1"] * 100 + ["01"] * 300))


@pytest.mark.parametrize("words", [("true", "false", ""), ("TRUE", "FALSE"), ("True", "False", "")])
def test_true_and_false_are_the_same_in_any_spelling_and_with_gaps(tmp_path, words):
    """pandas reads them as booleans where nothing is missing, and a frame may hold the words."""
    rows = pd.DataFrame({"c": list(words) * 60, "x": np.arange(60 * len(words)) % 7})
    rows["answer"] = np.where(rows["c"] == words[0], "yes", "no")
    path = written(rows, tmp_path / "t.csv")
    model = learned(open_table(str(path)), tmp_path / "out")
    whole = rows[rows["c"] != ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (model.predict(path) == rows["answer"]).all()
        assert (model.predict(written(whole, tmp_path / "whole.csv")) == whole["answer"]).all()
        assert (model.predict(pd.read_csv(path, dtype=str)) == rows["answer"]).all()


@pytest.mark.parametrize("asked, message", [
    ({"categories": ["answer"]}, "column 'answer' is in target and in categories; it can be in one of them"),
    ({"categories": ["code"], "leave_out": ["2"]}, "column 'code' is in categories and in leave_out"),
    ({"leave_out": ["cod"]}, "no column 'cod'; did you mean 'code'"),
])  # fmt: skip
def test_bad_requests(rows, tmp_path, asked, message):
    with pytest.raises(MeristemError, match=message):
        open_table(str(written(rows, tmp_path / "t.csv")), **asked)


def test_a_decimal_comma_does_not_change_codes(tmp_path):
    """With a decimal comma "01" in a column of codes became "1"."""
    rows = "".join(
        f"{code};{i / 7:.2f}".replace(".", ",") + f";{'yes' if code == '01' else 'no'}\n"
        for i, code in enumerate(["01", "1", "A"] * 40)
    )
    path = tmp_path / "t.csv"
    path.write_text("code;x;y\n" + rows)
    table = open_table(str(path))
    assert set(table.x["code"]) == {"01", "1", "A"}
    assert (learned(table, tmp_path / "out").predict(path) == table.y).all()


def test_the_command_asks_for_categories(rows, tmp_path):
    options = [text for key, value in QUICK.items() for text in ("--option", f"{key}={value}")]
    asked = ["--category", "code", "--leave-out", "1", "--json"]
    result = meristem("learn", "adanet", written(rows, tmp_path / "t.csv"), tmp_path / "out", *asked, *options)
    assert result.returncode == 0, result.stderr
    features = json.loads(result.stdout)["metrics"]["features"]
    assert features == ["x", "code_01", "code_02", "code_1", "code_2"]


def test_a_frame_is_read_as_the_file_is(tmp_path):
    """pandas keeps the spaces after commas and "?", so that every category of the frame was unknown."""
    words = [" yes", " no", " ?"] * 60
    lines = [f"{i % 7},{word}, {'a' if word == ' yes' else 'b'}" for i, word in enumerate(words)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["x,c,answer", *lines]) + "\n")
    table = open_table(str(path))
    model = learned(table, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_file, from_frame = model.predict(path), model.predict(pd.read_csv(path))
    assert (from_file == table.y).all()
    assert (from_frame == from_file).all()


@pytest.mark.parametrize("value", [1e39, -1.7e308, 1e300])
def test_a_number_beyond_float32_is_far_or_missing(rows, tmp_path, value):
    """The prediction failed within scikit-learn."""
    model = learned(open_table(str(written(rows, tmp_path / "t.csv")), categories=["code"]), tmp_path / "out")
    new = rows.head(20).assign(x=[value] * 2 + [0.0] * 18)
    assert np.isfinite(model.predict_proba(new)).all()
    assert (model.predict(new)[2:] == rows["answer"][2:20]).all()


def test_classes_that_begin_with_a_zero_stay_as_they_are_written(tmp_path):
    """They came back as 7 and 12, which no key of another table is."""
    path = tmp_path / "agents.csv"
    path.write_text("x,agent\n" + "".join(f"{i / 60:.4f},{'007' if i < 30 else '012'}\n" for i in range(60)))
    table = open_table(str(path))
    assert sorted(set(table.y)) == ["007", "012"]
    assert "classification, 2 classes: 007 30, 012 30" in table.notes[1]
    model = learned(table, tmp_path / "out")
    assert list(model.predict(pd.DataFrame({"x": [0.05, 0.95]}))) == ["007", "012"]
    numbers = open_table(str(path), task="regression").y
    assert sorted(set(numbers)) == [7.0, 12.0]
