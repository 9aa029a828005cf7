"""Tables as spreadsheets, R and other tools write them: the values that are read, and what is said about them."""

import math
import warnings

import numpy as np
import pytest

import meristem as ms
from meristem.adaptive.learn import learn
from meristem.adaptive.learned import Learned, fitted_encoder
from meristem.adaptive.tables import build_encoder, open_table
from meristem.adaptive.tables.columns import describe_column
from meristem.adaptive.tables.table import of_frame
from meristem.adaptive.tables.values import decimal_of, number_of, to_dates, to_numbers

pd = pytest.importorskip("pandas")

QUICK = {"width": 4, "max_rounds": 1, "max_steps": 10}
BODY = [(f"{i * 0.25:.2f}", str(i % 7), "no" if i % 2 else "yes") for i in range(60)]


def lines(separator, rows, end="\n"):
    return "".join(separator.join(map(str, row)) + end for row in rows)


def numbers_of(table):
    """The table as numbers, where a warning is an error."""
    encoder = build_encoder(table.columns, table.task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fitted_encoder(encoder, table.x, table.y, table.columns)


def assert_is_the_table(table, names=("a", "b")):
    assert table.names == list(names)
    assert table.x.iloc[:, -2].tolist() == [i * 0.25 for i in range(60)]
    assert table.x.iloc[:, -1].tolist() == [i % 7 for i in range(60)]
    assert table.y.tolist() == ["no" if i % 2 else "yes" for i in range(60)]


# -- above and around the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ("", "comma-separated, a header"),
        ("sep=,\n", "1 line above it left out"),
        ("# made by a tool, version 1\n# all in metres\n", "2 lines above it left out"),
        ("Sales of 2024\n\n", "1 line above it left out"),
        ("Sales of 2024,,\n,,\n", "1 line above it left out"),
        ("\n\n", "comma-separated, a header"),
    ],
)
def test_lines_above_the_table(write, above, said):
    table = open_table(write(above + lines(",", [("a", "b", "t"), *BODY])))
    assert_is_the_table(table)
    assert table.notes[0].endswith(said)


def test_a_header_in_a_comment(write):
    assert_is_the_table(open_table(write("# a,b,t\n" + lines(",", BODY))))
    assert_is_the_table(open_table(write("# by hand\n#a,b,t\n" + lines(",", BODY))))
    table = open_table(write("#,b,t\n" + lines(",", [(3 * i, *row[1:]) for i, row in enumerate(BODY)])))
    assert table.names == ["#", "b"]


def test_a_name_with_a_line_break_costs_no_row(write):
    """The lines of the header were counted as rows, so the first rows were lost without a word."""
    table = open_table(write(lines(",", [('"a\n(in m)\nof all"', '"b\nc"', "t"), *BODY])))
    assert_is_the_table(table, ("a\n(in m)\nof all", "b\nc"))


def test_names_of_rows_as_r_writes_them(write):
    rows = [(f'"{i}"', a, b, f'"{t}"') for i, (a, b, t) in enumerate(BODY, 1)]
    table = open_table(write('"a" "b" "t"\n' + lines(" ", rows)))
    assert_is_the_table(table, ("column_1", "a", "b"))
    assert table.columns[0].said == "row numbers"


def test_a_separator_at_the_end_of_each_row(write):
    for header in (("a", "b", "t", ""), ("a", "b", "t")):
        table = open_table(write(lines(";", [header, *((*row, "") for row in BODY)])))
        assert table.target == "t"
        assert table.x[["a", "b"]].iloc[-1].tolist() == [59 * 0.25, 3]
        assert table.columns[2].said == "no values"


def test_rows_without_a_value_are_no_rows(write):
    table = open_table(write(lines(";", [("a", "b", "t"), *BODY]) + ";;\n" * 4))
    assert_is_the_table(table)
    assert len(table.unlabelled) == 0
    assert [column.missing for column in table.columns] == [0, 0]


