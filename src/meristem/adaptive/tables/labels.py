"""The labels of a file, where it counts how they are written: classes such as "007", "NA" and "None"."""

# pandas' types do not say whether an index gives a Series, a frame or a number.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from meristem.adaptive.tables.layout import Layout
from meristem.adaptive.tables.reading import read_as_written
from meristem.adaptive.tables.values import to_numbers
from meristem.errors import MeristemError, nearest

MOST_CLASSES = 20  # different whole numbers, at most, that are classes by default
CODE = r"0\d+"  # a numeral that a number would not write like that


def labels_of(
    path: Path, layout: Layout, frame: pd.DataFrame, target: str, task: str, keep: Sequence[str]
) -> tuple[pd.Series, list[str]]:
    """The target (n_samples,) as `read_target` takes it, and what is to be said of words that are read as
    missing.

    Args:
        path, layout: the file.
        frame: what `read_frame` read from it.
        target: the column to predict.
        task: as in `open_table`.
        keep: words that are classes, although they mean elsewhere that a value is missing.

    Raises:
        MeristemError: if a word to keep is not in the target.
    """
    values = frame[target]
    present = values.dropna()
    numbers = to_numbers(present)
    may_be_classes = task != "regression" and (
        numbers.isna().all() or task == "classification" or numbers.nunique() <= MOST_CLASSES
    )
    if not keep and not may_be_classes:
        return values, []
    if not keep and len(present) == len(values) and not pd.api.types.is_numeric_dtype(values):
        return values, []  # words, and none of them is missing
    written = read_as_written(path, layout, list(frame.columns), target).loc[frame.index]
    gaps = written[values.isna() & (written != "")]
    for word in keep:
        if not bool((written == word).any()):
            raise MeristemError(f"{path}, column {target!r}: no row holds {word!r} to keep; {nearest(word, set(gaps))}")
    if keep:
        values = written.where(values.notna() | written.isin(list(keep)))
    elif written[values.notna()].str.fullmatch(r"\d+").all() and written.str.fullmatch(CODE).any():
        values = written.where(values.notna())
    found = gaps[~gaps.isin(list(keep))].value_counts()
    said = [f"{count} {'row holds' if count == 1 else 'rows hold'} {word!r}" for word, count in found.items()]
    return values, [f"{', '.join(said)}, read as missing; --keep WORD makes such a word a class"] if said else []
