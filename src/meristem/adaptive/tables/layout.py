"""The layout of a text file, from its first rows: separator, quotes, decimal sign, lines above the table,
header.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from meristem.adaptive.tables.header import looks_like_header
from meristem.adaptive.tables.opening import first_lines
from meristem.adaptive.tables.values import Decimal
from meristem.errors import MeristemError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space"}
COMMA_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$")
POINT_NUMBER = re.compile(r"[+-]?\d+\.\d+$")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*$")
TOLD_SEPARATOR = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)  # the first line of some files of Excel
WITH_COMMAS = ";\t|"  # separators next to which a comma can be the decimal sign
LONGEST_FIELD = 2**31 - 1  # characters, the most that every platform takes
STRANGE = re.compile(r"[,;\t|]")


@dataclass(frozen=True)
class Layout:
    """How to read a file.

    Args:
        encoding, separator, quote, decimal: as they say.
        has_header: whether the first row of the table holds names.
        fields: the number of fields in each row.
        above: the number of lines above the table, which are not read.
        is_comment: whether the header begins with "#" or "%".
        unnamed: the column that the header leaves out: the first (R writes the names of rows there), the last
            (the rows end with a separator), or none.
    """

    encoding: str
    separator: str
    quote: str
    decimal: Decimal = "."
    has_header: bool = True
    fields: int = 0
    above: int = 0
    is_comment: bool = False
    unnamed: Literal["", "first", "last"] = ""

    def rows(self, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
        """The lines of the table that are not blank, as the numbers of their last lines and their fields."""
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))  # a limit of the whole process
        lines = itertools.islice(file, self.above, None)
        if self.separator == " ":  # any number of spaces or tabs
            lines = (line.replace("\t", " ").rstrip() + "\n" for line in lines)
        reader = csv.reader(lines, delimiter=self.separator, quotechar=self.quote, skipinitialspace=True, strict=True)
        for row in reader:
            if row and any(cell.strip() for cell in row):
                yield self.above + reader.line_num, row

    def names(self, row: Sequence[str]) -> list[str]:
        """The name of each column, from the first row of the table. A column without a name has a number."""
        names = [name.strip() if self.has_header else "" for name in row]
        if self.is_comment:
            names[0] = names[0].lstrip("#% ") or names[0]
        if self.unnamed:
            names.insert(0 if self.unnamed == "first" else len(names), "")
        return [name or f"column_{k}" for k, name in enumerate(names, 1)]

    def said(self) -> str:
        """A description of the layout in words."""
        parts = [f"{SEPARATORS.get(self.separator, repr(self.separator))}-separated"]
        parts += ["decimal commas"] if self.decimal == "," else []
        parts += ["a header" if self.has_header else "no header"]
        parts += (
            [f"{self.above} line{'s' * (self.above > 1)} above it left out"]
            if self.above and not self.is_comment
            else []
        )
        return ", ".join(parts)


def find_layout(
    path: Path, separator: str | None = None, header: bool | None = None, decimal: Decimal | None = None
) -> Layout:
    """The layout of a file, from its first rows.

    Args:
        path: the file.
        separator, header: the separator, and whether there is a header, if they are known.
        decimal: the decimal sign, if the first rows do not show it.

    Raises:
        MeristemError: if the file is empty, if it is not text, or if no separator gives a table.
    """
    encoding, lines = first_lines(path)
    if separator is not None:
        separator = separator.replace("\\t", "\t")
        if len(separator) != 1:
            raise MeristemError(f"the separator is one character such as ';' or '\\t', got {separator!r}")
    told = TOLD_SEPARATOR.match(lines[0])
    separator = separator or (told[1] if told else None)
    above = 1 if told else 0
    comments = _comments(lines[above:])
    quote = _quote(lines)
    candidates = [separator] if separator else list(SEPARATORS)
    layouts = [Layout(encoding, sign, quote, above=above + comments) for sign in candidates]
    layout = max(layouts, key=lambda one: _consistency(_split(lines, one)))
    if comments and header is not False and _is_named_by_comment(lines, layout):
        layout = replace(layout, above=layout.above - 1, is_comment=True)
    rows = _split(lines, layout)
    if separator and rows and all(len(row) == 1 for _, row in rows):
        raise MeristemError(f"{path} has no {separator!r} in its first rows; is the separator another one?")
    if not rows:
        raise MeristemError(f"{path} has no rows that can be read; are its quotes closed?")
    titles = _titles(rows)
    layout = replace(layout, above=rows[titles - 1][0] if titles else layout.above)
    return _with_header([row for _, row in rows[titles:]], layout, header, decimal)


def _with_header(rows: list[list[str]], layout: Layout, header: bool | None, decimal: Decimal | None) -> Layout:
    """The layout with its decimal sign and header."""
    layout = replace(layout, decimal=_decimal(rows, layout.separator, decimal), fields=len(rows[0]))
    short = [row for row in rows[1:] if len(row) != len(rows[0]) + 1]
    if header is not False and len(rows) > 1 and not short:
        unnamed = "first" if any(row[-1] for row in rows[1:]) else "last"
        padded = ["", *rows[0]] if unnamed == "first" else [*rows[0], ""]
        if header or looks_like_header([padded, *rows[1:]], layout.decimal):
            return replace(layout, has_header=True, unnamed=unnamed, fields=len(padded))
    has_header = layout.is_comment or looks_like_header(rows, layout.decimal)
    return replace(layout, has_header=has_header if header is None else header)


def _decimal(rows: list[list[str]], separator: str, known: Decimal | None) -> Decimal:
    """The decimal sign: a comma if numbers have one, and none has a point, except between thousands. If they
    show none, it is the known one.
    """
    if separator not in WITH_COMMAS:
        return "."
    cells = list(itertools.chain.from_iterable(rows))
    commas = [cell for cell in cells if COMMA_NUMBER.match(cell)]
    points = [cell for cell in cells if POINT_NUMBER.match(cell)]
    shown = [any(not THOUSANDS.match(cell) for cell in some) for some in (commas, points)]
    if shown[0] != shown[1]:
        return "," if shown[0] else "."
    if known or shown[0]:
        return known or "."
    grouped = any(cell.count(",") > 1 and THOUSANDS.match(cell) for cell in cells)
    return "," if commas and not points and not grouped else "."


def _quote(lines: list[str]) -> str:
    single = any(line.lstrip().startswith("'") or ",'" in line for line in lines)
    return "'" if single and '"' not in "".join(lines) else '"'


def _comments(lines: list[str]) -> int:
    """The number of lines at the top that begin with "#" or "%", if the lines below do not."""
    signs = ("#", "%")
    count = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith(signs)), 0)
    return (
        count
        if any(line.strip() for line in lines[:count]) and not any(line.startswith(signs) for line in lines[count:])
        else 0
    )


def _is_named_by_comment(lines: list[str], layout: Layout) -> bool:
    """Whether the last comment names the columns: it has as many fields as the rows."""
    rows = [row for _, row in _split(lines, replace(layout, above=layout.above - 1))]
    if not lines[layout.above - 1].strip() or len(rows) < 2:
        return False
    return len(rows[0]) == len(rows[1]) > 1 and (rows[0][0] == "#" or not looks_like_header(rows[1:]))


def _titles(rows: list[tuple[int, list[str]]]) -> int:
    """The number of rows above the table with a single field, where the rows below have more."""
    lengths = [len(row) for _, row in rows]
    common = max(set(lengths), key=lengths.count)
    if common == 1 or lengths.count(common) <= len(lengths) / 2:
        return 0
    filled = [sum(map(bool, row)) for _, row in rows]
    titles = next((k for k, length in enumerate(lengths) if length != 1), 0)
    while titles + 1 < len(rows) and common > 2 and filled[titles] <= 1:  # "title;;" as Excel writes it
        titles += 1
    table = [row for _, row in rows[titles:]]
    return titles if titles and looks_like_header(table) else 0


def _split(lines: list[str], layout: Layout) -> list[tuple[int, list[str]]]:
    found = []
    try:
        for number, row in layout.rows(io.StringIO("".join(lines), newline="")):
            found.append((number, [cell.strip() for cell in row]))
    except csv.Error:  # a quote that is open at the end of the sample
        pass
    return found


def _consistency(rows: list[tuple[int, list[str]]]) -> tuple[bool, float, float, int]:
    """A score of rows: higher if more rows agree on a number of fields above one, then if fewer fields hold
    another separator (a decimal comma is none), then if there are more fields.
    """
    if not rows:
        return False, 0.0, 0.0, 0
    lengths = [len(row) for _, row in rows]
    common = max(set(lengths), key=lengths.count)
    cells = [cell for _, row in rows for cell in row]
    strange = sum(bool(STRANGE.search(cell)) and not COMMA_NUMBER.match(cell) for cell in cells)
    return common > 1, round(lengths.count(common) / len(lengths), 1), round(1 - strange / len(cells), 1), common
