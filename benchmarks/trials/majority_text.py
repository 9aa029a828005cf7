"""Trial 5: Majority Kernels on text that is read many times, where a language model learns its training text by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from benchmarks.studies.rows import Row
from benchmarks.studies.study import Claim
from benchmarks.trials.data import Examples, sequences
from benchmarks.trials.kernel_sides import Problem, Sides
from benchmarks.trials.majority import way
from benchmarks.trials.problems import problem_of
from benchmarks.trials.trial import Condition, Entries, Scale, Trial, is_better


@torch.no_grad()
def loss_of(problem: Problem, model: nn.Module, data: Examples) -> float:
    """Nats per byte."""
    parts = zip(data[0].split(64), data[1].split(64), strict=True)
    sums = [float(functional.cross_entropy(problem.answers(model, x), y, reduction="sum")) for x, y in parts]
    return sum(sums) / data[1].numel()


def fit(task: Entries, options: Entries, rate: float, seed: int, split: str) -> Mapping[str, float]:
    """Train one network for all epochs, and judge it."""
    train, judged = sequences(task["data"], task["sequence_length"], task["sequences"], task["judged"], split)
    epochs = task["epochs"] * options.get("times", 1)
    steps = epochs * len(train[0]) // task["batch_size"]
    setting = {"steps": steps, "batch_size": task["batch_size"], "warmup_steps": task["warmup_steps"]}
    problem, more = problem_of(task), {key: value for key, value in options.items() if key not in ("way", "times")}
    model = getattr(Sides(problem, setting, train), options["way"])(rate, seed, **more).eval()
    return {"value": loss_of(problem, model, judged), "train_loss": loss_of(problem, model, train)}


def overfits(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Twice the epochs, tuned as well, are no better: more compute of the plain kind does not help."""
    return not is_better(rows["plain_twice"], rows["plain"])


TRIAL = Trial(
    name="majority_text",
    title="Majority Kernels on text",
    question="A language model reads a short text until more epochs do not help. Are k kernels a layer, deployed as their mean, better than plain "
    "training of the same network?",
    metric="loss, nats per byte",
    gate=Condition("twice the epochs do not help plain training", ("plain", "plain_twice"), overfits),
    sides=[
        way("plain", "plain"),
        way("plain_twice", "plain", times=2),
        way("kernels"),
        way("kernels_layer", granularity="layer"),
        way("mean_only", "mean_only"),
        way("dropout", "dropout"),
        way("weight_noise", "weight_noise"),
        way("distilled_ensemble", "distilled_ensemble"),
    ],
    fit=fit,
    settings={
        "tiny": Scale(
            tasks={
                "books_50kB": {
                    "data": "classic_books_train", "sequence_length": 64, "sequences": 780, "judged": 1024, "width": 48, "layers": 3,
                    "heads": 2, "epochs": 20, "batch_size": 16, "warmup_steps": 40,
                }
            },
            values=(2e-3, 4e-3, 8e-3),
            tuned_on=(100,),
            seeds=(0, 1, 2, 3, 4),
        ),
        "small": Scale(
            tasks={
                "books_1MB": {
                    "data": "classic_books_train", "sequence_length": 128, "sequences": 7_800, "judged": 1024, "width": 80, "layers": 4,
                    "heads": 4, "epochs": 40, "batch_size": 32, "warmup_steps": 100,
                }
            },
            values=(1e-3, 2e-3, 4e-3),
            tuned_on=(100,),
            seeds=(0, 1, 2, 3, 4),
        ),
    },
    claims=[
        Claim("kernels", "Majority Kernels, arXiv:2402.05033: better than plain training of the same network"),
        Claim("kernels_layer", "the same, one combination for a whole layer"),
        Claim("kernels", "ours: better than dropout", versus="dropout"),
        Claim("kernels", "arXiv:2402.05033: better than three networks that teach one", versus="distilled_ensemble"),
    ],
    baseline="plain",
    protocol="AdamW (weight decay 0.01) under a cosine after a short warm-up; all sides of a seed see the same batches; the head is never in several kernels.",
    limits=["One text, bytes, one small llama."],
)  # fmt: skip
