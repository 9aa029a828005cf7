"""A table to learn from: rows, the kind of each column, and the column to predict."""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from meristem.adaptive import classes
from meristem.adaptive.limits import check_target
from meristem.adaptive.request import SHIPPED, check_table
from meristem.adaptive.tables.columns import Column, describe
from meristem.adaptive.tables.encoding import Task, named_by_words
from meristem.adaptive.tables.labels import CODE, MOST_CLASSES, labels_of
from meristem.adaptive.tables.layout import SEPARATORS
from meristem.adaptive.tables.reading import read_frame
from meristem.adaptive.tables.values import Decimal, decimal_of, to_numbers
from meristem.errors import MeristemError, nearest

LARGEST_EXACT = 2**53  # whole numbers from here on are not all numbers of float64, and are classes as words


@dataclass(frozen=True)
class Table:
    """Rows and the values to predict.

    Args:
        x: the rows (n_samples, columns).
        y: the target (n_samples,), classes or numbers.
        target: the name of the target.
        task: "classification" or "regression".
        columns: the kind of each column of `x`.
        unlabelled: further rows, whose target is missing.
        notes: the decisions made while reading.
        decimal: the decimal sign of the file.
    """

    x: pd.DataFrame
    y: np.ndarray
    target: str
    task: Task
    columns: list[Column]
    unlabelled: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    decimal: Decimal = "."

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [str(name) for name in self.x.columns]

    @property
    def is_classification(self) -> bool:
        """Whether `y` holds classes."""
        return self.task == "classification"


