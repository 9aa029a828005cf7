"""`meristem diagnose`: the training before a growth point against the training after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import RecipeFile, RunDirectory
from meristem.cli.progress import step
from meristem.errors import MeristemError


def diagnose(
    recipe: RecipeFile,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node that grows or fuses.")],
    bound: Annotated[float, typer.Option(help="The largest conflict per step at the junction.")] = 0.1,
    out: RunDirectory = None,
) -> Answer:
    """Measure how much the training after a growth point conflicts with the training before it.

    It also prints the learning rate that bounds the conflict.
    """
    calm_libraries()
    from meristem.recipes.growth_node import check_grows
    from meristem.recipes.specs.schema import load_recipe

    if bound <= 0:
        raise MeristemError(f"--bound must be positive, got {bound}")
    loaded = load_recipe(recipe)
    check_grows(loaded, node)
    with step("loading torch and transformers"):
        from meristem.recipes.diagnose import diagnose as measure

    found = measure(loaded, node, out or Path("runs") / recipe.stem, bound, step=step)
    _print_junction(node, bound, found)
    return Answer({"recipe": recipe, "node": node, "bound": bound, "diagnoses": found})


def _print_junction(node: str, bound: float, found: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"seed {d.seed}" for d in found), title=f"{node}: the junction")
    rows = (
        ("loss of the parents", lambda d: f"{d.junction.loss_before:.4f}"),
        ("loss of the large network", lambda d: f"{d.junction.loss_after:.4f}"),
        ("|g|, gradient before", lambda d: f"{d.junction.gradient_before:.3e}"),
        ("|f|, gradient after", lambda d: f"{d.junction.gradient_after:.3e}"),
        ("cosine of g and f", lambda d: f"{d.junction.cosine:.3f}"),
        ("flatness before, |grad E|^2 / 4", lambda d: f"{d.junction.flatness_before:.3e}"),
        ("flatness after", lambda d: f"{d.junction.flatness_after:.3e}"),
        ("conflict |[g, f]| / |f|", lambda d: f"{d.junction.conflict:.3e}"),
        (
            f"learning rate that keeps it at {bound:g} per step ({found[0].optimizer})",
            lambda d: f"{d.learning_rate:.3e}",
        ),
        *(
            (f"steps of warm-up from there ({name})", lambda d, name=name: str(d.warmup[name]))
            for name in found[0].warmup
        ),
    )
    for label, cell in rows:
        table.add_row(label, *(cell(d) for d in found))
    Console().print(table)
    if found[0].optimizer == "adam":
        print(
            "measured in the coordinates in which Adam, with the second moments it has here, is plain gradient descent"
        )
