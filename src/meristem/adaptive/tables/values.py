"""The values of a column as numbers, dates or words, from the ways in which people write them."""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

import math
import re
import warnings
from typing import Literal

import numpy as np
import pandas as pd

from meristem.adaptive.tables.header import MISSING

Decimal = Literal[".", ","]
GAPS = " \u00a0\u2009\u202f'\u2019"  # between thousands, besides the comma or the point
UNITS = "$€£¥₹%"
SIGNED = re.compile(rf"(?P<minus>[-\u2212(]?)[{UNITS}\s]*(?P<digits>[^()]*?)[{UNITS}\s]*\)?$")
NUMERALS = {
    decimal: re.compile(
        rf"[+-]?(?:(?:[1-9]\d{{0,2}}(?:(?P<gap>[{apart}{GAPS}])\d{{3}})(?:(?P=gap)\d{{3}})*|\d+)(?:[{decimal}]\d*)?|[{decimal}]\d+)"
        r"(?:[eE][+-]?\d+)?"
    )
    for decimal, apart in ((".", ","), (",", "."))
}
TIME = re.compile(r"(\d{1,3}):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")
DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
DAY_AND_MONTH = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)", re.DOTALL)
TRUTHS = {"true": "True", "TRUE": "True", "false": "False", "FALSE": "False"}  # as pandas reads them in a file
THIS_CENTURY = 69  # years of two digits below it are of this century, as POSIX has it


def number_of(word: str, decimal: Decimal = ".") -> float:
    """The number that a word says, or NaN: "1,234.50", "1 234", "$ 5", "12 %", "(3.5)" for -3.5, and times
    such as "12:30" in hours. With a decimal comma, "1.234,50" and "1.234" have points between thousands.
    """
    word = word.strip()
    time = TIME.fullmatch(word)
    if time:
        hours, minutes, seconds = time.groups()
        return int(hours) + int(minutes) / 60 + float(seconds or 0) / 3600
    signed = SIGNED.match(word)
    digits = signed["digits"] if signed and word.startswith("(") == word.endswith(")") else ""
    if signed and signed["minus"] and digits[:1] in ("+", "-"):
        return math.nan
    if not NUMERALS[decimal].fullmatch(digits):
        return math.nan
    plain = re.sub(rf"[{',' if decimal == '.' else '.'}{GAPS}]", "", digits).replace(decimal, ".")
    number = float(plain)
    return -number if signed and signed["minus"] else number


def to_numbers(values: pd.Series, decimal: Decimal = ".") -> pd.Series:
    """The values of a column as numbers, times in hours. Everything else is missing, infinite values too."""
    if pd.api.types.is_timedelta64_dtype(values):
        return values.dt.total_seconds() / 3600
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_complex_dtype(values):
        numbers = values.astype(float)
        return numbers.where(np.isfinite(numbers))
    present = values.notna().to_numpy()
    words = values[present].astype(str)
    plain = np.array(pd.to_numeric(words, errors="coerce"), dtype=float)
    odd = np.isnan(plain) if decimal == "." else np.ones(len(words), dtype=bool)
    written = words[odd]
    known = {word: number_of(word, decimal) for word in written.unique()}
    read = written.map(known).to_numpy(dtype=float)
    plain[odd] = np.where(np.isnan(read), plain[odd], read)
    found = np.full(len(values), np.nan)
    found[present] = np.where(np.isfinite(plain), plain, np.nan)
    return pd.Series(found, index=values.index, name=values.name)


def decimal_of(words: pd.Series) -> Decimal:
    """The decimal sign with which more of the words are numbers. The point, if both read as many."""
    some = words.unique()
    commas, points = (sum(not math.isnan(number_of(word, sign)) for word in some) for sign in (",", "."))
    return "," if commas > points else "."


def to_dates(values: pd.Series, day_first: bool = False) -> pd.Series:
    """The values of a column as dates, in UTC. Everything else is missing.

    Args:
        values: dates, or words such as "2024-01-31", "31.1.2024", "1/31/24 10:30" or "31 Jan 2024".
        day_first: whether "1/2/2024" is the first of February.
    """
    if isinstance(values.dtype, pd.PeriodDtype):
        values = values.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(values):
        return pd.to_datetime(values, utc=True).dt.tz_localize(None)
    words = values.map({word: _year_first(str(word), day_first) for word in values.dropna().unique()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns that it guesses the format
        dates = pd.to_datetime(words, errors="coerce", utc=True)
        others = (dates.isna() & words.astype(str).str.match(DATE).astype(bool)).to_numpy()
        if others.any():  # some have a time and some have none
            mixed = pd.to_datetime(words[others], errors="coerce", utc=True, format="mixed")
            dates = dates.where(~others, mixed if others.all() else _spread(mixed, others, dates.index))
    return dates.dt.tz_localize(None)


def _spread(some: pd.Series, where: np.ndarray, index: pd.Index) -> pd.Series:
    """Dates of some rows as a column of all rows. The others are missing."""
    found = np.full(len(where), np.datetime64("NaT"), dtype="datetime64[us]")
    found[where] = some.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    return pd.Series(found, index=index).dt.tz_localize("UTC")


def day_first_of(words: pd.Series) -> bool:
    """Whether the day stands before the month in dates such as "1/2/2024": if more of them are dates then,
    and where both are possible, if points are between the numbers.
    """
    parts = [match for match in map(DAY_AND_MONTH.fullmatch, words.unique()) if match]
    days = sum(1 <= int(part[3]) <= 12 for part in parts) - sum(1 <= int(part[1]) <= 12 for part in parts)
    return days > 0 or (days == 0 and sum(part[2] == "." for part in parts) > len(parts) / 2)


def _year_first(word: str, day_first: bool) -> str:
    """The same date with its year in front, if it says day, month and year in numbers."""
    found = DAY_AND_MONTH.fullmatch(word.strip())
    if not found:
        return word
    first, _, second, year, rest = found.groups()
    if len(year) == 2:
        year = str(int(year) + (2000 if int(year) < THIS_CENTURY else 1900))
    day, month = (first, second) if day_first else (second, first)
    return f"{year}-{month:0>2}-{day:0>2}{rest}"


def to_words(values: pd.Series) -> pd.Series:
    """The values of a column as words, as files are read: without spaces around them, and "true" is the word
    of True. Whole numbers have no decimal point. Missing values, and words for them, are missing.
    """
    if pd.api.types.is_float_dtype(values):
        words = values.map(lambda value: f"{value:.0f}" if value % 1 == 0 else str(value))
    else:
        words = values.astype(str).str.strip().replace(TRUTHS)
    return words.astype(object).where(values.notna() & ~words.str.lower().isin(MISSING), np.nan)
