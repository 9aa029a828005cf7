"""Classes whose names mean elsewhere that a value is missing ("NA", "None"), and classes that differ only in capitals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import meristem as ms
from meristem.adaptive.learn import learn
from meristem.adaptive.tables import open_table

QUICK = {"width": 16, "max_rounds": 1, "max_steps": 200}


def regions(tmp_path, names=("EU", "NA"), rows=60):
    """A number decides the region. Every tenth region is unknown."""
    text = ["x,region"]
    for i in range(rows):
        text.append(f"{i / rows:.4f},{'' if i % 10 == 3 else names[i * len(names) // rows]}")
    path = tmp_path / "regions.csv"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return str(path)


def test_a_class_called_na_is_a_class_where_that_is_asked(tmp_path):
    path = regions(tmp_path, ("AS", "EU", "NA"))
    table = open_table(path)
    assert sorted(set(table.y)) == ["AS", "EU"]
    assert "18 rows hold 'NA', read as missing; --keep WORD makes such a word a class" in table.notes
    kept = open_table(path, keep=["NA"])
    assert {name: int((kept.y == name).sum()) for name in set(kept.y)} == {"AS": 18, "EU": 18, "NA": 18}
    assert len(kept.unlabelled) == 6  # the empty cells
    assert not any("read as missing" in line for line in kept.notes)
    assert kept.x.shape == (54, 1)


def test_with_one_other_class_the_error_names_the_way_out(tmp_path):
    path = regions(tmp_path)
    with pytest.raises(
        ms.MeristemError, match=r"the target is 'EU' in all rows.*27 rows hold 'NA', read as missing; --keep"
    ):
        open_table(path)
    with pytest.raises(ms.MeristemError, match=r"no row holds 'na' to keep; known: NA"):
        open_table(path, keep=["na"])


def test_a_learned_table_answers_with_the_class_that_was_kept(tmp_path):
    path = regions(tmp_path, ("None", "some"))
    model = learn("adanet", open_table(path, keep=["None"]), tmp_path / "out", QUICK)
    answers = model.predict(pd.DataFrame({"x": [0.05, 0.1, 0.9, 0.95]}))
    assert list(answers) == ["None", "None", "some", "some"]


def test_whole_numbers_beside_a_kept_word_stay_whole(tmp_path):
    table = open_table(regions(tmp_path, ("0", "1", "NA")), keep=["NA"])
    assert sorted(set(table.y)) == ["0", "1", "NA"]
    assert len(table.unlabelled) == 6


def test_many_codes_are_classes_where_that_is_asked(tmp_path):
    names = [f"{code:03}" for code in range(25)]
    assert set(open_table(regions(tmp_path, names, 250), task="classification").y) == set(names)


def test_a_code_among_other_numbers_does_not_change_them(tmp_path):
    """With the comma for decimals, 1.200 is a thousand and two hundred."""
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{i},5;{'010' if i % 2 else '1.200'}\n" for i in range(40)))
    assert sorted(set(open_table(str(path)).y)) == [10, 1200]


def test_two_spellings_of_one_number_are_named(tmp_path):
    table = open_table(regions(tmp_path, ("1", "01")))
    assert sorted(set(table.y)) == ["01", "1"]
    assert any("'01' and '1' differ only in capitals or in zeros" in line for line in table.notes)


def test_rows_without_any_value_do_not_shift_the_labels(tmp_path):
    path = tmp_path / "t.csv"
    rows = [",,", *(f"{i},{i % 3},{'007' if i < 20 else '012'}" for i in range(40))]
    rows.insert(15, ",,")
    path.write_text("a,b,y\n" + "\n".join(rows) + "\n")
    table = open_table(str(path))
    assert list(table.y) == ["007"] * 20 + ["012"] * 20
    assert list(table.x["a"]) == list(range(40))


def test_numbers_of_a_regression_are_not_asked_about(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "\n".join(f"{i},NA" if i % 9 == 4 else f"{i},{i / 7:.6}" for i in range(60)) + "\n")
    table = open_table(str(path))
    assert table.task == "regression"
    assert len(table.unlabelled) == 7
    assert not any("--keep" in line for line in table.notes)


def test_classes_that_differ_only_in_capitals_are_named(tmp_path):
    table = open_table(regions(tmp_path, ("no", "NO", "yes", "Yes")))
    (said,) = [line for line in table.notes if "capitals" in line]
    assert said == "'NO' and 'no', 'Yes' and 'yes' differ only in capitals or in zeros, and are different classes"
    assert not any("capitals" in line for line in open_table(regions(tmp_path, ("no", "yes"))).notes)
    assert len(np.unique(table.y)) == 4
