"""The one picture of a study: mean loss of decayed networks against compute, with a band over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.studies.results import Finding
from benchmarks.studies.rows import Row
from benchmarks.studies.statistics import LEAST_SEEDS
from benchmarks.support.picture import picture

STRONG = {"color": "black", "linewidth": 2.0}


def draw(finding: Finding, file: Path) -> None:
    """Write the picture of what is measured on as many seeds as a verdict wants, or as the baseline has."""
    base = _points(finding.rows, finding.study.baseline)
    least = min([LEAST_SEEDS, *map(len, base.values())])
    points = {side.name: _points(finding.rows, side.name, least) for side in finding.study.sides}
    shown = [name for name, own in points.items() if own]
    colors = dict(
        zip(dict.fromkeys(name.partition("@")[0] for name in shown), (f"C{i % 10}" for i in range(99)), strict=False)
    )
    with picture(file, dpi=120, figsize=(8, 5)) as axes:
        for number, name in enumerate(shown):
            method, _, _ = name.partition("@")
            siblings = [other for other in shown if other.partition("@")[0] == method]
            dashes = ("-", "--", ":", "-.")[siblings.index(name) % 4]
            style = STRONG if name == finding.study.baseline else {"color": colors[method], "linestyle": dashes}
            _line(axes, points[name], name, {**style, "zorder": 9 - min(number, 8)})
        axes.set(
            xscale="log",
            xlabel="bytes for each parameter; total compute in TFLOPs, parents included",
            ylabel="evaluation loss, nats per token",
        )
        compute = {budget: mean(row["flops"] for row in rows) / 1e12 for budget, rows in base.items()}
        axes.set_xticks([*compute.values()], [f"{budget:g}\n{flops:.3g}" for budget, flops in compute.items()])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25, which="both")
        if shown:
            axes.legend(fontsize=7, ncols=2)


def _points(rows: Sequence[Row], side: str, least: int = 1) -> dict[float, list[Row]]:
    """{budget: its rows}, of budgets with so many seeds at least."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        if row["side"] == side and row["split"] == "eval" and row["loss"] is not None:
            found.setdefault(row["budget"], []).append(row)
    return {budget: own for budget, own in sorted(found.items()) if len(own) >= least}


def _line(axes: Any, points: dict[float, list[Row]], label: str, style: dict[str, Any]) -> None:
    flops = [mean(row["flops"] for row in rows) / 1e12 for rows in points.values()]
    losses = [[row["loss"] for row in rows] for rows in points.values()]
    axes.plot(flops, [mean(own) for own in losses], label=label, marker="o", markersize=3, **style)
    axes.fill_between(
        flops, [min(own) for own in losses], [max(own) for own in losses], color=style["color"], alpha=0.12
    )
