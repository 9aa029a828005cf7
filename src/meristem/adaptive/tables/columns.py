"""The kind of each column of a table, from its values: numbers, categories, dates, or nothing to learn
from.
"""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Kind = Literal["number", "category", "many categories", "date", "left out"]
ONE_HOT = 30  # a category of more values is encoded by the target
MOSTLY = 0.9  # the share of numbers (or dates) in a column from which the rest counts as missing
HEAVY_TAIL = 6.0  # deviations from the mean
FEWEST_FOR_IDS = 20  # rows; in fewer rows, values that all differ mean little
ID_NAME = re.compile(r"(^|[_\s.-])(id|ids|uuid|guid|index|idx|key|rownum|unnamed.*)$|^column_1$", re.IGNORECASE)
DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)


@dataclass(frozen=True)
class Column:
    """One column, and the decisions about it.

    Args:
        name: the name of the column.
        kind: the kind of its values, or "left out".
        scale: the scale of numbers: "none" (they lie in [0, 1]), "standard", or "tail" (arsinh of the scaled
            numbers).
        missing: the share of rows without a value.
        said: the decision in words.
    """

    name: str
    kind: Kind
    said: str
    scale: Literal["none", "standard", "tail"] = "none"
    missing: float = 0.0


def describe(frame: pd.DataFrame) -> list[Column]:
    """The kind of each column of a frame (n_samples, columns)."""
    return [describe_column(str(name), frame[name]) for name in frame.columns]


def describe_column(name: str, values: pd.Series) -> Column:
    """The kind of one column."""
    missing = float(values.isna().mean())
    present = values.dropna()
    distinct = present.nunique()
    if distinct <= 1:
        return Column(name, "left out", "no values" if not distinct else "one value in all rows", missing=missing)
    if pd.api.types.is_bool_dtype(present):
        return Column(name, "category", "true or false: one-hot", missing=missing)
    if pd.api.types.is_datetime64_any_dtype(present):
        return _date(name, present, missing)
    if pd.api.types.is_numeric_dtype(present):
        return _number(name, values, missing, distinct)
    words = present.astype(str)
    numbers = pd.to_numeric(words, errors="coerce")
    if numbers.notna().mean() >= MOSTLY and numbers.nunique() > 2:
        odd = words[numbers.isna()].unique()[:3]
        column = _number(name, to_numbers(values), missing, distinct)
        return Column(
            name,
            column.kind,
            f"{column.said}; {', '.join(map(repr, odd))} read as missing",
            column.scale,
            column.missing,
        )
    if words.head(50).str.match(DATE).mean() >= MOSTLY and to_dates(words).notna().mean() >= MOSTLY:
        return _date(name, to_dates(words).dropna(), missing)
    return _category(name, words, missing, distinct)


def _number(name: str, values: pd.Series, missing: float, distinct: int) -> Column:
    numbers = values[np.isfinite(values.to_numpy(dtype=float, na_value=np.nan))].astype(float)
    if _is_row_number(name, numbers, missing):
        return Column(name, "left out", "row numbers", missing=missing)
    infinite = len(values) * (1 - missing) - len(numbers)
    gaps = f", {missing:.1%} missing: median and a mark" if missing else ""
    gaps += f", {infinite:.0f} infinite read as missing" if infinite >= 1 else ""
    missing = 1 - len(numbers) / max(1, len(values))
    if numbers.min() >= 0 and numbers.max() <= 1:
        return Column(name, "number", f"number in [0, 1]{gaps}", "none", missing)
    deviation = numbers.std() or 1.0
    if float((numbers - numbers.mean()).abs().max() / deviation) > HEAVY_TAIL:
        return Column(name, "number", f"number with a long tail: scaled, arsinh{gaps}", "tail", missing)
    return Column(name, "number", f"number: scaled{gaps}", "standard", missing)


def _is_row_number(name: str, numbers: pd.Series, missing: float) -> bool:
    """Whether numbers are 1, 2, 3, ... in steps of one, or whole numbers that all differ under a name that
    suggests it.
    """
    if missing or len(numbers) < FEWEST_FOR_IDS or numbers.nunique() < len(numbers) or (numbers % 1 != 0).any():
        return False
    return bool((numbers.diff().dropna() == 1).all()) or (ID_NAME.search(name) is not None and name != "column_1")


def _date(name: str, dates: pd.Series, missing: float) -> Column:
    gaps = f", {missing:.1%} missing: median and a mark" if missing else ""
    return Column(
        name,
        "date",
        f"date, {dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}: day, month, weekday, hour{gaps}",
        "standard",
        missing,
    )


def _category(name: str, words: pd.Series, missing: float, distinct: int) -> Column:
    gaps = f", {missing:.1%} missing: a value of its own" if missing else ""
    if distinct == len(words) and len(words) >= FEWEST_FOR_IDS:
        return Column(name, "left out", "words that all differ: names or keys", missing=missing)
    if distinct > len(words) / 2 and distinct > ONE_HOT:
        return Column(name, "left out", f"free text: {distinct} values in {len(words)} rows", missing=missing)
    if distinct > ONE_HOT:
        return Column(name, "many categories", f"{distinct} categories: encoded by the target{gaps}", missing=missing)
    return Column(name, "category", f"{distinct} categories: one-hot{gaps}", missing=missing)


def to_numbers(values: pd.Series) -> pd.Series:
    """The values of a column as numbers. Everything else, and infinite values, are missing."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers.where(np.isfinite(numbers))


def to_dates(values: pd.Series) -> pd.Series:
    """The values of a column as dates. Everything else is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns that it guesses the format
        dates = pd.to_datetime(values, errors="coerce", utc=True)
    return dates.dt.tz_localize(None)


def to_words(values: pd.Series) -> pd.Series:
    """The values of a column as words. Whole numbers have no decimal point. Missing values stay missing."""
    if pd.api.types.is_float_dtype(values):
        words = values.map(lambda value: f"{value:.0f}" if value % 1 == 0 else str(value))
    else:
        words = values.astype(str)
    return words.astype(object).where(values.notna(), np.nan)


def lines(columns: Sequence[Column]) -> list[str]:
    """One line for each column, with its name and the decision."""
    width = max((len(column.name) for column in columns), default=0)
    return [f"{column.name:<{width}}  {column.said}" for column in columns]
