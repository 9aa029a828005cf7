"""Trial 1: Majority Kernels, the final quality of a small network that is trained until it has learned its training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.studies.rows import Row
from benchmarks.studies.study import Claim
from benchmarks.support.kernel_sides import Problem, Sides
from benchmarks.trials.data import Examples, examples
from benchmarks.trials.trial import Condition, Entries, Scale, Trial, Way

INTERPOLATES = 99.9  # per cent of the training rows


def mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Two hidden layers."""
    layers: list[nn.Module] = []
    for before in (inputs, width):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def problem(inputs: int, width: int) -> Problem:
    """The MLP without kernels in its head."""
    return Problem(
        lambda seed, dropout: mlp(inputs, width, dropout),
        lambda model, x: model(x),
        lambda seed, factor: mlp(inputs, factor * width, 0.0),
        lambda model: [([model[at]], model[at + 3]) for at in (0, 3)],
        head="6",
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: Examples) -> float:
    """Per cent."""
    right = [
        (model(part).argmax(1) == labels).float()
        for part, labels in zip(data[0].split(1000), data[1].split(1000), strict=True)
    ]
    return 100 * float(torch.cat(right).mean())


def fit(task: Entries, options: Entries, rate: float, seed: int, split: str) -> Mapping[str, float]:
    """Train one network, and judge it."""
    train, judged = examples(task["data"], task["rows"], split)
    steps = task["epochs"] * len(train[0]) // task["batch_size"]
    sides = Sides(problem(train[0].shape[1], task["width"]), {"steps": steps, "batch_size": task["batch_size"]}, train)
    more = {key: value for key, value in options.items() if key != "way"}
    model = getattr(sides, options["way"])(rate, seed, **more).eval()
    logits: Tensor = model(judged[0])
    loss = float(torch.nn.functional.cross_entropy(logits.detach(), judged[1]))
    return {"value": 100 - accuracy(model, judged), "test_loss": loss, "train_accuracy": accuracy(model, train)}


def interpolates(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Every reported plain network has learned its training rows."""
    return all(row["train_accuracy"] >= INTERPOLATES for row in rows["plain"])


def way(name: str, of: str = "kernels", **options: Any) -> Way:
    return Way(name, {"way": of, **options})


TRIAL = Trial(
    name="majority",
    title="Majority Kernels",
    question="Does training k kernels a layer and deploying their mean give a better network of the same size than plain training, when both "
    "are trained until they have learned their training rows?",
    metric="test error, %",
    gate=Condition(
        f"plain training reaches {INTERPOLATES} % of its training rows on every seed", ("plain",), interpolates
    ),
    sides=[
        way("plain", "plain"),
        way("kernels", start="scratch"),
        way("kernels_layer", granularity="layer"),
        way("kernels_entry", granularity="entry"),
        way("kernels_2", kernels=2),
        way("kernels_5", kernels=5),
        way("kernels_half_epsilon", epsilon=0.5),
        way("kernels_annealed", anneal=1.0),
        way("mean_only", "mean_only"),
        way("larger_init", "larger_init"),
        way("ema", "ema"),
        way("sam", "sam"),
        way("dropout", "dropout"),
        way("weight_noise", "weight_noise"),
        way("distilled_ensemble", "distilled_ensemble"),
        way("submodular", "submodular"),
        way("k_times_wider", "k_times_wider"),
    ],
    fit=fit,
    settings={
        "tiny": Scale(
            tasks={"digits": {"data": "digits", "rows": None, "width": 128, "epochs": 300, "batch_size": 64}},
            values=(1e-3, 2e-3, 4e-3),
            tuned_on=(100, 101),
        ),
        "small": Scale(
            tasks={
                "fashion_mnist": {
                    "data": "fashion_mnist",
                    "rows": 10_000,
                    "width": 128,
                    "epochs": 300,
                    "batch_size": 128,
                }
            },
            values=(5e-4, 1e-3, 2e-3),
            sides=(
                "kernels",
                "kernels_layer",
                "mean_only",
                "larger_init",
                "dropout",
                "sam",
                "distilled_ensemble",
                "k_times_wider",
            ),
        ),
    },
    claims=[
        Claim("kernels", "Majority Kernels, arXiv:2402.05033: better than plain training of the same network"),
        Claim("kernels_layer", "the same, one combination for a whole layer"),
        Claim("k_times_wider", "our ceiling: the network k times as wide, which kernels are to approach"),
        Claim("distilled_ensemble", "arXiv:2402.05033's rival: three networks teach one"),
    ],
    baseline="plain",
    protocol="AdamW (weight decay 0.01) under a cosine; all sides of a seed see the same batches; the head is never in several kernels.",
    limits=[
        "MLPs of two hidden layers; convolutional networks, transformers and text in this regime are not measured yet.",
        "Submodular selection trains the wide network for half the steps and the small one for the other half.",
    ],
)
