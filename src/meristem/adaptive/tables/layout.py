"""The layout of a text file, from its first rows: compression, encoding, separator, quotes, decimal sign,
header.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from meristem.errors import MeristemError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space"}
MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-", "#n/a", "<na>"}
SAMPLE_ROWS = 200
OPENERS = {b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it first",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV first",
    b"PAR1": "a Parquet file; save it as CSV first",
    b"\x89HDF": "an HDF5 file; save it as CSV first",
    b"7z\xbc\xaf": "7z-compressed; unpack it first",
    b"\x93NUMPY": "a NumPy file; save it as CSV first",
    b"%PDF": "a PDF document",
}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|[+-]?inf(inity)?$", re.IGNORECASE)
COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+$")


@dataclass(frozen=True)
class Layout:
    """How to read a file. `fields` is the number of fields in each row."""

    encoding: str
    separator: str
    quote: str
    decimal: str = "."
    has_header: bool = True
    fields: int = 0

    def rows(self, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
        """The lines that are not blank, as their numbers and their fields."""
        if self.separator == " ":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.split()
            return
        reader = csv.reader(file, delimiter=self.separator, quotechar=self.quote, skipinitialspace=True, strict=True)
        for row in reader:
            if row and any(cell.strip() for cell in row):
                yield reader.line_num, row

    def said(self) -> str:
        """A description of the layout in words."""
        return f"{SEPARATORS.get(self.separator, repr(self.separator))}-separated, {'a header' if self.has_header else 'no header'}"


def open_text(path: Path, encoding: str = "utf-8-sig") -> IO[str]:
    """Open a file as text, decompressed according to its first bytes.

    Raises:
        MeristemError: for formats other than text, and for archives of several files.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for magic, said in OTHER_FORMATS.items():
        if start.startswith(magic):
            raise MeristemError(f"{path} is {said}")
    if start.startswith(b"PK\x03\x04"):
        archive = zipfile.ZipFile(path)
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if any(name.startswith("xl/") for name in names):
            raise MeristemError(f"{path} is an Excel workbook; save it as CSV first")
        if len(names) != 1:
            raise MeristemError(f"{path} is an archive of {len(names)} files; unpack it and name one")
        return io.TextIOWrapper(archive.open(names[0]), encoding=encoding, newline="")
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        return path.open(encoding=encoding, newline="")
    return opener(path, "rt", encoding=encoding, newline="")  # type: ignore[return-value]


def find_layout(path: Path, separator: str | None = None, header: bool | None = None) -> Layout:
    """The layout of a file, from its first rows.

    Args:
        path: the file.
        separator, header: the separator, and whether there is a header, if they are known.

    Raises:
        MeristemError: if the file is empty, if it is not text, or if no separator gives a table.
    """
    encoding, lines = _first_lines(path)
    if not lines:
        raise MeristemError(f"{path} is empty")
    if separator is not None:
        separator = separator.replace("\\t", "\t")
        if len(separator) != 1:
            raise MeristemError(f"the separator is one character such as ';' or '\\t', got {separator!r}")
    quote = (
        "'"
        if any(line.lstrip().startswith("'") or ",'" in line for line in lines) and '"' not in "".join(lines)
        else '"'
    )
    candidates = [separator] if separator else list(SEPARATORS)
    tables = {sign: _split(lines, Layout(encoding, sign, quote)) for sign in candidates}
    sign = max(tables, key=lambda sign: _consistency(tables[sign]))
    rows = tables[sign]
    if separator and all(len(row) == 1 for row in rows):
        raise MeristemError(f"{path} has no {separator!r} in its first rows; is the separator another one?")
    if not rows:
        raise MeristemError(f"{path} has no rows that can be read; are its quotes closed?")
    cells = list(itertools.chain.from_iterable(rows))
    commas = (
        sign in ";\t|"
        and any(map(COMMA_NUMBER.match, cells))
        and not any(re.match(r"[+-]?\d+\.\d+$", c) for c in cells)
    )
    layout = Layout(encoding, sign, quote, "," if commas else ".", fields=len(rows[0]))
    return replace(layout, has_header=looks_like_header(rows, layout.decimal) if header is None else header)


def _first_lines(path: Path) -> tuple[str, list[str]]:
    with path.open("rb") as file:
        start = file.read(4)
    choices = ["utf-16"] if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in choices:
        try:
            with open_text(path, encoding) as file:
                lines = list(itertools.islice((line for line in file if line.strip()), SAMPLE_ROWS))
        except UnicodeDecodeError:
            continue
        except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise MeristemError(f"cannot read {path}: {error}") from error
        if any("\0" in line for line in lines):
            break
        return encoding, lines
    raise MeristemError(f"{path} is not text; a table of values separated by commas, semicolons or tabs is needed")


def _split(lines: list[str], layout: Layout) -> list[list[str]]:
    found = []
    try:
        for _, row in layout.rows(io.StringIO("".join(lines), newline="")):
            found.append([cell.strip() for cell in row])
    except csv.Error:  # a quote that is open at the end of the sample
        pass
    return found


def _consistency(rows: list[list[str]]) -> tuple[bool, float, int]:
    """A score of rows: higher if more rows agree on a number of fields above one, then if there are more
    fields.
    """
    if not rows:
        return False, 0.0, 0
    lengths = [len(row) for row in rows]
    common = max(set(lengths), key=lengths.count)
    return common > 1, round(lengths.count(common) / len(lengths), 1), common


def is_number(cell: str, decimal: str = ".") -> bool:
    """Whether a cell is a number."""
    return bool(NUMBER.match(cell.strip().replace(decimal, ".")))


def looks_like_header(rows: list[list[str]], decimal: str = ".") -> bool:
    """Whether the first row names the columns: it holds words above numbers, or words that do not occur
    again.
    """
    first, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if not body:
        return not any(is_number(cell, decimal) for cell in first)
    votes = 0
    for place, name in enumerate(first):
        values = [row[place] for row in body if row[place].lower() not in MISSING]
        if name.lower() in MISSING or not values:
            continue
        if all(is_number(value, decimal) for value in values):
            if not is_number(name, decimal):
                return True
            votes -= 1
        elif name in values:
            votes -= 1
        elif len(set(values)) <= max(2, len(values) // 2):
            votes += 1
    return votes > 0 or (votes == 0 and not any(is_number(cell, decimal) for cell in first))
