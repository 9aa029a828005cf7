"""Milliseconds of one update of an infinite RBM, one side in a process of its own: thread pools of two libraries in one process spin against
each other.

    python benchmarks/support/update_speed.py SIDE FOLDER DEVICE

FOLDER holds `machine` (a saved `InfiniteRBM`) and `rows.npy` (updates, 64, inputs); `infinite_rbm.py --parts speed` writes them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

WARM_UP, ROUNDS = 20, 5


class PlainNumPy:
    """The same update (PCD-10, AdaGrad) as one would write it in NumPy; the yardstick, and no part of the library."""

    def __init__(self, weights: np.ndarray, hidden_bias: np.ndarray, visible_bias: np.ndarray, dtype: Any) -> None:
        self.W, self.b, self.c = (value.astype(dtype) for value in (weights, hidden_bias, visible_bias))
        self.sums = [np.zeros_like(value) for value in (self.W, self.b, self.c)]
        self.particles, self.beta, self.dtype = np.zeros((64, len(self.c)), dtype), 1.01, dtype
        self.draw = np.random.default_rng(0)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.draw.random(shape, dtype=self.dtype)

    def posterior(self, x: np.ndarray) -> np.ndarray:
        t = np.cumsum(np.logaddexp(0, x) - self.beta * np.logaddexp(0, self.b), 1)
        t[:, -1] -= np.log(1 - 2 ** (1 - self.beta))
        p = np.exp(t - t.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    def gradients(self, v: np.ndarray) -> list[np.ndarray]:
        x = v @ self.W.T + self.b
        survival = self.posterior(x)[:, ::-1].cumsum(1)[:, ::-1]
        mean = survival / (1 + np.exp(-x))
        slope = survival * self.beta / (1 + np.exp(-self.b))
        return [-(mean.T @ v) / len(v), (slope - mean).mean(0), -v.mean(0)]

    def update(self, v: np.ndarray) -> None:
        for _ in range(10):
            x = self.particles @ self.W.T + self.b
            z = (np.cumsum(self.posterior(x), 1) < self.uniform((64, 1))).sum(1)
            h = (self.uniform(x.shape) < 1 / (1 + np.exp(-x))) & (np.arange(len(self.b)) <= z[:, None])
            field = h.astype(self.dtype) @ self.W + self.c
            self.particles = (self.uniform(field.shape) < 1 / (1 + np.exp(-field))).astype(self.dtype)
        pairs = zip(self.gradients(v), self.gradients(self.particles), strict=True)
        for value, total, (data, model) in zip((self.W, self.b, self.c), self.sums, pairs, strict=True):
            gradient = data - model
            total += gradient**2
            value -= 0.03 * gradient / np.sqrt(total + 1e-6)


def meristem(folder: Path, rows: np.ndarray, device: str) -> Callable[[int], None]:
    import torch

    from meristem.adaptive import InfiniteRBM
    from meristem.adaptive.rbm.order import Infinite
    from meristem.adaptive.rbm.training import Learner, Options
    from meristem.adaptive.rbm.visible import BinaryVisible

    start = InfiniteRBM.load(folder / "machine").machine_
    options = Options(max_components=start.num_hidden)
    generator = torch.Generator(device).manual_seed(0)
    learner = Learner(start.weights.to(device), start.visible_bias.to(device), Infinite(), BinaryVisible(), options,
                      generator, particles=64)  # fmt: skip
    learner.machine.hidden_bias.copy_(start.hidden_bias)  # a view of the learner's own
    on_device = torch.tensor(rows, device=device)

    def update(k: int) -> None:
        learner.update(on_device[k])
        if device == "cuda":
            torch.cuda.synchronize()

    return update


def without_numba(folder: Path, rows: np.ndarray, device: str) -> Callable[[int], None]:
    from meristem.adaptive.rbm import machine

    machine.HAS_NUMBA = False
    return meristem(folder, rows, device)


def numpy_side(dtype: Any) -> Callable[[Path, np.ndarray, str], Callable[[int], None]]:
    def side(folder: Path, rows: np.ndarray, device: str) -> Callable[[int], None]:
        from safetensors.numpy import load_file

        start = load_file(folder / "machine" / "model.safetensors")
        plain = PlainNumPy(start["weights"], start["hidden_bias"], start["visible_bias"], dtype)
        typed = rows.astype(dtype)
        return lambda k: plain.update(typed[k])

    return side


def scikit_learn(folder: Path, rows: np.ndarray, device: str) -> Callable[[int], None]:
    from safetensors.numpy import load_file
    from sklearn.neural_network import BernoulliRBM

    units = len(load_file(folder / "machine" / "model.safetensors")["hidden_bias"])
    bernoulli = BernoulliRBM(units, batch_size=64, random_state=0)
    return lambda k: bernoulli.partial_fit(rows[k])


SIDES = {
    "meristem float32": meristem,
    "meristem float32 without numba": without_numba,
    "NumPy float64": numpy_side(np.float64),
    "NumPy float32": numpy_side(np.float32),
    "scikit-learn BernoulliRBM (PCD-1, plain SGD)": scikit_learn,
}


def main() -> None:
    name, folder, device = sys.argv[1:]
    rows = np.load(Path(folder) / "rows.npy")
    update = SIDES[name](Path(folder), rows, device)
    for k in range(WARM_UP):
        update(k % len(rows))
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for k in range(len(rows)):
            update(k)
        taken.append((time.perf_counter() - began) / len(rows) * 1000)
    print(median(taken))


if __name__ == "__main__":
    main()
