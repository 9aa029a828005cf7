"""Lines on the terminal."""

from __future__ import annotations

import sys


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
