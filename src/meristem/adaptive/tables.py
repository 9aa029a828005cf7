"""Tables as they come: a CSV file with a header, or a data set that scikit-learn ships."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meristem.errors import MeristemError, nearest

SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "wine")


@dataclass(frozen=True)
class Table:
    """Rows of numbers and what is to be predicted.

    Args:
        x: (n_samples, n_features). y: (n_samples,), names or numbers. names: of the features. target: its name.
    """

    x: np.ndarray
    y: np.ndarray
    names: list[str]
    target: str

    @property
    def is_classification(self) -> bool:
        """Names are classes, and so are at most 20 different whole numbers."""
        if not np.issubdtype(self.y.dtype, np.number):
            return True
        return bool((self.y == np.round(self.y)).all()) and len(np.unique(self.y)) <= 20


def open_table(source: str, target: str | None = None) -> Table:
    """Read a CSV file, or take one of scikit-learn's data sets by its name.

    Args:
        target: the column to predict; the last one if not given.

    Raises:
        MeristemError: if there is no such table or column, or a feature is not a number.
    """
    if source in SHIPPED:
        return _shipped(source, target)
    path = Path(source)
    if not path.is_file():
        raise MeristemError(
            f"{source} is neither a CSV file nor one of {', '.join(SHIPPED)}; {nearest(source, SHIPPED)}"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeristemError(f"cannot read {source} as CSV: {error}") from error
    if len(rows) < 3:
        raise MeristemError(f"{source} has {max(0, len(rows) - 1)} rows under its header; at least 2 are needed")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise MeristemError(f"{source}, row {number}: {len(row)} fields, the header has {len(header)}")
    wanted = target or header[-1]
    if wanted not in header:
        raise MeristemError(f"{source} has no column {wanted!r}; {nearest(wanted, header)}")
    names = [name for name in header if name != wanted]
    columns = dict(zip(header, zip(*body, strict=True), strict=True))
    if not names:
        raise MeristemError(f"{source} has no column beside {wanted!r} to learn from")
    x = np.stack([_numbers(source, name, columns[name]) for name in names], 1)
    return Table(x, _targets(columns[wanted]), names, wanted)


def _shipped(source: str, target: str | None) -> Table:
    from sklearn import datasets

    if target is not None:
        raise MeristemError(f"{source} has its target; a target is named for a CSV file only")
    bunch = getattr(datasets, f"load_{source}")()
    names = [str(name) for name in bunch.feature_names]
    x = bunch.data / 16 if source == "digits" else bunch.data
    return Table(x, bunch.target, names, "target")


def _numbers(source: str, name: str, values: tuple[str, ...]) -> np.ndarray:
    try:
        column = np.array([float(value) for value in values])
    except ValueError as error:
        raise MeristemError(f"{source}, column {name!r}: {error}; encode names as numbers first") from error
    if not np.isfinite(column).all():
        raise MeristemError(f"{source}, column {name!r} has missing or infinite values; fill them first")
    return column


def _targets(values: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        return np.array(values)
