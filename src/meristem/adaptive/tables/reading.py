"""A text file as a data frame: every row has as many fields as the first, names are unique, and numbers are
numbers.
"""

from __future__ import annotations

import csv
import lzma
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from meristem.adaptive.tables.layout import MISSING, Layout, find_layout, open_text
from meristem.errors import MeristemError, first_line

UNREADABLE = (OSError, EOFError, UnicodeError, lzma.LZMAError, zipfile.BadZipFile)


def read_frame(path: Path, separator: str | None = None, header: bool | None = None) -> tuple[pd.DataFrame, Layout]:
    """Read a file, compressed or not.

    Args:
        path: the file.
        separator, header: the separator, and whether there is a header. By default the first rows decide.

    Returns:
        The frame (n_samples, columns), and the layout of the file.

    Raises:
        MeristemError: if rows have different lengths, if names occur twice, or if the file is not a table.
    """
    layout = find_layout(path, separator, header)
    names = _names(path, layout)
    options: dict[str, Any] = {"sep": r"\s+"} if layout.separator == " " else {"sep": layout.separator}
    try:
        with open_text(path, layout.encoding) as file:
            frame = pd.read_csv(
                file,
                header=None,
                names=names,
                skiprows=_line_of_body(path, layout),
                quotechar=layout.quote,
                skipinitialspace=True,
                decimal=layout.decimal,
                na_values=[*MISSING, *(word.upper() for word in MISSING)],
                low_memory=False,
                index_col=False,
                **options,
            )
    except (*UNREADABLE, ValueError) as error:  # pandas' ParserError is a ValueError
        raise MeristemError(f"cannot read {path} as a table: {first_line(error)}") from error
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        if not pd.api.types.is_bool_dtype(frame[name]):
            frame[name] = frame[name].str.strip()
    return frame, layout


def _line_of_body(path: Path, layout: Layout) -> int:
    """The number of lines before the first row of values."""
    if not layout.has_header:
        return 0
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
                if not names:
                    names = [name.strip() if layout.has_header else "" for name in row]
                if len(row) != len(names):
                    what = "the header" if layout.has_header else "the first row"
                    raise MeristemError(f"{path}, row {count}: {len(row)} fields, {what} has {len(names)}")
    except (*UNREADABLE, csv.Error) as error:
        raise MeristemError(f"cannot read {path} as a table, row {count + 1}: {first_line(error)}") from error
    names = [name or f"column_{k}" for k, name in enumerate(names, 1)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise MeristemError(
            f"{path} has {names.count(twice[0])} columns named {twice[0]!r}; rename them, "
            "or pass --no-header if the first row holds values"
        )
    return names
