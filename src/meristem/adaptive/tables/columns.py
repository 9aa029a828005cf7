"""The kind of each column of a table, from its values: numbers, categories, dates, or nothing to learn
from.
"""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from meristem.adaptive.limits import LARGEST
from meristem.adaptive.tables.values import (
    DATE,
    Decimal,
    day_first_of,
    decimal_of,
    number_of,
    to_dates,
    to_numbers,
    to_words,
)

Kind = Literal["number", "category", "many categories", "date", "presence", "left out"]
ONE_HOT = 30  # a category of more values is encoded by the target
MOSTLY = 0.9  # the share of numbers (or dates) in a column from which the rest counts as missing
SAMPLE = 1000  # words from which the notation of numbers is found
HEAVY_TAIL = 6.0  # deviations from the mean
FEWEST_FOR_IDS = 20  # rows; in fewer rows, values that all differ mean little
ID_NAME = re.compile(r"(^|[_\s.-])(id|ids|uuid|guid|index|idx|key|rownum|unnamed.*)$|^column_1$", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """One column, and the decisions about it.

    Args:
        name: the name of the column.
        kind: the kind of its values, or "left out". "presence" asks only whether there is a value.
        scale: the scale of numbers: "none" (they are 0 and 1), "standard", or "tail" (arsinh of the scaled
            numbers).
        missing: the share of rows without a value.
        said: the decision in words.
        decimal: the decimal sign of numbers that are words such as "1,234.50".
        day_first: whether the day stands before the month in dates such as "1/2/2024".
        as_written: whether its categories are words as a file writes them, such as "01".
    """

    name: str
    kind: Kind
    said: str
    scale: Literal["none", "standard", "tail"] = "none"
    missing: float = 0.0
    decimal: Decimal = "."
    day_first: bool = False
    as_written: bool = False


def describe(frame: pd.DataFrame, categories: Sequence[str] = (), leave_out: Sequence[str] = ()) -> list[Column]:
    """The kind of each column of a frame (n_samples, columns).

    Args:
        categories: the columns whose values are categories, whatever they look like.
        leave_out: the columns not to learn from.
    """
    names = [str(name) for name in frame.columns]
    asked = {name: _asked_category(name, frame[name]) for name in names if name in categories}
    asked |= {name: Column(name, "left out", "left out, as asked") for name in names if name in leave_out}
    return [asked.get(name) or describe_column(name, frame[name]) for name in names]


def _asked_category(name: str, values: pd.Series) -> Column:
    """A column of categories because the user says so."""
    words, missing = to_words(values).dropna(), float(values.isna().mean())
    distinct = words.nunique()
    if distinct <= 1:
        return _of_one_value(name, words, missing)
    column = _category(name, words, missing, distinct)
    if column.kind == "left out":
        column = replace(
            column,
            kind="many categories",
            said=f"{distinct} categories, as asked: encoded by the target",
            as_written=True,
        )
    return column


def describe_column(name: str, values: pd.Series) -> Column:
    """The kind of one column."""
    missing = float(values.isna().mean())
    present = values.dropna()
    try:
        distinct = present.nunique()
    except TypeError:  # a list, for example
        return Column(name, "left out", "neither numbers nor words", missing=missing)
    if distinct <= 1:
        return _of_one_value(name, present, missing)
    if pd.api.types.is_bool_dtype(present):
        return Column(name, "category", "true or false: one-hot", missing=missing)
    if isinstance(present.dtype, pd.CategoricalDtype):
        return _category(name, present.astype(str), missing, distinct)
    if pd.api.types.is_datetime64_any_dtype(present) or isinstance(present.dtype, pd.PeriodDtype):
        return _date(name, to_dates(present), missing)
    if pd.api.types.is_complex_dtype(present):
        return Column(name, "left out", "complex numbers", missing=missing)
    if pd.api.types.is_numeric_dtype(present) or pd.api.types.is_timedelta64_dtype(present):
        numbers = to_numbers(values) if pd.api.types.is_timedelta64_dtype(present) else values
        return _number(name, numbers, missing, distinct)
    words = present.astype(str)
    some = words.sample(min(len(words), SAMPLE), random_state=0)
    decimal = decimal_of(some)
    if to_numbers(some, decimal).notna().mean() > MOSTLY / 2:  # not tried on every text
        numbers = to_numbers(words, decimal)
        if numbers.notna().mean() >= MOSTLY and numbers.nunique() > 2:
            return _written_number(name, values, decimal, distinct)
    if words.head(50).str.match(DATE).mean() >= MOSTLY:
        day_first = day_first_of(words)
        dates = to_dates(words, day_first).dropna()
        if len(dates) >= MOSTLY * len(words):
            return _date(name, dates, missing, day_first)
    return _category(name, words, missing, distinct)


def _of_one_value(name: str, present: pd.Series, missing: float) -> Column:
    """A column with at most one value. A value with gaps among it, such as an "X", is 1 and a gap 0."""
    if not len(present):
        return Column(name, "left out", "no values", missing=missing)
    if not missing:
        return Column(name, "left out", "one value in all rows")
    value = to_words(present.iloc[:1]).iloc[0]
    return Column(name, "presence", f"{value!r} or empty, {missing:.1%} empty: 1 and 0", missing=missing)


def _written_number(name: str, values: pd.Series, decimal: Decimal, distinct: int) -> Column:
    """A column of words that say numbers, with a few others among them."""
    numbers = to_numbers(values, decimal)
    column = _number(name, numbers, float(numbers.isna().mean()), distinct)
    words, read = values.dropna().astype(str), numbers[values.notna().to_numpy()].notna().to_numpy()
    written = words[read & pd.to_numeric(words, errors="coerce").isna().to_numpy()].unique()[:1]
    said = "".join(f"; {word!r} read as {number_of(word, decimal):g}" for word in written)
    odd = words[~read].unique()[:3]
    said += f"; {', '.join(map(repr, odd))} read as missing" if len(odd) else ""
    return replace(column, said=column.said + said, decimal=decimal)


def _number(name: str, values: pd.Series, missing: float, distinct: int) -> Column:
    numbers = values[np.isfinite(values.to_numpy(dtype=float, na_value=np.nan))].astype(float)
    if _is_row_number(name, numbers, missing):
        steps = bool((numbers.diff().dropna() == 1).all())
        said = "row numbers" if steps else "keys: whole numbers that all differ"
        return Column(name, "left out", said, missing=missing)
    infinite = len(values) * (1 - missing) - len(numbers)
    gaps = f", {missing:.1%} missing: median and a mark" if missing else ""
    gaps += f", {infinite:.0f} infinite read as missing" if infinite >= 1 else ""
    missing = 1 - len(numbers) / max(1, len(values))
    if numbers.isin((0, 1)).all():
        return Column(name, "number", f"0 and 1{gaps}", "none", missing)
    if numbers.abs().max() > LARGEST:
        return Column(name, "left out", f"numbers as large as {numbers.abs().max():.3g}", missing=missing)
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


def _date(name: str, dates: pd.Series, missing: float, day_first: bool = False) -> Column:
    gaps = f", {missing:.1%} missing: median and a mark" if missing else ""
    return Column(
        name,
        "date",
        f"date{', day before month' if day_first else ''}, {dates.min():%Y-%m-%d} to {dates.max():%Y-%m-%d}: "
        f"day, month, weekday, hour{gaps}",
        "standard",
        missing,
        day_first=day_first,
    )


def _category(name: str, words: pd.Series, missing: float, distinct: int) -> Column:
    gaps = f", {missing:.1%} missing: a value of its own" if missing else ""
    if distinct == len(words) and len(words) >= FEWEST_FOR_IDS:
        return Column(name, "left out", "words that all differ: names or keys", missing=missing)
    if distinct > len(words) / 2 and distinct > ONE_HOT:
        return Column(name, "left out", f"free text: {distinct} values in {len(words)} rows", missing=missing)
    if distinct > ONE_HOT:
        return Column(
            name,
            "many categories",
            f"{distinct} categories: encoded by the target{gaps}",
            missing=missing,
            as_written=True,
        )
    return Column(name, "category", f"{distinct} categories: one-hot{gaps}", missing=missing, as_written=True)


def lines(columns: Sequence[Column]) -> list[str]:
    """One line for each column, with its name and the decision."""
    width = max((len(column.name) for column in columns), default=0)
    return [f"{column.name:<{width}}  {column.said}" for column in columns]
