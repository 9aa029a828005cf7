"""A fit as one HTML page: the structure, the rounds, the effect of each part, calibration, the importance of
columns. It opens without a server.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from meristem.adaptive import pictures
from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.classes import SHOWN
from meristem.adaptive.evidence import additions, calibration, importances, loss_of
from meristem.adaptive.learned import Estimator, Learned

FILE = "report.html"
MOST_COLUMNS = 30  # in the picture of the most important columns; the table has all

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{text-align:left;padding:.2em 1.2em .2em 0;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}pre{overflow-x:auto}
"""


def page(learned: Learned, frame: pd.DataFrame, y: np.ndarray, notes: Sequence[str] = ()) -> str:
    """The page, as HTML.

    Args:
        learned: the learned network.
        frame: rows that were not learned from, with the columns of the table (n, columns).
        y: the targets of these rows (n,).
        notes: the decisions about the table.
    """
    estimator, metrics = learned.estimator, learned.metrics
    x = learned.numbers(frame)
    title = f"{metrics['method']}: {learned.target}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _headline(learned, loss_of(estimator, x, y)),
        "<h2>Structure</h2>",
        _svg(pictures.structure(estimator)),
        f"<pre>{escape(estimator.summary())}</pre>",
        *_grown(estimator, x, y, str(metrics["measure"])),
        *_fitting(estimator, x, y),
        *_columns(learned, frame, y),
        "<h2>The table</h2>",
        "".join(f"<p>{escape(note)}</p>" for note in notes),
        _table(("column", "what was decided"), [(column.name, column.said) for column in learned.columns]),
        "<h2>The estimator</h2>",
        estimator._repr_html_(),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</html>\n"


def _headline(learned: Learned, loss: float) -> str:
    metrics = learned.metrics
    name = "mean squared error" if learned.task == "regression" else "cross entropy"
    rows = [
        (
            f"{metrics['measure']} on {metrics['test_rows']:,} test row{'s' * (metrics['test_rows'] != 1)}",
            metrics["test_score"],
        ),
        ("a linear model on these rows", metrics["linear_test_score"]),
        *_always(metrics),
        (f"{metrics['measure']} on the {metrics['train_rows']:,} training rows", metrics["train_score"]),
        (f"{name} on test rows", loss),
        ("parameters", metrics["parameters"]),
    ]
    return _table(("", ""), rows)


def _always(metrics: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The accuracy of the most frequent class, and the classes with their numbers of rows."""
    if "largest_class" not in metrics:
        return []
    largest, counts = metrics["largest_class"], list(metrics["classes"].items())
    rest = [(f"{len(counts) - SHOWN} more classes", sum(count for _, count in counts[SHOWN:]))] * (len(counts) > SHOWN)
    return [
        (f"always {largest['class']!r}, {largest['share']:.1%} of the training rows", largest["test_score"]),
        *((f"rows of class {name!r}", count) for name, count in counts[:SHOWN]),
        *(("rows of " + name, count) for name, count in rest),
    ]


def _grown(estimator: Estimator, x: pd.DataFrame, y: np.ndarray, measure: str) -> list[str]:
    """How the structure was learned: AdaNet's rounds and the effect of each block, or EnergyNet's layers."""
    if not isinstance(estimator, AdaNetClassifier | AdaNetRegressor):
        layers = [(number, a.allocated, a.width, a.gain) for number, a in enumerate(estimator.layers_, 1)]
        head = ("layer", "units grown", "units kept", "gain in log-likelihood, nats per row")
        return ["<h2>What each layer added</h2>", _table(head, layers)]
    losses = "mean squared error" if isinstance(estimator, AdaNetRegressor) else "cross entropy"
    added = [(one.parts, one.score, one.loss) for one in additions(estimator, x, y)]
    parts = ["<h2>What each block added, on test rows</h2>", _table(("first parts", measure, losses), added)]
    rounds = [_round(record) for record in estimator.history_ if "candidates" in record]
    if rounds:
        head = ("round", "tried: depth, objective, units used, steps, seconds", "joined", "objective after it")
        parts += ["<h2>Rounds</h2>", f"<p>adanet_lambda {_cell(estimator.price_)[0]}.</p>", _table(head, rounds)]
    return parts


def _round(record: Mapping[str, Any]) -> tuple[Any, ...]:
    tried = "; ".join(
        f"{c['depth']}: {c['objective']:.4f}, {c['units_used']}, {c['steps']}, {c['seconds']:.2f}"
        for c in record["candidates"]
    )
    joined = "none" if record.get("refused") else f"depth {record['depth']}"
    return record["round"], tried, joined, record["objective"]


def _fitting(estimator: Estimator, x: pd.DataFrame, y: np.ndarray) -> list[str]:
    if not hasattr(estimator, "classes_"):
        figure = pictures.predicted_over_true(np.asarray(estimator.predict(x)), y)
        return ["<h2>Predicted and true values of the test rows</h2>", _svg(figure)]
    found = calibration(estimator, x, y)
    rows = int(found.rows.sum())
    said = f"<p>Expected calibration error {found.error:.3f}, on {rows:,} test row{'s' * (rows != 1)}.</p>"
    return ["<h2>Calibration</h2>", said, _svg(pictures.reliability(found.said, found.held, found.rows))]


def _columns(learned: Learned, frame: pd.DataFrame, y: np.ndarray) -> list[str]:
    found = importances(learned, frame, y, int(learned.metrics["seed"]))
    shown = found[:MOST_COLUMNS]
    figure = pictures.importance([i.column for i in shown], [i.fall for i in shown], [i.deviation for i in shown])
    said = f"<p>How much {learned.metrics['measure']} on the test rows falls when the values of a column are permuted between rows.</p>"
    used = sum(column.kind != "left out" for column in learned.columns)
    if used > len(found):
        said += f"<p>It is measured for the {len(found)} of {used:,} columns on which the predictions depend most by their gradient. The others are not listed.</p>"
    rows = [(one.column, one.fall, one.deviation) for one in found]
    return ["<h2>How much each column matters</h2>", said, _svg(figure), _table(("column", "fall", "deviation"), rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if any(head) else ""
    lines = ["".join(f"<td{kind}>{said}</td>" for said, kind in map(_cell, row)) for row in rows]
    return f"<table>{top}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> tuple[str, str]:
    """A value as text, and the attribute of its table cell."""
    if isinstance(value, str):
        return escape(value), ""
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}"), ' class="n"'


def _svg(figure: Figure) -> str:
    """A figure as SVG, to be placed in the page."""
    text = io.StringIO()
    with (
        rc_context({"svg.hashsalt": "meristem", "svg.fonttype": "none"}),  # the same bytes for one fit; text as text
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the letters that matplotlib's font lacks
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
