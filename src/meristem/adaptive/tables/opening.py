"""A file as text: decompressed, in its encoding. Files of other formats are named."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from meristem.errors import MeristemError

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
OTHER_TEXTS = {
    "JSON": re.compile(r'\s*(\{\s*"|\[\s*[\[{]|[\[{]\s*$)'),
    "HTML or XML": re.compile(r"\s*<[!?]?[a-z]+[\s>]", re.IGNORECASE),
    "ARFF": re.compile(r"\s*@relation\b", re.IGNORECASE),
    "LIBSVM": re.compile(r"[+-]?\d+(\.\d+)?(\s+\d+:\S+)+\s*$"),
    "Markdown": re.compile(r"\|(\s*:?-+:?\s*\|)+\s*$"),
}


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


def first_lines(path: Path) -> tuple[str, list[str]]:
    """The encoding of a file, and its first lines with their ends.

    Raises:
        MeristemError: if the file is empty, if it cannot be read, or if it is not a table as text.
    """
    with path.open("rb") as file:
        start = file.read(4)
    choices = ["utf-16"] if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in choices:
        try:
            with open_text(path, encoding) as file:
                lines = list(itertools.islice(file, SAMPLE_ROWS))
        except UnicodeDecodeError:
            continue
        except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise MeristemError(f"cannot read {path}: {error}") from error
        if any("\0" in line for line in lines):
            break
        _check_format(path, [line for line in lines if line.strip()])
        return encoding, lines
    raise MeristemError(f"{path} is not text; a table of values separated by commas, semicolons or tabs is needed")


def _check_format(path: Path, lines: Sequence[str]) -> None:
    """Check that there are lines, and that they are not those of another format.

    Raises:
        MeristemError: otherwise.
    """
    if not lines:
        raise MeristemError(f"{path} is empty")
    told = [line for line in lines if not line.startswith(("%", "#"))][:2]
    for name, first in OTHER_TEXTS.items():
        if any(first.match(line) for line in told):
            raise MeristemError(
                f"{path} is {name}; a table of values separated by commas, semicolons or tabs is needed"
            )
