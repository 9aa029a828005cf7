"""The picture of a race: loss against total compute, including that of the parents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meristem.recipes.node import NodeResult
from meristem.recipes.race import ancestors_among
from meristem.recipes.run import Results
from meristem.recipes.specs.schema import Recipe


def draw_race(recipe: Recipe, results: Results, file: Path) -> None:
    """Write a PNG file with the baseline and the challenger of every seed. The ancestors of the challenger
    are dashed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    assert recipe.race is not None
    figure, (by_flops, by_time) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axes, cost, unit, label in (
        (by_flops, "flops", 1e12, "total compute, TFLOPs (small model included)"),
        (by_time, "seconds", 1.0, "training time, s (small model included)"),
    ):
        for lap, nodes in enumerate(results.values()):
            _draw(axes, recipe, nodes, recipe.race.baseline, cost, unit, "tab:gray", lap == 0)
            _draw(axes, recipe, nodes, recipe.race.challenger, cost, unit, "tab:green", lap == 0)
        target = [nodes[recipe.race.baseline].metrics["eval_loss"] for nodes in results.values()]
        axes.axhline(sum(target) / len(target), color="tab:gray", linewidth=0.8, linestyle=":")
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    low = min(n.metrics["eval_loss"] for nodes in results.values() for n in nodes.values() if n.curve)
    by_flops.set_ylim(low - 0.05, low + 1.3)
    by_flops.set_ylabel("evaluation loss, nats per token")
    by_flops.legend()
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    partial.replace(file)


def _draw(
    axes, recipe: Recipe, nodes: Mapping[str, NodeResult], name: str, cost: str, unit: float, color: str, labelled: bool
) -> None:
    past, known = 0.0, {**ancestors_among(recipe, nodes, name), name: nodes[name]}
    for ancestor in recipe.ancestors(name):
        node = known[ancestor]
        curve = [((point[cost] + past) / unit, point["eval_loss"]) for point in node.curve]
        if curve:
            style = "-" if ancestor == name else "--"
            label = f"{ancestor} ({node.parameters / 1e6:.2f} M parameters)" if labelled else None
            axes.plot(*zip(*curve, strict=True), style, color=color, linewidth=1.5, label=label)
        past += getattr(node, cost)
