"""Trial 6: the likelihood of the infinite RBM beside RBMs whose width is chosen by hand, trained for as many passes as published."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies.rows import Row, identity
from benchmarks.studies.study import Claim
from benchmarks.support import shared_data
from benchmarks.trials.trial import Condition, Entries, Scale, Trial, Way

WIDEST = 1.0  # nats between the two ends of an estimate
HELD = 10_000  # rows of MNIST, for the search
STATES = Path(__file__).parents[2] / "runs" / "likelihood"
Parts = dict[str, np.ndarray]


@functools.cache
def images(data: str) -> Parts:
    """Binary pixels: {"train", "tune", "eval"}, each (N, pixels) float32. The parts that judge never train.

    Raises:
        SystemExit: where ../shared/data is wanted and is not there.
    """
    if data == "digits":
        from sklearn.datasets import load_digits

        rows = (load_digits().data > 7).astype(np.float32)
        return {"train": rows[:1000], "tune": rows[1000:1400], "eval": rows[1400:]}
    loader: Any = shared_data.loader()
    if loader is None:
        raise SystemExit(f"{data} lies in ../shared/data, which is not there; the task digits needs nothing")
    if data == "caltech":
        found = loader.silhouettes()
        parts = {"train": found["train_data"], "tune": found["val_data"], "eval": found["test_data"]}
    else:
        found = loader.binary_mnist()
        whole = found["Bdata_train"]
        parts = {"train": whole[:-HELD], "tune": whole[-HELD:], "eval": found["Bdata_test"]}
    return {part: rows.astype(np.float32) for part, rows in parts.items()}


def fit(task: Entries, options: Entries, rate: float, seed: int, split: str) -> Mapping[str, float]:
    """Train one machine, and judge it by annealed importance sampling. A run that was killed goes on after its last whole pass."""
    parts, state = images(task["data"]), STATES / identity({"asked": [task, options, rate, seed, split]})
    STATES.mkdir(parents=True, exist_ok=True)
    machine = _machine(task, options, rate, seed, split).set_params(checkpoint=str(state)).fit(parts["train"])
    found = likelihood(machine, parts[split], **_effort(task, split))
    state.unlink()
    return {**found, "units": float(machine.n_components_)}


def _effort(task: Entries, split: str) -> dict[str, int]:
    """Chains and temperatures. The search has a fifth of the temperatures."""
    return {"chains": task["chains"], "count": task["temperatures"] // (5 if split == "tune" else 1)}


def _machine(task: Entries, options: Entries, rate: float, seed: int, split: str) -> Any:
    """Not trained yet."""
    from meristem.adaptive import RBM, InfiniteRBM
    from meristem.adaptive.rbm.infinite import PUBLISHED

    alike = {key: PUBLISHED[key] for key in ("batch_size", "gibbs_steps", "initial_visible_bias")}
    more = {
        "learning_rate": rate,
        "n_iter": task["tuning_passes" if split == "tune" else "passes"],
        "random_state": seed,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if options["way"] == "infinite":
        return InfiniteRBM(**PUBLISHED | more)
    return RBM(**alike | more, n_components=options["units"])


def likelihood(machine: Any, rows: np.ndarray, chains: int, count: int) -> dict[str, float]:
    """Minus the mean log-likelihood of the rows, and the width of its interval of three standard errors either way, in nats for each row."""
    estimate = machine.annealed(chains=chains, count=count)
    energy = float(machine.free_energy(rows).mean())
    return {"value": energy + estimate.log_partition, "interval": estimate.high - estimate.low}


def is_sharp(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Every reported estimate is known to a nat."""
    widths = [row["interval"] for own in rows.values() for row in own]
    return all(width is not None and width <= WIDEST for width in widths)


TASKS = {
    "caltech": {
        "data": "caltech", "passes": 1000, "tuning_passes": 100, "chains": 200, "temperatures": 14_500,
    },
    "mnist": {
        "data": "mnist", "passes": 100, "tuning_passes": 10, "chains": 200, "temperatures": 14_500,
    },
}  # fmt: skip
TRIAL = Trial(
    name="likelihood",
    title="Likelihood of the infinite RBM",
    question="Does a machine that chooses its own width make images as likely as one whose width is chosen by hand?",
    metric="minus the test log-likelihood, nats per image",
    gate=Condition(
        "each estimate has an interval of at most one nat (three standard errors either way)",
        ("rbm_500", "rbm_100", "infinite"),
        is_sharp,
    ),
    sides=[
        Way("rbm_500", {"way": "rbm", "units": 500}),
        Way("infinite", {"way": "infinite"}),
        Way("rbm_100", {"way": "rbm", "units": 100}),
    ],
    fit=fit,
    settings={
        "tiny": Scale(tasks={"caltech": TASKS["caltech"]}, values=(0.01, 0.03, 0.1), tuned_on=(100,), seeds=(0, 1, 2)),
        "small": Scale(tasks={"mnist": TASKS["mnist"]}, values=(0.01, 0.03, 0.1), tuned_on=(100,), seeds=(0, 1, 2)),
    },
    claims=[
        Claim("infinite", "infinite RBM, arXiv:1502.02476: as likely as 500 units", direction="equal"),
        Claim("infinite", "infinite RBM, arXiv:1502.02476: likelier than 100 units", versus="rbm_100"),
    ],
    baseline="rbm_500",
    protocol="Of MNIST 10,000 training rows judge the search and never train; CalTech has rows of its own for that. PCD-10 with AdaGrad, 64 rows in an update, visible biases from the data. The search trains for a tenth of the passes and has a fifth of the "
    "temperatures. Annealed importance sampling in the published proportions of temperatures.",
    limits=[
        "Chains that start at the visible biases can miss a mode; then the likelihood is too high, and the interval does not show it.",
        "The rate is not lowered at the end, as published.",
    ],
)