def test_spaces_around_separators_and_within_quotes(write):
    assert_is_the_table(open_table(write(lines(" , ", [("a", "b", "t"), *BODY]))))
    table = open_table(write(lines("  ", [("a", "kind", "t"), *((a, f'"kind {b}"', t) for a, b, t in BODY)])))
    assert table.x["kind"].tolist()[:2] == ["kind 0", "kind 1"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"a": 1, "t": "x"}\n{"a": 2, "t": "y"}\n', "JSON"),
        ("[\n [1, 2],\n [3, 4]\n]\n", "JSON"),
        ("<!DOCTYPE html>\n<table><tr><td>1</td></tr></table>\n", "HTML or XML"),
        ("% iris\n@RELATION iris\n@ATTRIBUTE a NUMERIC\n@DATA\n1,x\n", "ARFF"),
        ("-1 1:0.5 3:2\n+1 2:0.1 3:1\n", "LIBSVM"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", "Markdown"),
    ],
)
def test_other_formats_are_named(write, content, name):
    with pytest.raises(ms.MeristemError, match=f"is {name}; a table of values"):
        open_table(write(content))


# -- numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "decimal", "number"),
    [
        ("1,234.50", ".", 1234.5),
        ("1,234,567", ".", 1234567),
        ("1.234,50", ",", 1234.5),
        ("1.234", ",", 1234),
        ("1,5", ",", 1.5),
        ("1 234", ".", 1234),
        ("1\u202f234,5", ",", 1234.5),
        ("1'234.5", ".", 1234.5),
        ("$1,234", ".", 1234),
        ("-$5.50", ".", -5.5),
        ("$-5.50", ".", -5.5),
        ("\u22125", ".", -5),
        ("0,30 €", ",", 0.3),
        ("12.5 %", ".", 12.5),
        ("(3.50)", ".", -3.5),
        ("1e-3", ".", 0.001),
        ("12:30", ".", 12.5),
        ("01:00:36", ".", 1.01),
    ],
)
def test_numbers_as_people_write_them(word, decimal, number):
    assert number_of(word, decimal) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(
    "word", ["", "-", "1,5", "12,34", "1,2345", "1.2.3", "10.0.0.1", "a1", "--5", "(5", "5)", "%", "12:60"]
)
def test_what_is_no_number(word):
    assert math.isnan(number_of(word))


def test_the_decimal_sign_of_a_column():
    assert decimal_of(pd.Series(["1,234", "5,678"])) == "."
    assert decimal_of(pd.Series(["1,234", "0,5"])) == ","
    column = describe_column("c", pd.Series(["1,5", "2,25", "1.234,5"] * 9))
    assert (column.kind, column.decimal) == ("number", ",")
    assert "'1,5' read as 1.5" in column.said


@pytest.mark.parametrize("separator", [";", "\t"])
def test_points_between_thousands_beside_decimal_commas(write, separator):
    """The prices were read as 1.333 and so on, for another column had decimal commas."""
    rows = [
        (f"{1000 + 333 * i:,}".replace(",", "."), f"{i * 0.3:.2f}".replace(".", ","), row[2])
        for i, row in enumerate(BODY)
    ]
    table = open_table(write(lines(separator, [("price", "share", "t"), *rows])))
    assert table.x["price"].tolist() == [1000 + 333 * i for i in range(60)]
    assert table.x["share"].tolist() == pytest.approx([i * 0.3 for i in range(60)])
    assert "decimal commas" in table.notes[0]


def test_decimal_commas_alone_do_not_separate(write):
    """Each row had more fields at its decimal commas than at its semicolons."""
    rows = [tuple(f"{k * i * 0.5:.1f}".replace(".", ",") for k in (1, 2, 3)) for i in range(40)]
    for header in ([], [("a", "b", "t")]):
        table = open_table(write(lines(";", [*header, *rows])))
        assert table.x.to_numpy().tolist() == [[i * 0.5, i * 1.0] for i in range(40)]
        assert table.y.tolist() == [i * 1.5 for i in range(40)]


def test_a_target_with_thousands(write):
    table = open_table(write(lines(",", [("b", "price"), *((i % 7, f'"{1000 + 333 * i:,}"') for i in range(60))])))
    assert table.task == "regression"
    assert table.y.tolist() == [1000 + 333 * i for i in range(60)]


