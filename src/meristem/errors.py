"""The one error family that users see: what was asked, what was found, what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeristemError(Exception):
    """Bad input. The command line prints its message and exits with code 2, without a traceback."""


class AnatomyError(MeristemError):
    """A network whose tensors Meristem cannot explain."""


class UnexplainedError(AnatomyError):
    """A dimension whose size follows no layout of the axes: the tensor, and which dimension of it."""

    def __init__(self, message: str, tensor: str, place: int) -> None:
        super().__init__(message)
        self.tensor, self.place = tensor, place


class PreservationError(MeristemError):
    """A growth that promises to preserve the function and, measured, does not. The command line exits with code 1."""


def nearest(asked: str, known: Iterable[str]) -> str:
    """A sentence that names the closest known spelling, or lists what is known.

    >>> nearest("hypercloing", ["hypercloning", "lemon"])
    "did you mean 'hypercloning'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(asked, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)


def first_line(error: BaseException) -> str:
    """What to quote of an error from below: its first line, and the next where the first only announces it.

    >>> first_line(ValueError("Validation failed:\\n  width is odd\\nsee the manual"))
    'Validation failed: width is odd'
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first
