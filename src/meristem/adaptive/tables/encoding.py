"""Columns as numbers: a `ColumnTransformer` of scikit-learn, built from the kinds of the columns and saved by
skops (no pickle).
"""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportCallIssue=false

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler, TargetEncoder

from meristem.adaptive.limits import LARGEST
from meristem.adaptive.tables.columns import Column
from meristem.adaptive.tables.values import to_dates, to_numbers, to_words
from meristem.errors import MeristemError, first_line

Task = Literal["classification", "regression"]
TRUSTED = ["numpy.dtype", "sklearn.model_selection._split.KFold", "sklearn.model_selection._split.StratifiedKFold"]
RAREST = 5  # a category with fewer rows counts as rare
FARTHEST = 1e30  # deviations from the mean, which float32 can hold
FOLDS = 5  # of the encoding by the target
DATE_PARTS = ("day", "month", "weekday", "hour")


def build_encoder(columns: Sequence[Column], task: Task) -> ColumnTransformer:
    """A transformer from `prepared` frames to numbers (n_samples, features), not fitted.

    Raises:
        MeristemError: if every column is left out.
    """
    parts: list[tuple[str, Any, list[str]]] = []
    for scale in ("none", "standard", "tail"):
        names = [
            name
            for c in columns
            if c.kind in ("number", "date", "presence") and c.scale == scale
            for name in _prepared_names(c)
        ]
        parts.append((f"numbers_{scale}", _numbers(scale), names))
    parts.append(("categories", _words(_one_hot()), [c.name for c in columns if c.kind == "category"]))
    kind = StratifiedKFold if task == "classification" else KFold
    folds = kind(FOLDS, shuffle=True, random_state=0)
    target = TargetEncoder(target_type="auto" if task == "classification" else "continuous", cv=folds)
    many = [c.name for c in columns if c.kind == "many categories"]
    parts.append(("many_categories", _words(target, StandardScaler()), many))
    used = [part for part in parts if part[2]]
    if not used:
        raise MeristemError("no column is left to learn from: " + "; ".join(f"{c.name}: {c.said}" for c in columns))
    return ColumnTransformer(used, sparse_threshold=0.0)


def split_by_rows(encoder: ColumnTransformer, y: np.ndarray) -> None:
    """Let the encoding by the target split rows at random, if no class has a row for each fold."""
    used = [name for name, _, _ in encoder.transformers]
    if "many_categories" in used and np.unique(y, return_counts=True)[1].max() < FOLDS:
        encoder.set_params(many_categories__targetencoder__cv=KFold(FOLDS, shuffle=True, random_state=0))


def _numbers(scale: str) -> Pipeline:
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    if scale == "none":
        return make_pipeline(imputer)
    if scale == "standard":
        return make_pipeline(imputer, StandardScaler())
    arsinh = FunctionTransformer(np.arcsinh, feature_names_out="one-to-one")
    return make_pipeline(imputer, StandardScaler(), arsinh, StandardScaler())


def _words(*steps: Any) -> Pipeline:
    return make_pipeline(SimpleImputer(strategy="constant", fill_value="missing"), *steps)


def _one_hot() -> OneHotEncoder:
    return OneHotEncoder(
        drop="if_binary",
        handle_unknown="infrequent_if_exist",
        min_frequency=RAREST,
        sparse_output=False,
        dtype=np.float32,
    )


def _prepared_names(column: Column) -> list[str]:
    return [f"{column.name}_{part}" for part in DATE_PARTS] if column.kind == "date" else [column.name]


def named_by_words(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with the names of its columns as words. pandas allows numbers and tuples, too.

    Raises:
        MeristemError: if two columns have one name.
    """
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise MeristemError(f"the table has {times} columns named {name!r}; rename them")
    return frame.set_axis(names, axis=1)


def prepared(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """The columns to learn from, as the transformer reads them: numbers, words, and the parts of dates.
    Numbers keep float64 until they are scaled: float32 has no seconds of a Unix time.

    Raises:
        MeristemError: if a column is missing.
    """
    found: dict[str, Any] = {}
    frame = named_by_words(frame)
    for column in columns:
        if column.kind == "left out":
            continue
        if column.name not in frame.columns:
            raise MeristemError(f"the table has no column {column.name!r}, which the network was learned from")
        values = frame[column.name]
        if column.kind == "number":
            numbers = to_numbers(values, column.decimal)
            found[column.name] = numbers.mask(numbers.abs() > LARGEST)
        elif column.kind == "date":
            found |= _date_parts(column.name, to_dates(values, column.day_first))
        elif column.kind == "presence":
            found[column.name] = (values.notna() & (to_words(values) != "False")).astype(float)
        else:
            found[column.name] = to_words(values)
    return pd.DataFrame(found, index=frame.index)


def _date_parts(name: str, dates: pd.Series) -> dict[str, Any]:
    day = (dates - pd.Timestamp("2000-01-01")) / pd.Timedelta(days=1)
    parts = (day, dates.dt.month, dates.dt.day_of_week, dates.dt.hour)
    return {f"{name}_{part}": numbers.astype(np.float32) for part, numbers in zip(DATE_PARTS, parts, strict=True)}


def encode(encoder: ColumnTransformer, frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """A frame, encoded by a fitted encoder: float32 numbers (n_samples, features) with their names.

    Raises:
        MeristemError: if a column is missing.
    """
    return encode_prepared(encoder, prepared(frame, columns))


def encode_prepared(encoder: ColumnTransformer, found: pd.DataFrame) -> pd.DataFrame:
    """The result of `encode` for the result of `prepared`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories")  # they count as rare
        numbers = encoder.transform(found)
    numbers = np.clip(np.asarray(numbers), -FARTHEST, FARTHEST).astype(np.float32)
    return pd.DataFrame(numbers, columns=feature_names(encoder), index=found.index)


def feature_names(encoder: ColumnTransformer) -> list[str]:
    """The names of the features without their group. A name that occurs again gets a number."""
    names: dict[str, None] = {}  # in their order
    for name in (name.split("__", 1)[1] for name in encoder.get_feature_names_out()):
        if name in names:
            name += f" ({1 + sum(other == name or other.startswith(f'{name} (') for other in names)})"
        names[name] = None
    return list(names)


def known_categories(encoder: ColumnTransformer) -> dict[str, set[str]]:
    """The words that a fitted encoder knows, by column."""
    found: dict[str, set[str]] = {}
    for name, pipeline, columns in encoder.transformers_:
        if name in ("categories", "many_categories"):
            (step,) = (one for one in pipeline.named_steps.values() if hasattr(one, "categories_"))
            found |= {column: set(words) for column, words in zip(columns, step.categories_, strict=True)}
    return found


def save_encoder(encoder: ColumnTransformer, path: Path) -> None:
    """Write a fitted encoder without pickles."""
    import skops.io

    skops.io.dump(encoder, path)


def load_encoder(path: Path) -> ColumnTransformer:
    """Read an encoder that `save_encoder` wrote. Nothing in it is executed.

    Raises:
        MeristemError: if the file is something else, or names types that no encoder has.
    """
    import skops.io

    try:
        strange = set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED)
        if strange:
            raise MeristemError(f"{path} names types that no encoder of Meristem uses: {', '.join(sorted(strange))}")
        return skops.io.load(path, trusted=TRUSTED)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise MeristemError(f"{path} holds no encoder: {first_line(error)}") from error
