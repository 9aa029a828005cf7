"""The one way to a picture: axes to draw on, then a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def picture(file: Path, *shape: int, dpi: int = 150, **options: Any) -> Iterator[Any]:
    """Axes (as matplotlib's `subplots` gives them for rows and columns), without a display; `file` is written when the drawing is done."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(*shape, layout="constrained", **options)
    yield axes
    figure.savefig(file, dpi=dpi)
    plt.close(figure)
