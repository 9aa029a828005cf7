"""Images and text as tensors for trials: the rows that train, and those that are judged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.support import shared_data

Examples = tuple[Tensor, Tensor]
HELD = 0.2  # of the training rows, for the search


@functools.cache
def whole(name: str) -> tuple[Examples, Examples]:
    """Training and test rows; of digits every fifth row tests. Pixels are flat, of cifar10 (N, 3, 32, 32).

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
    if name == "cifar10":
        parts = (map(torch.as_tensor, loader.jpegs("cifar10_jpeg", split)) for split in ("train", "test"))
        train, test = ((x.permute(0, 3, 1, 2), y.long()) for x, y in parts)
        return train, test
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
    x, y = x[order].float(), y[order]
    centre, spread = x.mean(), x.std()
    return ((x - centre) / spread, y), ((judged[0].float() - centre) / spread, judged[1])


def augmented(x: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each shifted by up to an eighth of its side with repeated edges ("crop") and mirrored or not ("flip")."""
    if "crop" in names:
        most, (count, _, height, width) = x.shape[-1] // 8, x.shape
        padded = F.pad(x, (most,) * 4, mode="replicate")
        top, left = torch.randint(2 * most + 1, (2, count), generator=generator)
        rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
        x = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if "flip" in names:
        mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x


def sequences(data: str, length: int, count: int, judged: int, split: str) -> tuple[Examples, Examples]:
    """Bytes of a text, (N, length), each with what follows it; the same `count` sequences train for every split.

    Args:
        judged: sequences that judge. They come from held-out documents; the search has others than the results.
    """
    from meristem.data.corpus import open_corpus

    corpus = open_corpus(shared_data.text(data))

    def drawn(tokens: Any) -> Tensor:
        rows = torch.tensor(tokens[: len(tokens) // (length + 1) * (length + 1)]).long().reshape(-1, length + 1)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]

    held = drawn(corpus.eval)
    parts = drawn(corpus.train)[:count], held[:judged] if split == "tune" else held[judged : 2 * judged]
    train, test = ((part[:, :-1], part[:, 1:]) for part in parts)
    return train, test
