"""`meristem race` and `meristem demo`: a challenger against a baseline at equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meristem.cli.machine import machine
from meristem.cli.output import Answer, calm_libraries, note
from meristem.cli.parameters import ExecutorName, ExecutorOptions, RecipeFile, RunDirectory
from meristem.cli.progress import step
from meristem.cli.run import executor_named
from meristem.errors import MeristemError

DEMO_SHOWS = (
    "what this shows: a cloned network starts at the loss of the small one, and reaches the loss of the same network from random "
    "numbers with less compute. It does not show that growing pays: at this short budget the small network would end below both if it "
    "were trained further. docs/studies.md measures where growing pays."
)


def race(
    recipe: RecipeFile,
    out: RunDirectory = None,
    executor: ExecutorName = None,
    executor_option: ExecutorOptions = None,
) -> Answer:
    """Run a recipe and compare its challenger with its baseline: a table, race.png and race.json."""
    calm_libraries()
    from meristem.recipes.specs.schema import load_recipe

    loaded, out = load_recipe(recipe), out or Path("runs") / recipe.stem
    if loaded.race is None:
        raise MeristemError(f"{recipe} has no `race: {{challenger: ..., baseline: ...}}` section")
    with step("loading torch and transformers"):
        from meristem.checkpoints.write import write_json
        from meristem.recipes.figure import draw_race
        from meristem.recipes.race import race as run_laps
        from meristem.recipes.race import report
        from meristem.recipes.run import run

    results = run(loaded, out, executor=executor_named(executor, executor_option or [], out))
    laps = run_laps(loaded, results)
    found = report(loaded, laps, machine())
    write_json(out / "race.json", found)
    draw_race(loaded, results, out / "race.png")
    _print_race(laps)
    for caution in found["cautions"]:
        note(f"caution: {caution}")
    note(f"{out / 'race.json'}  {out / 'race.png'}")
    return Answer({"recipe": recipe, "out": out, "race": found})


def demo(out: Annotated[Path, typer.Option("--out", help="Where the demo's files go.")] = Path("demo")) -> Answer:
    """Train a small model on real text, clone it, train on, and race it against training from scratch."""
    answer = race(Path(__file__).parent.parent / "recipes" / "demo.yaml", out)
    note(DEMO_SHOWS)
    return answer


def _print_race(laps: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"seed {lap.seed}" for lap in laps), title="race")
    rows = (
        ("baseline: final eval loss", lambda lap: f"{lap.baseline_loss:.4f}"),
        ("challenger: final eval loss", lambda lap: f"{lap.challenger_loss:.4f}"),
        ("baseline: total TFLOPs", lambda lap: f"{lap.baseline_flops / 1e12:.4g}"),
        ("challenger: total TFLOPs, parents included", lambda lap: f"{lap.challenger_flops / 1e12:.4g}"),
        ("loss at equal compute, challenger - baseline", lambda lap: _signed(lap)),
        ("compute saved to the baseline's final loss", lambda lap: _percent(lap.saving)),
        ("the same, if the small model is free", lambda lap: _percent(lap.saving_if_parents_are_given)),
        ("training time saved to that loss, here", lambda lap: _percent(lap.time_saving)),
    )
    for label, cell in rows:
        table.add_row(label, *(cell(lap) for lap in laps))
    Console().print(table)


def _signed(lap: Any) -> str:
    return f"{lap.challenger_loss_at_equal_flops - lap.baseline_loss_at_equal_flops:+.4f}"


def _percent(share: float | None) -> str:
    return "not reached" if share is None else f"{share:.0%}"