def test_predictions_read_numbers_as_the_network_has_learned_them(write, tmp_path):
    rows = [
        (f"{1000 + 37 * i:,}".replace(",", "."), f"{i * 0.3:.2f}".replace(".", ","), "big" if i > 30 else "small")
        for i in range(60)
    ]
    learn("adanet", open_table(write(lines(";", [("price", "share", "t"), *rows]))), tmp_path / "out", QUICK)
    learned = Learned.load(tmp_path / "out")
    new = write("price;share\n2.110;9\n1.000;0\n", "new.csv")  # no decimal comma in it
    frame = pd.DataFrame({"price": [2110.0, 1000.0], "share": [9.0, 0.0]})
    np.testing.assert_array_equal(learned.numbers(new), learned.numbers(frame))
    words = pd.DataFrame({"price": ["2 110", "1.000"], "share": ["9,00", "0"]})
    np.testing.assert_array_equal(learned.numbers(words), learned.numbers(frame))


def test_large_numbers_keep_their_digits(write):
    """float32 has no seconds of a Unix time, and numbers of 26 digits were a traceback."""
    rows = [(1_700_000_000 + 7 * i, 10**25 + i * 10**23, f"{i}e39", f"{i}e300", row[2]) for i, row in enumerate(BODY)]
    table = open_table(write(lines(",", [("when", "huge", "big", "vast", "t"), *rows])))
    numbers = numbers_of(table)
    steps = (np.arange(60) - 29.5) / np.arange(60).std()
    for name in ("when", "huge", "big"):
        np.testing.assert_allclose(numbers[name], steps, rtol=1e-4, atol=1e-6)
    assert table.columns[3].said == "numbers as large as 5.9e+301"
    target = open_table(write(lines(",", [("a", "t"), *((i % 9, 10**25 + i % 2) for i in range(60))])))
    assert target.y.tolist()[:2] == [str(10**25), str(10**25 + 1)]


# -- gaps, truth and dates ----------------------------------------------------------------------------------------------------


def test_gaps_with_spaces_and_errors_of_spreadsheets(write):
    rows = [
        ("NA " if i % 5 == 0 else a, "#DIV/0!" if i % 9 == 0 else b, "#VALUE!" if i == 7 else t)
        for i, (a, b, t) in enumerate(BODY)
    ]
    table = open_table(write(lines(",", [("a", "b", "t"), *rows])))
    assert [column.kind for column in table.columns] == ["number", "number"]
    assert table.x["b"].isna().sum() == 7
    assert to_numbers(table.x["a"]).isna().sum() == 12
    assert set(table.y) == {"yes", "no"}
    assert len(table.unlabelled) == 1


def test_truth_with_gaps(write):
    rows = [(i % 3 == 0, ("TRUE", "FALSE", "")[i % 3], i % 2 == 0) for i in range(60)]
    table = open_table(write(lines(",", [("a", "b", "t"), *rows])))
    assert table.y.tolist()[:2] == ["True", "False"]
    numbers = numbers_of(table)
    assert numbers["b_missing"].tolist() == [float(i % 3 == 2) for i in range(60)]
    assert numbers["b_True"].tolist() == [float(i % 3 == 0) for i in range(60)]


@pytest.mark.parametrize(
    ("form", "day_first"),
    [("{d:02}/{m:02}/2024", True), ("{m:02}/{d:02}/2024", False), ("{d}.{m}.24", True), ("2024-{m:02}-{d:02}", False), ("{d}-{m}-2024 06:00", True)],
)  # fmt: skip
def test_days_and_months(form, day_first):
    days = [(i % 28 + 1, i % 12 + 1) for i in range(60)]
    words = pd.Series([form.format(d=d, m=m) for d, m in days])
    column = describe_column("c", words)
    assert (column.kind, column.day_first) == ("date", day_first)
    dates = to_dates(words, column.day_first)
    assert list(zip(dates.dt.day, dates.dt.month, strict=True)) == days
    assert set(dates.dt.year) == {2024}
    one = to_dates(pd.Series([form.format(d=2, m=1)]), column.day_first)  # it is not guessed again from a single row
    assert (one.dt.day[0], one.dt.month[0]) == (2, 1)


