"""Tables that were misread, refused for no reason, or predicted from in silence: the right reading of each."""

import numpy as np
import pytest

from meristem.adaptive.tables import open_table
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
    assert np.isnan(number_of(low)) and np.isnan(number_of(f"-{high}", ","))
    assert [number_of(word) for word in (".5", "5.", "1e3", "-.5e1")] == [0.5, 5, 1000, -5]
