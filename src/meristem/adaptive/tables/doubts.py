"""What is doubtful about a table to predict from: values that cannot be read, categories that were never
seen, and another decimal sign than in the table that was learned.
"""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import pandas as pd

from meristem.adaptive.tables.columns import MOSTLY, Column
from meristem.adaptive.tables.encoding import DATE_PARTS
from meristem.adaptive.tables.values import Decimal, number_of

SIGNS: dict[Decimal, str] = {".": "decimal points", ",": "decimal commas"}
SHOWN = 3  # values in a warning


def warn_of_unreadable(frame: pd.DataFrame, found: pd.DataFrame, columns: Sequence[Column]) -> None:
    """Warn of each column of numbers or dates of which fewer values can be read than when it was learned.

    Args:
        frame: the rows as they are given (n, columns).
        found: the same rows as `encoding.prepared` reads them.
        columns: the kinds of the columns.
    """
    for column in columns:
        if column.kind not in ("number", "date"):
            continue
        given = frame[column.name].notna().to_numpy()
        read = found[column.name if column.kind == "number" else f"{column.name}_{DATE_PARTS[0]}"].notna().to_numpy()
        strange = int((given & ~read).sum())
        if not strange or strange <= (1 - MOSTLY) * given.sum():
            continue
        words = frame[column.name][given & ~read].astype(str).unique()
        shown = _shown(words)
        one, many = ("a date", "dates") if column.kind == "date" else ("a number", "numbers")
        good = int(given.sum()) - strange
        count = "none" if not good else f"only {good}"
        is_one = f"is {one}" if good < 2 else f"are {many}"
        warnings.warn(
            f"column {column.name!r}: {count} of {given.sum()} values {is_one} ({shown}); "
            f"{'the others' if good else 'all'} are read as missing",
            stacklevel=4,  # where `predict` was called
        )


def warn_of_unknown(frame: pd.DataFrame, found: pd.DataFrame, known: Mapping[str, Set[str]]) -> None:
    """Warn of each column of categories of which more than half of the values were never seen, and of each
    that has numbers where "01" was learned, which would be 1.

    Args:
        frame: the rows as they are given (n, columns).
        found: the rows as `encoding.prepared` reads them.
        known: the categories of each column, as `encoding.known_categories` lists them.
    """
    for name, categories in known.items():
        codes = [word for word in sorted(categories) if word[:1] == "0" and word[1:].isdecimal()]
        if codes and pd.api.types.is_numeric_dtype(frame[name]):
            warnings.warn(
                f"column {name!r} has numbers, and categories such as {codes[0]!r} were learned, which no number is; "
                "give words (pandas' read_csv reads them with dtype=str)",
                stacklevel=4,  # where `predict` was called
            )
            continue
        words = found[name].dropna()
        strange = words[~words.isin(list(categories))]
        if len(strange) <= len(words) / 2:
            continue
        shown, seen = (_shown(some) for some in (strange.unique(), sorted(categories)))
        warnings.warn(
            f"column {name!r}: {len(strange)} of {len(words)} values are none of the categories that were learned "
            f"({shown}; learned: {seen}); they count as rare ones",
            stacklevel=4,  # where `predict` was called
        )


def _shown(words: Sequence[str]) -> str:
    return ", ".join(map(repr, words[:SHOWN])) + (", ..." if len(words) > SHOWN else "")


def with_decimals(frame: pd.DataFrame, columns: Sequence[Column], remembered: Decimal) -> list[Column]:
    """The columns with the decimal sign of their words in `frame`: the remembered one, if the words do not
    contradict it. Where they do, a warning says so.

    Args:
        frame: the rows (n, columns), with words as names.
        columns: the kinds of the columns.
        remembered: the decimal sign of the table that was learned. That of a column comes before it.
    """
    found = []
    for column in columns:
        sign: Decimal = "," if "," in (column.decimal, remembered) else "."
        if column.kind == "number" and column.name in frame.columns:
            sign = _sign_of(column.name, frame[column.name], sign)
        found.append(replace(column, decimal=sign))
    return found


def _sign_of(name: str, values: pd.Series, remembered: Decimal) -> Decimal:
    if pd.api.types.infer_dtype(values, skipna=True) not in ("string", "mixed", "mixed-integer"):
        return remembered
    other: Decimal = "." if remembered == "," else ","
    words = pd.Series(values.dropna().astype(str).unique())
    known, changed = (
        words.map(lambda word, sign=sign: not math.isnan(number_of(word, sign))) for sign in (remembered, other)
    )
    against = words[~known & changed]
    if not len(against) or (known & ~changed).any():
        return remembered
    warn_of_sign(f"column {name!r}, with words such as {against.iloc[0]!r},", other, remembered, level=6)
    return other


def warn_of_sign(where: str, found: Decimal, remembered: Decimal, level: int) -> None:
    """Warn that a table has another decimal sign than the one that was learned."""
    warnings.warn(
        f"{where} has {SIGNS[found]}, and the table that was learned has {SIGNS[remembered]}; "
        f"it is read with {SIGNS[found]}",
        stacklevel=level,
    )