def test_dates_with_and_without_a_time_and_an_index_with_repeats():
    words = pd.Series(["2024-01-31", "2024-02-29 12:00", None, "soon"], index=[3, 3, 3, 4])
    dates = to_dates(words)
    assert dates.index.tolist() == [3, 3, 3, 4]
    assert dates.iloc[:2].dt.day.tolist() == [31, 29]
    assert dates.iloc[1].hour == 12
    assert dates.iloc[2:].isna().all()


def test_many_categories_and_classes_of_few_rows(write):
    rows = [(f"k{i % 35}", i % 7, f"class {i % 26}") for i in range(80)]
    numbers = numbers_of(open_table(write(lines(",", [("a", "b", "t"), *rows]))))
    assert numbers.shape == (80, 27)
    assert np.isfinite(numbers.to_numpy()).all()


# -- frames -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said", "first"),
    [
        (pd.Categorical([i % 3 for i in range(60)]), "3 categories: one-hot", [1, 0, 0]),
        (pd.to_timedelta([37 * i for i in range(60)], unit="min"), "number: scaled", None),
        (pd.period_range("2020-01", periods=60, freq="M"), "date, 2020-01-01 to 2024-12-01", None),
        (pd.array([None if i % 5 == 0 else i * 2 for i in range(60)], dtype="Int64"), "20.0% missing", None),
        (
            pd.array([None if i % 5 == 0 else i % 2 == 0 for i in range(60)], dtype="boolean"),
            "true or false",
            [0, 0, 1],
        ),
        ([[i] for i in range(60)], "neither numbers nor words", []),
        (np.arange(60) * 1j, "complex numbers", []),
    ],
)
def test_columns_of_other_types(values, said, first):
    frame = pd.DataFrame({"a": np.arange(60) * 1.5, 7: values, "t": ["yes", "no"] * 30})
    table = of_frame(frame, "t")
    assert table.columns[1].said.startswith(said) or said in table.columns[1].said
    numbers = numbers_of(table)
    assert np.isfinite(numbers.to_numpy()).all()
    if first is not None:
        assert numbers.iloc[0, 1:].tolist() == first


def test_names_that_are_no_words():
    table = of_frame(pd.DataFrame({1: range(0, 90, 3), ("b", 2): range(30), 3: [0, 1] * 15}), 3)
    assert (table.names, table.target) == (["1", "('b', 2)"], "3")
    assert list(numbers_of(table).columns) == ["1"]  # the other holds row numbers
    with pytest.raises(ms.MeristemError, match="2 columns named '1'; rename them"):
        of_frame(pd.DataFrame([[1, 2, 3], [2, 3, 4]], columns=[1, "1", "t"]), "t")


# -- the whole way ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adanet", "energynet"])
def test_a_table_of_a_spreadsheet_is_learned(write, tmp_path, kind):
    rows = [
        (f'"{i}.{i % 9 + 1}.2024"' if 0 < i < 29 else "1.2.2024", f"{i * 1234.5:,.2f}".replace(",", "_").replace(".", ",").replace("_", "."),
         f'"two\nlines {i % 3}"', "ganz gut" if i < 30 else "selten" if i == 44 else "nicht gut")
        for i in range(60)
    ]  # fmt: skip
    content = (
        "\ufeff" + "sep=;\r\n" + lines(";", [("Tag", "größe 📏", "<b>wie</b>", "das Ziel"), *rows], "\r\n")
    ).encode()
    table = open_table(write(content))
    assert [column.kind for column in table.columns] == ["date", "number", "category"]
    assert table.x["größe 📏"].iloc[59] == pytest.approx(59 * 1234.5)
    options = QUICK if kind == "adanet" else {"structure_iter": 1, "max_layers": 1}
    learned = learn(kind, table, tmp_path / "out", options)
    again = Learned.load(tmp_path / "out")
    assert again.predict(write(content)).tolist() == learned.predict(table.x).tolist()
    assert set(again.predict(table.x)) <= {"ganz gut", "selten", "nicht gut"}
