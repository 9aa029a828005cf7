"""From a table to a learned network on disk: the work of `meristem learn`."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split

from meristem.adaptive import report
from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.classes import class_counts, largest_class
from meristem.adaptive.energynet import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.learned import Estimator, Learned, fitted_encoder
from meristem.adaptive.pictures import save_figure, structure
from meristem.adaptive.request import check_kind
from meristem.adaptive.tables import Table, build_encoder, encode
from meristem.adaptive.tables.columns import lines
from meristem.checkpoints.directory import atomic_directory, check_place
from meristem.errors import MeristemError, first_line, nearest

KINDS: dict[str, tuple[type[Estimator], type[Estimator]]] = {
    "adanet": (AdaNetClassifier, AdaNetRegressor),
    "energynet": (EnergyNetClassifier, EnergyNetRegressor),
}
OF_THE_FIT = {"verbose", "checkpoint", "random_state"}  # set by `learn` itself
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "adanet": {
        "standardize": False,  # the encoder scales
        "adanet_lambda": "auto",
        "embedding": "auto",
        "shrinkage": 0.3,
        "subsample": 0.6,
        "max_rounds": 8,
        "batch_size": 128,
        "learning_rate": 5e-3,
    },
    "energynet": {"visible": "gaussian", "structure_iter": 20, "learning_rate": 0.01},
}
PASSES, FEWEST_STEPS, MOST_STEPS = 15, 75, 1500  # of a block of AdaNet's
MANY_ROWS, WITH_MANY_ROWS = 20_000, {"shrinkage": 0.5, "subsample": 1.0, "max_rounds": 4}  # fewer, longer rounds
Rows = tuple[pd.DataFrame, np.ndarray]  # encoded features (n, features) and targets (n,)
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def new_estimator(kind: str, classification: bool, options: Mapping[str, Any]) -> Estimator:
    """An estimator of a kind, with options as they come from a command line.

    Raises:
        MeristemError: for an unknown kind or option, or an invalid value.
    """
    check_kind(kind)
    chosen = KINDS[kind][0 if classification else 1]
    hints = typing.get_type_hints(chosen)
    known = {f.name for f in dataclasses.fields(chosen) if f.init} - OF_THE_FIT
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise MeristemError(f"{kind} has no option {name!r}; {nearest(name, known)}")
        word = value.lower() if isinstance(value, str) else value
        if hints[name] is bool:
            value = WORDS.get(word, value) if isinstance(word, str) else {0: False, 1: True}.get(word, value)
        given[name] = None if word == "none" and "none" not in typing.get_args(hints[name]) else value
    estimator = chosen(**given)
    estimator.check_options()
    return estimator


def estimator_for(kind: str, table: Table, rows: int, options: Mapping[str, Any]) -> Estimator:
    """The estimator that learns a table. Its defaults suit encoded tables of `rows` rows. `options` override
    them.

    Raises:
        MeristemError: as in `new_estimator`.
    """
    chosen = dict(TABLE_OPTIONS.get(kind, {}))
    if options.get("variant") == "CVX":  # units one by one: no batches, and its price is a number
        chosen = {"standardize": False}
    elif kind == "adanet":
        chosen |= WITH_MANY_ROWS if rows > MANY_ROWS else {}
        size = options.get("batch_size", chosen["batch_size"])
        passes = PASSES * rows // size if isinstance(size, int) and size > 0 else 0
        chosen["max_steps"] = min(MOST_STEPS, max(FEWEST_STEPS, passes))
    elif kind == "energynet":
        chosen["batch_size"] = min(256, max(32, rows // 64))
    estimator = new_estimator(kind, table.is_classification, {**chosen, **options})
    if isinstance(estimator, EnergyNetClassifier):
        estimator.unlabelled = None  # rows of a table without a label have an empty cell
    return estimator


def learn(
    kind: str,
    table: Table,
    out: Path,
    options: Mapping[str, Any],
    seed: int = 0,
    test_share: float = 0.2,
    overwrite: bool = False,
) -> Learned:
    """Learn from a part of the table, measure on the rest, and write OUT: the files of `Learned.save`,
    `summary.txt`, `structure.png` and `report.html`.

    A state is kept next to OUT until it is complete. After an interruption, the same call continues from
    there.

    Args:
        kind: "adanet" or "energynet".
        table: the table, as from `open_table`.
        out: the directory to write.
        options: options of the estimator.
        seed: the seed of the split and of the fit.
        test_share: the share of rows to measure on, between 0 and 1.
        overwrite: replace `out` if it exists.

    Raises:
        MeristemError: for invalid options, for too few rows, or if `out` may not be written (`check_place`).
    """
    check_place(out, overwrite)
    if not 0 < test_share < 1:
        raise MeristemError(f"the share of test rows is between 0 and 1, got {test_share}")
    if not 0 <= seed < 2**32:
        raise MeristemError(f"the seed is a whole number from 0 to {2**32 - 1}, got {seed}")
    estimator = new_estimator(kind, table.is_classification, options)  # bad options are reported before anything else
    frame, test_frame, y, test_y = split(table, test_share, seed)
    estimator = estimator_for(kind, table, len(y), options)
    state = out.parent / f".{out.name}.{_fingerprint(kind, options, seed, test_share, table)}.state"
    _make_room(out)
    estimator.set_params(random_state=seed, verbose=1, checkpoint=str(state / "search"))
    encoder = build_encoder(table.columns, table.task)
    try:
        x = fitted_encoder(encoder, frame, y, table.columns)
        if isinstance(estimator, EnergyNetClassifier | EnergyNetRegressor) and len(table.unlabelled):
            estimator.fit_structure(pd.concat([x, encode(encoder, table.unlabelled, table.columns)]))
        estimator.fit(x, y)
    except ValueError as error:  # scikit-learn raises it for rows that it cannot learn from
        raise MeristemError(f"{kind} cannot learn from this table: {first_line(error)}") from error
    test_x = encode(encoder, test_frame, table.columns)
    metrics = {
        "method": kind,
        **_measured(estimator, table, (x, y), (test_x, test_y)),
        "seed": seed,
        "options": dict(options),
        "features": list(x.columns),
        "target": table.target,
    }
    learned = Learned(estimator, encoder, table.columns, table.target, table.task, metrics, table.decimal)
    with atomic_directory(out, overwrite) as folder:
        learned.save(folder)
        (folder / "summary.txt").write_text(summary(table, estimator))
        save_figure(structure(estimator), folder / "structure.png")
        (folder / report.FILE).write_text(report.page(learned, test_frame, test_y, table.notes), encoding="utf-8")
    shutil.rmtree(state, ignore_errors=True)
    return learned


def _measured(estimator: Estimator, table: Table, seen: Rows, unseen: Rows) -> dict[str, Any]:
    """The scores of a fitted estimator on the rows that it has seen and on the others, next to those of a
    linear model and, in classification, of the largest class.
    """
    (x, y), (test_x, test_y) = seen, unseen
    linear = LogisticRegression(max_iter=1000) if table.is_classification else Ridge()
    linear.fit(x.astype(np.float64), y)  # Ridge rounds y to the precision of x
    counts = {}
    if table.is_classification:
        counts = {"classes": class_counts(table.y), "largest_class": largest_class(y, test_y)}
    return {
        "task": table.task,
        "train_rows": len(x),
        "test_rows": len(test_x),
        "measure": "accuracy" if table.is_classification else "R^2",
        "test_score": float(estimator.score(test_x, test_y)),
        "train_score": float(estimator.score(x, y)),
        **counts,
        "linear_test_score": float(linear.score(test_x.astype(np.float64), test_y)),
        "parameters": estimator.num_parameters_,
    }


def result(metrics: Mapping[str, Any]) -> str:
    """The scores of a learned network in one line, from its metrics."""
    rows = f"{metrics['test_rows']:,} test row{'s' * (metrics['test_rows'] != 1)}"
    others = [f"a linear model: {metrics['linear_test_score']:.4f}"]
    if "largest_class" in metrics:
        largest = metrics["largest_class"]
        others.append(f"always {largest['class']!r}, {largest['share']:.1%} of the rows: {largest['test_score']:.4f}")
    return f"{metrics['measure']} on {rows}: {metrics['test_score']:.4f} ({'; '.join(others)})"


def summary(table: Table, estimator: Estimator) -> str:
    """The decisions about the table, and the summary of the estimator."""
    return "\n".join([*table.notes, "", *lines(table.columns), "", estimator.summary(), ""])


def split(table: Table, test_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows to learn from and rows to measure on: x, test x, y, test y. The split is stratified if every class
    has two rows.

    Raises:
        MeristemError: if one side has too few rows, or if the rows to learn from are all of one class.
    """
    rows, held = len(table.y), int(np.ceil(test_share * len(table.y)))
    counts = np.unique(table.y, return_counts=True)[1] if table.is_classification else np.array([rows])
    fewest = len(counts) if table.is_classification else 1
    if rows - held < max(2, fewest):
        raise MeristemError(
            f"a test share of {test_share:g} leaves {rows - held} of {rows} rows to learn from; at least {max(2, fewest)} are needed"
        )
    by_class = table.is_classification and counts.min() > 1 and held >= fewest
    x, test_x, y, test_y = train_test_split(
        table.x, table.y, test_size=held, random_state=seed, stratify=table.y if by_class else None
    )
    if table.is_classification and len(np.unique(y)) < 2:
        raise MeristemError(
            f"the {len(y)} rows to learn from are all of one class, {str(y[0])!r}; try another --seed or --test-share"
        )
    return x, test_x, y, test_y  # pyright: ignore[reportReturnType]: each is of the kind that was split


def _fingerprint(kind: str, options: Mapping[str, Any], seed: int, test_share: float, table: Table) -> str:
    said = hashlib.sha256(repr((kind, sorted(options.items()), seed, test_share, table.target, table.task)).encode())
    hashes = pd.util.hash_pandas_object(table.x, index=False)  # pyright: ignore[reportAttributeAccessIssue]
    said.update(hashes.to_numpy().tobytes())
    said.update(repr((table.y.tolist(), table.columns)).encode())
    return said.hexdigest()[:8]


def _make_room(out: Path) -> None:
    """Create the parent directory of OUT before anything is learned.

    Raises:
        MeristemError: if it cannot be created.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeristemError(f"cannot write {out}: {error.strerror or error}") from error
