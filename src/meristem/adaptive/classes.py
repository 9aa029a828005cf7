"""The classes of a table, with their numbers of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

SHOWN = 10  # classes in a line


def class_counts(y: np.ndarray) -> dict[str, int]:
    """The number of rows of each class of labels y (n_samples,), the largest first."""
    names, counts = np.unique(y, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[k]): int(counts[k]) for k in order}


def said(y: np.ndarray) -> str:
    """The classes of labels y (n_samples,) in words, at most ten by name: "3 classes: a 60, b 30, c 10"."""
    counts = class_counts(y)
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:SHOWN]]
    rest = len(counts) - len(shown)
    return f"{len(counts)} classes: " + ", ".join(shown) + (f", and {rest} more" if rest else "")


def said_of_spellings(y: np.ndarray) -> list[str]:
    """Which classes of labels y (n_samples,) have names that differ only in capitals, or in zeros before a
    number. [] if none do.
    """
    spellings: dict[str, list[str]] = {}
    for name in class_counts(y):
        spellings.setdefault(str(int(name)) if name.isdecimal() else name.lower(), []).append(name)
    same = [" and ".join(map(repr, names)) for names in spellings.values() if len(names) > 1]
    return [f"{', '.join(same)} differ only in capitals or in zeros, and are different classes"] if same else []


def largest_class(y: np.ndarray, test_y: np.ndarray) -> dict[str, Any]:
    """The most frequent class of labels y (n_samples,), its share of them, and the accuracy on labels test_y
    (n,) of a model that always predicts it.
    """
    names, counts = np.unique(y, return_counts=True)
    largest = names[counts.argmax()]
    return {
        "class": str(largest),
        "share": float(counts.max() / len(y)),
        "test_score": float(np.mean(test_y == largest)),
    }
