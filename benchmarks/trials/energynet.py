"""Trial 4: EnergyNet where its structure can matter, with many rows and few labels."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.studies.rows import Row
from benchmarks.studies.study import Claim
from benchmarks.trials.data import HELD, whole
from benchmarks.trials.trial import Condition, Entries, Scale, Trial, Way

TENFOLD = 10
Arrays = tuple[np.ndarray, np.ndarray]


@functools.cache
def pixels(data: str) -> tuple[Arrays, Arrays]:
    """Training and test rows in [0, 1]; the same for every side."""
    (x, y), (test_x, test_y) = whole(data)
    brightest = float(x.max())
    as_arrays = lambda x, y: ((x / brightest).numpy().astype(np.float32), y.numpy())  # noqa: E731
    return as_arrays(x, y), as_arrays(test_x, test_y)


def drawn(task: Entries, seed: int, split: str) -> tuple[np.ndarray, Arrays, Arrays]:
    """All training rows without labels, `labels` of them with (as many of each class as of every other), and the rows that judge."""
    (x, y), judged = pixels(task["data"])
    if split == "tune":
        order = np.random.default_rng(0).permutation(len(x))
        held = int(HELD * len(x))
        judged = x[order[:held]], y[order[:held]]
        x, y = x[order[held:]], y[order[held:]]
    order = np.random.default_rng(seed).permutation(len(x))[: task["rows"]]
    x, y = x[order], y[order]
    each = task["labels"] // len(np.unique(y))
    few = np.concatenate([np.flatnonzero(y == label)[:each] for label in np.unique(y)])
    return x, (x[few], y[few]), judged


def energynet(x: np.ndarray, few: Arrays, rate: float, seed: int, **options: Any) -> Any:
    """Structure from all rows, weights from the few that have a label."""
    structure = _structure(x.tobytes(), x.shape, seed, tuple(sorted(options.items())))
    return copy.deepcopy(structure).set_params(learning_rate=rate).fit(*few)


@functools.lru_cache(maxsize=4)
def _structure(rows: bytes, shape: tuple[int, ...], seed: int, options: tuple[tuple[str, Any], ...]) -> Any:
    """It is the same for every learning rate of the second stage."""
    from meristem.adaptive import EnergyNetClassifier

    x = np.frombuffer(rows, dtype=np.float32).reshape(shape)
    return EnergyNetClassifier(visible="binary", random_state=seed, **dict(options)).fit_structure(x)


def mlp(x: np.ndarray, few: Arrays, rate: float, seed: int) -> Any:
    """Widths by cross-validation on the rows with labels."""
    from sklearn.model_selection import GridSearchCV

    sizes = [(32,), (128,), (512,), (64, 64), (256, 256)]
    return GridSearchCV(_network((128,), rate, seed), {"hidden_layer_sizes": sizes}, cv=3).fit(*few)


def _network(sizes: tuple[int, ...], rate: float, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(sizes, learning_rate_init=rate, n_iter_no_change=20, max_iter=500, random_state=seed)


def random_widths(x: np.ndarray, few: Arrays, rate: float, seed: int) -> Any:
    """One to three layers of 8 to 512 units, log-uniformly drawn."""
    draw = np.random.default_rng(seed)
    sizes = tuple(int(8 * 64**share) for share in draw.random(draw.integers(1, 4)))
    return _network(sizes, rate, seed).fit(*few)


def self_training(x: np.ndarray, few: Arrays, rate: float, seed: int) -> Any:
    """The network teaches itself the rows of which it is surest."""
    from sklearn.semi_supervised import SelfTrainingClassifier

    labels = np.concatenate([few[1], np.full(len(x), -1)])
    return SelfTrainingClassifier(_network((128,), rate, seed)).fit(np.concatenate([few[0], x]), labels)


def pca_logistic(x: np.ndarray, few: Arrays, strength: float, seed: int) -> Any:
    """Directions from all rows, answers from the few; `strength` is C."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = make_pipeline(PCA(0.9, random_state=seed), StandardScaler()).fit(x)
    answers = LogisticRegression(C=strength, max_iter=5000).fit(seen.transform(few[0]), few[1])
    return make_pipeline(seen, answers)


WAYS: dict[str, Callable[..., Any]] = {
    "energynet": energynet,
    "mlp": mlp,
    "random_widths": random_widths,
    "self_training": self_training,
    "pca_logistic": pca_logistic,
}


def fit(task: Entries, options: Entries, value: float, seed: int, split: str) -> Mapping[str, float]:
    """Train one classifier, and judge it."""
    x, few, judged = drawn(task, seed, split)
    torch.manual_seed(seed)
    more = {key: own for key, own in options.items() if key != "way"}
    model = WAYS[options["way"]](x, few, value, seed, **more)
    figures = {"value": 100 * float(1 - model.score(*judged)), "rows_per_label": len(x) / len(few[0])}
    if widths := getattr(model, "widths_", None):
        figures |= {"first_width": float(widths[0]), "layers": float(len(widths))}
    return figures


def outnumber(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Ten rows for each label."""
    return all(row["rows_per_label"] >= TENFOLD for own in rows.values() for row in own)


STRENGTHS = (0.1, 1.0, 10.0)
TO_THE_END = {"validation_fraction": 0.0, "max_epochs": 500}  # a tenth of so few labels would be too few to stop by

TRIAL = Trial(
    name="energynet",
    title="EnergyNet with few labels",
    question="With many rows and few labels, does a structure learned from all rows give a better classifier than widths searched on the rows "
    "with labels, and than simple ways to use the others?",
    metric="test error, %",
    gate=Condition("rows without labels outnumber those with labels tenfold", ("mlp",), outnumber),
    sides=[
        Way("mlp", {"way": "mlp"}),
        Way("energynet", {"way": "energynet", **TO_THE_END}),
        Way("structure_only", {"way": "energynet", **TO_THE_END, "initial": "random"}),
        Way("random_widths", {"way": "random_widths"}),
        Way("pca_logistic", {"way": "pca_logistic"}, values=STRENGTHS),
        Way("self_training", {"way": "self_training"}),
    ],
    fit=fit,
    settings={
        "tiny": Scale(
            tasks={f"digits_{labels}": {"data": "digits", "rows": None, "labels": labels} for labels in (50, 100)},
            values=(1e-3, 2e-3, 4e-3),
        ),
        "small": Scale(
            tasks={f"mnist_{labels}": {"data": "mnist", "rows": None, "labels": labels} for labels in (100, 500, 5000)},
            values=(5e-4, 1e-3, 2e-3),
            seeds=(0, 1, 2, 3, 4),
        ),
    },
    claims=[
        Claim(
            "energynet",
            "EnergyNet, arXiv:1711.03130: structure without labels is as good as a searched one",
            direction="equal",
        ),
        Claim("structure_only", "ours: its widths alone are better than random ones", versus="random_widths"),
    ],
    baseline="mlp",
    protocol="The MLP's widths are chosen among five by cross-validation on the rows with labels. The tuned number is the learning rate of the "
    "networks and C of the logistic regression; the rows that judge in its search have labels, as many for every side.",
    limits=[
        "Pixels of small images. The search for the tuned number sees more labels than training does, on every side alike."
    ],
)
