"""Checks of the arguments of `meristem learn`, before any library is loaded."""

from __future__ import annotations

from pathlib import Path

from meristem.errors import MeristemError, nearest

NAMES = ("adanet", "energynet")  # of `learn.KINDS`
SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "wine")  # scikit-learn's data sets


def check_kind(kind: str) -> None:
    """Check the name of a method.

    Raises:
        MeristemError: if it is unknown.
    """
    if kind not in NAMES:
        raise MeristemError(f"unknown method {kind!r}; {nearest(kind, NAMES)}")


def check_table(source: str) -> None:
    """Check that `source` is a file or the name of a data set.

    Raises:
        MeristemError: if it is neither.
    """
    if source in SHIPPED:
        return
    if Path(source).is_dir():
        raise MeristemError(f"{source} is a directory; a CSV file is needed")
    if not Path(source).is_file():
        raise MeristemError(f"{source}: no such file, and no data set of that name; {nearest(source, SHIPPED)}")
