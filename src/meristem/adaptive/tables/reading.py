"""A text file as a data frame: every row has as many fields as the first, names are unique, and numbers are
numbers.
"""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

from __future__ import annotations

import csv
import lzma
import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from meristem.adaptive.tables.columns import MOSTLY
from meristem.adaptive.tables.header import MISSING
from meristem.adaptive.tables.layout import Layout, find_layout
from meristem.adaptive.tables.opening import open_text
from meristem.adaptive.tables.values import Decimal, to_numbers
from meristem.errors import MeristemError, first_line

UNREADABLE = (OSError, EOFError, UnicodeError, lzma.LZMAError, zipfile.BadZipFile)


def read_frame(
    path: Path,
    separator: str | None = None,
    header: bool | None = None,
    decimal: Decimal | None = None,
    words: Collection[str] = (),
) -> tuple[pd.DataFrame, Layout]:
    """Read a file, compressed or not. Rows without any value are left out.

    Args:
        path: the file.
        separator, header: the separator, and whether there is a header. By default the first rows decide.
        decimal: the decimal sign, if the first rows do not show it.
        words: columns whose values stay as they are written, such as "01", by name.

    Returns:
        The frame (n_samples, columns), and the layout of the file. Its index counts the rows of the file.

    Raises:
        MeristemError: if rows have different lengths, if names occur twice, or if the file is not a table.
    """
    layout = find_layout(path, separator, header, decimal)
    names = _names(path, layout)
    gaps = [*MISSING, *(word.upper() for word in MISSING)]
    frame = _read(path, layout, names, na_values=gaps, dtype={name: str for name in names if name in words})
    for name in frame.columns:
        if pd.api.types.infer_dtype(frame[name], skipna=True) == "string":
            frame[name] = _words(frame[name], "." if name in words else layout.decimal)
    return frame.dropna(how="all"), layout


def read_as_written(path: Path, layout: Layout, names: list[str], name: str) -> pd.Series:
    """A column as words (lines,), as the file writes them, without spaces around them. No word is missing,
    and no row is left out: the index is that of `read_frame` with those rows.

    Args:
        path, layout: the file.
        names: the names of all its columns.
        name: the column.
    """
    frame = _read(path, layout, names, usecols=[name], dtype=str, keep_default_na=False)
    return frame[name].str.strip()


def _read(path: Path, layout: Layout, names: list[str], **options: Any) -> pd.DataFrame:
    """The values of the file, by pandas.

    Args:
        options: further arguments of `pandas.read_csv`.
    """
    separator = r"\s+" if layout.separator == " " else layout.separator
    try:
        with open_text(path, layout.encoding) as file:
            for _ in range(_lines_above_values(path, layout)):  # pandas counts rows, not the lines in quotes
                file.readline()
            return pd.read_csv(
                file,
                sep=separator,
                header=None,
                names=names,
                quotechar=layout.quote,
                skipinitialspace=True,
                decimal=layout.decimal,
                low_memory=False,
                index_col=False,
                **options,
            )
    except (*UNREADABLE, ValueError) as error:  # pandas' ParserError is a ValueError
        raise MeristemError(f"cannot read {path} as a table: {first_line(error)}") from error


def _words(values: pd.Series, decimal: Decimal) -> pd.Series:
    """Words without spaces around them. Words for a gap are missing. With a decimal comma, what reads as a
    number is one, since pandas does not know points between thousands. A column of other words stays as it
    is.
    """
    values = values.str.strip()
    values = values.mask(values.str.lower().isin(MISSING))
    if decimal == ".":
        return values
    numbers = to_numbers(values, decimal)
    if numbers.notna().equals(values.notna()):
        return numbers
    if numbers.notna().sum() < MOSTLY * values.notna().sum():
        return values
    return values.where(numbers.isna(), numbers.map("{:.17g}".format))


def _lines_above_values(path: Path, layout: Layout) -> int:
    """The number of lines before the first row of values."""
    if not layout.has_header:
        return layout.above
    with open_text(path, layout.encoding) as file:
        return next(number for number, _ in layout.rows(file))


def _names(path: Path, layout: Layout) -> list[str]:
    """The names of the columns. It also checks that every row has as many fields."""
    names: list[str] = []
    count = 0
    try:
        with open_text(path, layout.encoding) as file:
            for _, row in layout.rows(file):
                count += 1
                names = names or layout.names(row)
                expected = len(names) - bool(layout.unnamed and count == 1)
                if len(row) != expected:
                    what = "the header" if layout.has_header else "the first row"
                    raise MeristemError(f"{path}, row {count}: {len(row)} fields, {what} has {len(names)}")
    except (*UNREADABLE, csv.Error) as error:
        raise MeristemError(f"cannot read {path} as a table, row {count + 1}: {first_line(error)}") from error
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise MeristemError(
            f"{path} has {names.count(twice[0])} columns named {twice[0]!r}; rename them, "
            "or pass --no-header if the first row holds values"
        )
    return names
