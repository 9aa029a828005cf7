"""`meristem learn`: structure and weights from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from meristem.adaptive.request import check_kind, check_table
from meristem.cli.options import read_options
from meristem.cli.output import Answer, note
from meristem.cli.parameters import MoreOptions, Out, Overwrite
from meristem.cli.places import at_place
from meristem.cli.progress import step
from meristem.errors import MeristemError


def learn(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="adanet or energynet.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A file of values (CSV, also compressed, without a header, with other separators), or a data set of scikit-learn: digits, wine, ...",
        ),
    ],
    out: Out,
    target: Annotated[
        Optional[str], typer.Option(help="The column to predict, by name or number. Default: the last.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="classification or regression. Default: words and at most 20 whole numbers are classes.")
    ] = "auto",
    header: Annotated[
        Optional[bool],
        typer.Option(
            "--header/--no-header", help="Whether the first row names the columns. Default: found from the rows."
        ),
    ] = None,
    separator: Annotated[
        Optional[str], typer.Option(help="The separator of values, such as ';' or '\\t'. Default: found from the rows.")
    ] = None,
    category: Annotated[
        Optional[list[str]],
        typer.Option(help="A column of categories that look like numbers, such as postal codes, by name or number."),
    ] = None,
    leave_out: Annotated[
        Optional[list[str]], typer.Option(help="A column not to learn from, by name or number.")
    ] = None,
    keep: Annotated[
        Optional[list[str]],
        typer.Option(help="A class whose name would be read as missing, such as NA or None."),
    ] = None,
    option: MoreOptions = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    test_share: Annotated[float, typer.Option(help="The share of rows that are held out for the test.")] = 0.2,
    overwrite: Overwrite = False,
) -> Answer:
    """Learn a network's structure and weights from a table (AdaNet, EnergyNet)."""
    check_kind(method)
    check_table(table)
    options = read_options({}, option or [])
    asked = {"categories": category or [], "leave_out": leave_out or [], "keep": keep or []}
    reading = {"target": target, "task": task, "header": header, "separator": separator, **asked}
    with step(f"reading {table}"):
        try:
            import pandas  # noqa: F401
            import skops  # noqa: F401
        except ImportError as error:
            raise MeristemError(
                f"learning from tables needs {error.name}: pip install 'meristem-nn[adaptive]'"
            ) from None
        from meristem.adaptive.learn import learn as learn_table
        from meristem.adaptive.learn import result
        from meristem.adaptive.tables import open_table
        from meristem.adaptive.tables.columns import lines

        opened = open_table(table, **reading)
    print("\n".join([*opened.notes, *lines(opened.columns)]), flush=True)

    def learned_at(place: Path) -> Answer:
        with step(f"learning by {method}"):
            learned = learn_table(method, opened, place, options, seed, test_share, overwrite)
        metrics = learned.metrics
        print(learned.estimator.summary())
        print(result(metrics))
        note(f"{place}: model/, encoder.skops, table.json, metrics.json, summary.txt, structure.png, report.html")
        return Answer({"out": place, "method": method, "metrics": metrics})

    return at_place(out, learned_at, overwrite)
