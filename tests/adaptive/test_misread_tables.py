"""Tables that were misread, refused for no reason, or predicted from in silence: the right reading of each."""

import numpy as np
import pytest

from meristem.adaptive.learned import fitted_encoder
from meristem.adaptive.tables import build_encoder, encode, open_table
from meristem.adaptive.tables.columns import describe_column
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
