"""The result of `meristem learn`: an estimator and the encoder of its table. It predicts from tables as they
are on disk.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline

from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.energynet import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.tables import Column, encode, load_encoder, save_encoder
from meristem.adaptive.tables.doubts import warn_of_sign, warn_of_unknown, warn_of_unreadable, with_decimals
from meristem.adaptive.tables.encoding import (
    Task,
    encode_prepared,
    feature_names,
    known_categories,
    named_by_words,
    prepared,
    split_by_rows,
)
from meristem.adaptive.tables.layout import WITH_COMMAS
from meristem.adaptive.tables.reading import read_frame
from meristem.adaptive.tables.values import Decimal
from meristem.checkpoints.directory import write_json
from meristem.errors import MeristemError

Estimator = AdaNetClassifier | AdaNetRegressor | EnergyNetClassifier | EnergyNetRegressor
CLASSES: dict[str, type[Estimator]] = {
    kind.__name__: kind for kind in (AdaNetClassifier, AdaNetRegressor, EnergyNetClassifier, EnergyNetRegressor)
}


@dataclass(frozen=True)
class Learned:
    """An estimator, the encoder of its table, and its quality on rows that it has not seen.

    Args:
        estimator: the fitted AdaNet or EnergyNet estimator.
        encoder: the fitted encoder from the columns of the table to numbers.
        columns: the kind of each column of the table.
        target: the name of the column that is predicted.
        task: "classification" or "regression".
        metrics: the accuracy, or R^2 in regression, next to that of a linear model, and how the network was
            learned.
        decimal: the decimal sign of the file that it was learned from. Words in frames are read with
            it later, too, and files that do not show their own.
    """

    estimator: Estimator
    encoder: ColumnTransformer
    columns: list[Column]
    target: str
    task: Task
    metrics: dict[str, Any]
    decimal: Decimal = "."

    def numbers(self, rows: pd.DataFrame | str | Path) -> pd.DataFrame:
        """The rows of a frame or a file as the estimator reads them (n_samples, features). Words in a frame
        have the decimal sign of the table that was learned. A warning says where they have the other one, and
        names each column that cannot be read.

        Raises:
            MeristemError: if there is no such file, if a column is missing, if there are no rows, or for
                something else than a frame or a file.
        """
        columns = self.columns
        if isinstance(rows, str | Path):
            rows, sign = self._read(Path(rows))
            columns = [replace(one, decimal=".") for one in columns] if sign == "," else columns
            remembered: Decimal = "."  # a file has its own sign
        else:
            remembered = self.decimal
        if not isinstance(rows, pd.DataFrame):
            raise MeristemError(
                f"predictions are made from a pandas data frame with the columns of the table, or from the path of a "
                f"file, got {type(rows).__name__}"
            )
        if not len(rows):
            raise MeristemError("the table has no rows to predict from")
        frame = named_by_words(rows)
        columns = with_decimals(frame, columns, remembered)
        found = prepared(frame, columns)
        warn_of_unreadable(frame, found, columns)
        warn_of_unknown(frame, found, known_categories(self.encoder))
        return encode_prepared(self.encoder, found)

    def get_feature_names_out(self) -> np.ndarray:
        """The names of the features that the estimator reads, in their order (features,)."""
        return np.array(feature_names(self.encoder), dtype=object)

    def export(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the network after the encoder as ONNX (`.onnx`) or with torch.export (`.pt2`). It reads the
        output of `numbers`.

        Raises:
            MeristemError: as in `exporting.export`.
        """
        return self.estimator.export(out, overwrite)

    def _repr_html_(self) -> str:
        """The encoder and the estimator, drawn as a scikit-learn pipeline."""
        return make_pipeline(self.encoder, self.estimator)._repr_html_()

    def _read(self, path: Path) -> tuple[pd.DataFrame, Decimal]:
        """The rows of a file, and its decimal sign."""
        if not path.is_file():
            raise MeristemError(f"there is no file {path}")
        has_names = any(not column.name.startswith("column_") for column in self.columns)
        words = [column.name for column in self.columns if column.as_written]
        frame, layout = read_frame(path, header=None if has_names else False, decimal=self.decimal, words=words)
        if has_names and not layout.has_header:  # names of numbers over few rows
            named, other = read_frame(path, header=True, decimal=self.decimal, words=words)
            if {column.name for column in self.columns if column.kind != "left out"} <= set(named.columns):
                frame, layout = named, other
        frame = frame.reset_index(drop=True)
        if layout.decimal != self.decimal and layout.separator in WITH_COMMAS:
            warn_of_sign(str(path), layout.decimal, self.decimal, level=5)
        return frame, layout.decimal

    def predict(self, rows: pd.DataFrame | str | Path) -> np.ndarray:
        """The classes or numbers predicted for the rows of a frame or a file (n_samples,).

        Raises:
            MeristemError: as in `numbers`.
        """
        return self.estimator.predict(self.numbers(rows))

    def predict_proba(self, rows: pd.DataFrame | str | Path) -> np.ndarray:
        """The class probabilities of the rows of a frame or a file (n_samples, classes).

        Raises:
            MeristemError: in regression, and as in `numbers`.
        """
        if isinstance(self.estimator, AdaNetRegressor | EnergyNetRegressor):
            raise MeristemError("a regression has no classes; predict gives its numbers")
        return self.estimator.predict_proba(self.numbers(rows))

    def save(self, folder: Path) -> None:
        """Write `model/`, `encoder.skops`, `table.json` and `metrics.json` into a folder."""
        self.estimator.save(folder / "model")
        save_encoder(self.encoder, folder / "encoder.skops")
        columns = [dataclasses.asdict(column) for column in self.columns]
        table = {"target": self.target, "task": self.task, "decimal": self.decimal, "columns": columns}
        write_json(folder / "table.json", table)
        write_json(folder / "metrics.json", self.metrics)

    @classmethod
    def load(cls, folder: str | Path) -> Learned:
        """Read a directory that `meristem learn` wrote.

        Raises:
            MeristemError: if it is something else.
        """
        folder = Path(folder)
        try:
            said = json.loads((folder / "table.json").read_text())
            metrics = json.loads((folder / "metrics.json").read_text())
            kind = CLASSES[json.loads((folder / "model" / "config.json").read_text())["estimator"]]
            columns = [Column(**column) for column in said["columns"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MeristemError(f"{folder} holds nothing that `meristem learn` wrote: {error}") from error
        encoder = load_encoder(folder / "encoder.skops")
        return cls(
            kind.load(folder / "model"),
            encoder,
            columns,
            said["target"],
            said["task"],
            metrics,
            said.get("decimal", "."),
        )


def fitted_encoder(
    encoder: ColumnTransformer, frame: pd.DataFrame, y: np.ndarray, columns: Sequence[Column]
) -> pd.DataFrame:
    """Fit an encoder in place, and return the rows as numbers. Categories are encoded by the target out of
    fold.
    """
    split_by_rows(encoder, y)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it has fewer rows than there are folds
        numbers = encoder.fit_transform(prepared(frame, columns), y)
    names = encode(encoder, frame.iloc[:1], columns).columns
    return pd.DataFrame(np.asarray(numbers, dtype=np.float32), columns=names, index=frame.index)