def open_table(
    source: str,
    target: str | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    header: bool | None = None,
    separator: str | None = None,
    categories: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Table:
    """Read a text file of values (compressed or not), or load one of scikit-learn's data sets by its name.

    Args:
        source: a file, or the name of a data set.
        target: the column to predict, by name or by number from 1. By default it is the last one.
        task: "classification", "regression" or "auto". "auto" takes words, and at most 20 different whole
            numbers, as classes.
        header: whether the first row of the file holds names. By default the first rows decide.
        separator: the separator of the file. By default the first rows decide.
        categories: columns whose values are categories, such as postal codes, by name or by number from 1.
            "01" and "1" differ in them.
        leave_out: columns not to learn from, by name or by number from 1.
        keep: words of the target that are classes, although they mean elsewhere that a value is missing, such
            as "NA" or "None".

    Raises:
        MeristemError: if there is no such table or column, if a column is asked for in two ways, or if the
            target does not fit the task.
    """
    if task not in ("auto", "classification", "regression"):
        raise MeristemError(f"the task is classification or regression, got {task!r}")
    if source in SHIPPED:
        if target is not None or keep:
            raise MeristemError(f"{source} has a fixed target; --target and --keep are for CSV files only")
        frame = _shipped(source)
        asked = [_named(source, frame, one) for one in categories], [_named(source, frame, one) for one in leave_out]
        return of_frame(frame, "target", task, "", *asked)
    check_table(source)
    frame, layout = read_frame(Path(source), separator, header)
    if len(frame) < 2:
        count = "1 row" if len(frame) == 1 else "no rows"
        raise MeristemError(f"{source} has {count} of values; at least 2 are needed")
    wanted = _target_name(source, frame, target)
    if len(frame.columns) == 1:
        hint = (
            f" ({SEPARATORS[layout.separator]}-separated; another --separator?)"
            if layout.separator in SEPARATORS
            else ""
        )
        raise MeristemError(f"{source} has no column except {wanted!r} to learn from{hint}")
    coded, left = ([_named(source, frame, one) for one in asked] for asked in (categories, leave_out))
    if coded:
        frame, layout = read_frame(Path(source), separator, header, words=coded)
    _check_asked({"target": [wanted], "categories": coded, "leave_out": left})
    labels, gaps = labels_of(Path(source), layout, frame, wanted, task, keep)
    frame = frame.assign(**{wanted: labels}).reset_index(drop=True)
    try:
        table = of_frame(frame, wanted, task, f"{source}, ", coded, left)
    except MeristemError as error:
        raise MeristemError("; ".join([str(error), *gaps])) from error
    unpacked = "" if layout.encoding != "cp1252" else ", not UTF-8: read as Windows-1252"
    notes = [f"{Path(source).name}: {layout.said()}{unpacked}", *table.notes, *gaps]
    return replace(table, notes=notes, decimal=layout.decimal)


def of_frame(
    frame: pd.DataFrame,
    target: str,
    task: str = "auto",
    where: str = "",
    categories: Sequence[str] = (),
    leave_out: Sequence[str] = (),
) -> Table:
    """A table from a data frame (n_samples, columns).

    Args:
        frame: the rows, the target among their columns.
        target: the column to predict.
        task: as in `open_table`.
        where: what errors say before the name of a column.
        categories, leave_out: as in `open_table`, by name.

    Raises:
        MeristemError: if the target does not fit the task, if two columns have one name, or if a column is
            asked for in two ways.
    """
    frame = named_by_words(frame)
    _check_asked({"target": [str(target)], "categories": categories, "leave_out": leave_out})
    values = frame[str(target)]
    if pd.api.types.is_complex_dtype(values):
        raise MeristemError(f"{where}column {target!r} holds complex numbers; a target is one number or class")
    labelled = values.notna().to_numpy()
    name = f"{where}column {target!r}"
    if not labelled.any():
        raise MeristemError(f"{name}: the target has no values")
    x = frame.drop(columns=str(target))
    y, found, notes = read_target(values[labelled], task, name)
    if not labelled.all():
        count = int((~labelled).sum())
        have, them = ("row has", "it") if count == 1 else ("rows have", "them")
        notes.append(f"{count} {have} no {target!r}; only energynet's first stage uses {them}")
    return Table(x[labelled], y, str(target), found, describe(x, categories, leave_out), x[~labelled], notes)


def read_target(values: pd.Series, task: str, name: str) -> tuple[np.ndarray, Task, list[str]]:
    """The values of the target (n_samples,), its task, and the decisions made.

    Raises:
        MeristemError: for words in a regression, for values that are not classes, for infinite values, for
            numbers whose squares are none, or for only one class.
    """
    if pd.api.types.is_bool_dtype(values):
        values = values.astype(str)
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.astype(float)
    else:
        numbers = to_numbers(values, decimal_of(values.astype(str)))
    words = values[numbers.isna()]
    if task == "regression" and len(words):
        raise MeristemError(
            f"{name}: {_quoted(words)} {'is not a number' if words.nunique() == 1 else 'are no numbers'}, and a regression needs numbers"
        )
    if not len(words) and not np.isfinite(numbers).all():
        raise MeristemError(f"{name}: the target has infinite values")
    if len(words) and numbers.notna().mean() > 0.5 and numbers.nunique() > MOST_CLASSES:
        raise MeristemError(f"{name}: {_quoted(words)} among numbers; correct or empty these cells")
    distinct = values.nunique()
    whole = not len(words) and bool((numbers % 1 == 0).all())
    kind: Task = "regression" if not len(words) and not (whole and distinct <= MOST_CLASSES) else "classification"
    if task != "auto":
        kind = "regression" if task == "regression" else "classification"
    if kind == "classification" and not len(words) and not whole:
        raise MeristemError(
            f"{name}: {numbers[numbers % 1 != 0].iloc[0]:g} is not a class; --task regression predicts numbers"
        )
    if kind == "classification" and len(words) and distinct > max(MOST_CLASSES, len(values) / 2):
        raise MeristemError(
            f"{name}: {distinct} different words in {len(values)} rows cannot be classes; choose another --target"
        )
    if distinct < 2:
        raise MeristemError(f"{name}: the target is {str(values.iloc[0])!r} in all rows; there is nothing to learn")
    other = "classification" if kind == "regression" else "regression"
    choice = f" (--task {other} for the other reading)" if whole and task == "auto" else ""
    start = f"target {name.split('column ')[-1]}: {kind}, "
    if kind == "regression":
        check_target(numbers.to_numpy(), f"{name}: the target")
        return numbers.to_numpy(), kind, [f"{start}numbers from {numbers.min():g} to {numbers.max():g}{choice}"]
    are_codes = bool(values.astype(str).str.fullmatch(CODE).any())
    is_exact = bool(whole) and float(numbers.abs().max()) < LARGEST_EXACT and not are_codes
    y = numbers.astype(int).to_numpy() if is_exact else values.astype(str).to_numpy(dtype=str)
    return y, kind, [f"{start}{classes.said(y)}{choice}", *classes.said_of_spellings(y)]


def _quoted(words: pd.Series) -> str:
    shown = words.astype(str).unique()
    return ", ".join(map(repr, shown[:3])) + (", ..." if len(shown) > 3 else "")


def _target_name(source: str, frame: pd.DataFrame, target: str | None) -> str:
    """The name of the target. By default it is the last column with values."""
    names = list(frame.columns)
    if target is None:
        return next((name for name in reversed(names) if int(frame[name].count())), names[-1])
    return _named(source, frame, target)


def _named(source: str, frame: pd.DataFrame, column: str) -> str:
    """The name of a column that is given by name or by number from 1."""
    names = list(frame.columns)
    if column in names:
        return column
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return names[int(column) - 1]
    raise MeristemError(f"{source} has no column {column!r}; {nearest(column, names)}")


def _check_asked(asked: Mapping[str, Sequence[str]]) -> None:
    """Whether every column is asked for in one way only."""
    for (one, ours), (other, theirs) in combinations(asked.items(), 2):
        if both := sorted(set(ours) & set(theirs)):
            raise MeristemError(f"column {both[0]!r} is in {one} and in {other}; it can be in one of them")


def _shipped(source: str) -> pd.DataFrame:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{source}")()
    x = bunch.data / 16 if source == "digits" else bunch.data
    frame = pd.DataFrame(x, columns=[str(name) for name in bunch.feature_names])
    return frame.assign(target=bunch.target)
