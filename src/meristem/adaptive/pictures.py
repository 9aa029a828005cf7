"""Pictures of learned models: filters, the posterior over the number of units, widths over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.nodewise import NodewiseModule


def save_figure(figure: Figure, out: str | Path) -> None:
    """Write a PNG file by an atomic rename."""
    out = Path(out)
    partial = out.with_name(f".{out.name}.partial")
    figure.savefig(partial, format="png", dpi=150, bbox_inches="tight")
    partial.replace(out)


def filters(weights: np.ndarray, image_shape: tuple[int, int], columns: int = 16, at_most: int = 128) -> Figure:
    """The weights of each hidden unit as an image, in their order.

    Args:
        weights: W (hidden units, visible units).
        image_shape: the height and the width of an image, whose product is the number of visible units.
        columns: the number of images in a row.
        at_most: the number of images, at most.
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
    """The mean of p(z | v) over the data, and P(Z <= z).

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
    """The number of units of each layer's machine after each pass, and the mean z of the data.

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


def structure(estimator: Any) -> Figure:
    """The structure of a fitted estimator: the network of AdaNet, or the widths of EnergyNet's layers over
    training.
    """
    module = getattr(estimator, "module_", None)
    return width_over_training([layer.history for layer in estimator.layers_]) if module is None else network(module)


def reliability(said: np.ndarray, held: np.ndarray, rows: np.ndarray) -> Figure:
    """A reliability diagram: predicted probabilities and shares of right predictions (bins,). The size of a
    dot follows its rows.
    """
    figure = Figure(figsize=(4, 3.6))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="tab:gray", linewidth=0.8)
    axes.scatter(said, held, s=10 + 200 * rows / rows.sum(), color="tab:blue")
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03), xlabel="predicted probability", ylabel="observed frequency")
    return figure


def predicted_over_true(predicted: np.ndarray, true: np.ndarray, at_most: int = 1000) -> Figure:
    """Predictions against true numbers (n,)."""
    figure = Figure(figsize=(4, 3.6))
    axes = figure.subplots()
    ends = float(true.min()), float(true.max())
    axes.plot(ends, ends, color="tab:gray", linewidth=0.8)
    axes.scatter(true[:at_most], predicted[:at_most], s=8, alpha=0.5, color="tab:blue")
    axes.set(xlabel="true", ylabel="predicted")
    return figure


def importance(names: Sequence[str], falls: Sequence[float], deviations: Sequence[float]) -> Figure:
    """The fall of the score without each column, the largest at the top."""
    figure = Figure(figsize=(6, 0.8 + 0.25 * len(names)))
    axes = figure.subplots()
    places = np.arange(len(names))
    axes.barh(places, falls, xerr=deviations, color="tab:blue", ecolor="tab:gray")
    axes.set_yticks(places, [name if len(name) < 40 else f"{name[:37]}..." for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("fall of the score")
    return figure


def network(module: AdaNetModule | NodewiseModule) -> Figure:
    """The network that an AdaNet estimator learned."""
    return network_of_blocks(module) if isinstance(module, AdaNetModule) else network_of_layers(module)


def network_of_layers(module: NodewiseModule) -> Figure:
    """Layers of single units. The width of the line to the output shows the l1 norm of the layer's output
    weights.
    """
    parts = module.parts()
    figure = Figure(figsize=(4, 1.2 * len(parts) + 2.4))
    axes = figure.subplots()
    top, most = len(parts) + 1, max((part.mass for part in parts), default=1.0) or 1.0
    for part in parts:
        axes.plot([0, 0], [part.depth - 1, part.depth], color="tab:gray", linewidth=0.8, zorder=1)
        axes.plot([0, 1], [part.depth, top], color="tab:orange", linewidth=0.5 + 4 * part.mass / most, zorder=1)
        _box(axes, 0, part.depth, f"{part.width} units", "tab:blue")
    _box(axes, 0, 0, f"{module.num_features - 1} inputs", "tab:green")
    _box(axes, 1, top, "output", "tab:orange")
    axes.set_xlim(-0.8, 1.8)
    axes.set_axis_off()
    return figure


def network_of_blocks(module: AdaNetModule) -> Figure:
    """A network that AdaNet learned: blocks from left to right, layers upwards, and lines for what each layer
    reads.

    The width of the line to the output shows the l1 norm of the block's output weights.
    """
    figure = Figure(figsize=(max(4, 1.6 * len(module.blocks) + 2), 1.2 * module.depth + 2.4))
    axes = figure.subplots()
    middle, top = (len(module.blocks) - 1) / 2, module.depth + 1
    masses = [float(weights.abs().sum()) for weights in module.output_weights]
    for number, (entry, mass) in enumerate(zip(module.layout(), masses, strict=True)):
        reads = cast(list[list[int]], entry["reads"])
        axes.plot([middle, number], [0, 1], color="tab:gray", linewidth=0.8, zorder=1)
        for layer, sources in enumerate(reads, 1):
            for source in (number, *sources):
                axes.plot([source, number], [layer, layer + 1], color="tab:gray", linewidth=0.8, zorder=1)
        depth = len(reads) + 1
        thick = 0.5 + 4 * mass / max(masses)
        axes.plot([number, middle], [depth, top], color="tab:orange", linewidth=thick, zorder=1)
        for layer in range(1, depth + 1):
            _box(axes, number, layer, f"{entry['width']} units", "tab:blue")
    _box(axes, middle, 0, f"{module.num_features - 1} inputs", "tab:green")
    _box(axes, middle, top, "output", "tab:orange")
    axes.set_xlim(-0.8, max(len(module.blocks) - 1, 0) + 0.8)
    axes.set_axis_off()
    axes.set_title("what each block reads, and its weight at the output")
    return figure


def _box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.text(x, y, text, ha="center", va="center", color="white", zorder=2,
              bbox={"boxstyle": "round", "facecolor": color, "edgecolor": "none"})  # fmt: skip
