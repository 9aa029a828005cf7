"""Pictures of what was learned: filters, the posterior over the number of units, widths over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def save_figure(figure: Figure, out: str | Path) -> None:
    """Write a PNG by atomic rename."""
    out = Path(out)
    partial = out.with_name(f".{out.name}.partial")
    figure.savefig(partial, format="png", dpi=150, bbox_inches="tight")
    partial.replace(out)


def filters(weights: np.ndarray, image_shape: tuple[int, int], columns: int = 16, at_most: int = 128) -> Figure:
    """The weights of each hidden unit as an image, in their order.

    Args:
        weights: W (hidden units, visible units), with visible units = height x width of `image_shape`.
    """
    shown = weights[:at_most]
    rows = -(-len(shown) // columns)
    height, width = image_shape
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, row in enumerate(shown):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        sheet[top : top + height, left : left + width] = row.reshape(image_shape)
    figure = Figure(figsize=(columns * 0.6, rows * 0.6))
    axes = figure.subplots()
    limit = np.nanmax(np.abs(sheet)) or 1.0
    axes.imshow(sheet, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_axis_off()
    axes.set_title(f"filters 1 to {len(shown)} of {len(weights)}")
    return figure


def posterior_over_units(posterior: np.ndarray) -> Figure:
    """The mean of p(z | v) over data, and P(Z <= z).

    Args:
        posterior: p(z | v) (n_samples, hidden units).
    """
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    mean = posterior.mean(0)
    numbers = np.arange(1, len(mean) + 1)
    axes.bar(numbers, mean, width=1.0, color="tab:blue", label="p(z | v), mean over the data")
    right = axes.twinx()
    right.plot(numbers, np.cumsum(mean), color="tab:orange")
    right.set(ylabel="P(Z <= z)", ylim=(0, 1.02))
    axes.set(xlabel="number of units z", ylabel="p(z | v)", title="how many units the data use")
    return figure


def width_over_training(histories: Sequence[Sequence[dict[str, Any]]]) -> Figure:
    """Units of each layer's machine after each pass, and the mean z of the data.

    Args:
        histories: `history_` of each layer's machine.
    """
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    for number, history in enumerate(histories, 1):
        passes = range(1, len(history) + 1)
        (line,) = axes.plot(passes, [r["n_components"] for r in history], label=f"layer {number}: units")
        axes.plot(passes, [r["mean_z"] for r in history], "--", color=line.get_color(), label=f"layer {number}: E[z]")
    axes.set(xlabel="passes through the data", ylabel="hidden units", title="width over training")
    axes.legend()
    return figure
