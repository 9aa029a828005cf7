"""`meristem run`: a recipe's graph of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meristem.cli.options import named_values
from meristem.cli.output import Answer, calm_libraries
from meristem.cli.parameters import ExecutorName, ExecutorOptions, RecipeFile, RunDirectory
from meristem.cli.progress import step
from meristem.errors import MeristemError


def run(
    recipe: RecipeFile,
    out: RunDirectory = None,
    executor: ExecutorName = None,
    executor_option: ExecutorOptions = None,
    watch: Annotated[bool, typer.Option("--watch", help="Update OUT/report.html during the run.")] = False,
) -> Answer:
    """Run a recipe. Finished nodes do not run again, and killed ones resume."""
    calm_libraries()
    from rich.console import Console
    from rich.table import Table

    from meristem.recipes.specs.schema import load_recipe

    loaded, out = load_recipe(recipe), out or Path("runs") / recipe.stem
    with step("loading torch and transformers"):
        from meristem.recipes.run import run as run_recipe

    results = run_recipe(loaded, out, executor=executor_named(executor, executor_option or [], out), watch=watch)
    table = Table("node", "seed", "parameters", "examples", "TFLOPs", "seconds", "eval loss", title=str(recipe))
    nodes = [(name, seed, node) for seed, found in results.items() for name, node in found.items()]
    for name, seed, node in nodes:
        loss = f"{node.metrics['eval_loss']:.4f}" if node.metrics else ""
        sizes = (f"{node.parameters:,}", f"{node.examples:,}", f"{node.flops / 1e12:.2f}", f"{node.seconds:.1f}")
        table.add_row(name, str(seed), *sizes, loss)
    Console().print(table)
    return Answer({"recipe": recipe, "out": out, "nodes": [_row(*node) for node in nodes]})


def _row(name: str, seed: int, node: Any) -> dict[str, Any]:
    kept = ("parameters", "examples", "flops", "seconds", "metrics")
    return {"node": name, "seed": seed, **{key: getattr(node, key) for key in kept}}


def executor_named(name: str | None, options: list[str], out: Path) -> Any:
    """The executor that `--executor` names, with its options. None if nodes run in this process.

    Raises:
        MeristemError: if options are given without an executor, or for an unknown name or option.
    """
    from meristem.recipes.executors import build_executor

    if name is None:
        if options:
            raise MeristemError("--executor-option needs --executor local, ray or slurm")
        return None
    own = {"folder": out / "slurm"} if name == "slurm" else {}
    return build_executor(name, {**own, **named_values("--executor-option", options)})
