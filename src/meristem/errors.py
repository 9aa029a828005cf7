"""The errors that users see. A message says what was asked, what was found, and what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeristemError(Exception):
    """Bad input. The command line prints the message and exits with code 2, without a traceback."""


class AnatomyError(MeristemError):
    """Meristem cannot explain the tensors of a network."""


class UnexplainedError(AnatomyError):
    """The size of a dimension follows no layout of the axes. The error holds the tensor and the number of the
    dimension.
    """

    def __init__(self, message: str, tensor: str, place: int) -> None:
        super().__init__(message)
        self.tensor, self.place = tensor, place


class PreservationError(MeristemError):
    """A growth promises to keep the function, and the measurement shows that it does not. The command line
    exits with code 1.
    """


def nearest(asked: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known spelling, or lists all known ones.

    >>> nearest("hypercloing", ["hypercloning", "lemon"])
    "did you mean 'hypercloning'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(asked, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)


def first_line(error: BaseException) -> str:
    r"""The part of another library's error to quote: its first line, and the next one if the first only
    announces it.

    >>> first_line(ValueError("Validation failed:\n  width is odd\nsee the manual"))
    'Validation failed: width is odd'
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first
