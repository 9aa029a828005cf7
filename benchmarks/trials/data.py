"""Images as tensors for trials: the rows that train, and those that are judged."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.support import shared_data

Examples = tuple[Tensor, Tensor]
HELD = 0.2  # of the training rows, for the search


@functools.cache
def whole(name: str) -> tuple[Examples, Examples]:
    """Training and test rows, pixels flat; of digits every fifth row tests.

    Raises:
        SystemExit: where ../shared/data is wanted and is not there.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
        held = torch.arange(len(x)) % 5 == 4
        return (x[~held].float(), y[~held]), (x[held].float(), y[held])
    loader: Any = shared_data.loader()
    if loader is None:
        raise SystemExit(f"{name} lies in ../shared/data, which is not there; the task digits needs nothing")
    x, y, test_x, test_y = (torch.as_tensor(array) for array in loader.mnist(name))
    return (x.flatten(1).float(), y.long()), (test_x.flatten(1).float(), test_y.long())


def examples(name: str, rows: int | None, split: str) -> tuple[Examples, Examples]:
    """Those that train and those that judge, normalised by the first.

    Args:
        rows: training rows, drawn once; all of them by default.
        split: "eval" judges on the test rows; "tune" on a fifth of the training rows, which do not train then.
    """
    (x, y), judged = whole(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:rows]
    if split == "tune":
        held = int(HELD * len(order))
        judged = x[order[:held]], y[order[:held]]
        order = order[held:]
    x, y = x[order], y[order]
    centre, spread = x.mean(), x.std()
    return ((x - centre) / spread, y), ((judged[0] - centre) / spread, judged[1])
