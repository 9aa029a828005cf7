"""What `meristem learn` is asked for, checked before any library is loaded."""

from __future__ import annotations

from pathlib import Path

from meristem.errors import MeristemError, nearest

NAMES = ("adanet", "energynet")  # of `learn.KINDS`
SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "wine")  # scikit-learn's data sets


def check_kind(kind: str) -> None:
    """Raises MeristemError for a method that is not known."""
    if kind not in NAMES:
        raise MeristemError(f"unknown method {kind!r}; {nearest(kind, NAMES)}")


def check_table(source: str) -> None:
    """Raises MeristemError for what is neither a file nor the name of a data set."""
    if source in SHIPPED:
        return
    if Path(source).is_dir():
        raise MeristemError(f"{source} is a directory; a CSV file is needed")
    if not Path(source).is_file():
        raise MeristemError(
            f"{source} is neither a CSV file nor one of {', '.join(SHIPPED)}; {nearest(source, SHIPPED)}"
        )
