"""Two processes that share a node (DDP, FSDP2) end it early at the same step, and leave the weights that were the best."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import torch
from small import TRAIN, corpus
from test_compositions import FSDP
from transformers import default_data_collator

from meristem.checkpoints import open_model
from meristem.recipes import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task

STEPS, PATIENCE = 40, 3
RATE = {"learning_rate": 0.04, "warmup": 0.0, "schedule": "constant_with_warmup"}


def digits(folder):
    """Counting to learn, and to be judged by digits in no order: that they are digits is learned first, and helps; that they count
    is learned next, and is wrong more surely with every step."""
    data = corpus(folder)
    Path(data["source"]).write_text("0123456789" * 3600 + "".join(random.Random(0).choices("0123456789", k=4000)))
    return data


def recipe(tmp_path, **node):
    train = {**TRAIN, "tokens": STEPS * 4 * 32, "evaluations": 20, "early_stop": {"patience": PATIENCE}, **RATE}
    trainer = node.pop("trainer", {})
    return parse_recipe({"data": digits(tmp_path), "nodes": {"net": {"train": {**train, "trainer": trainer}, **node}}})


def loss_of_what_it_left(recipe, out):
    """On the split that it was judged by, in this process."""
    (directory,) = out.glob("net-*")
    model = open_model(str(directory / "model")).eval()
    examples = open_task(recipe.data).evaluation_set("tune")
    rows = default_data_collator([examples[position] for position in range(len(examples))])
    with torch.no_grad():
        return float(model(**rows).loss)


@pytest.mark.dist
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_all_processes_decide_alike(way, tmp_path, monkeypatch):
    """If they did not, one would wait for the other for ever. The best evaluation is an early one."""
    if way == "fsdp2":
        here = str(Path(__file__).parent / "fsdp_on_cpu")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *(p for p in sys.path if p)]))
        monkeypatch.setenv("SHARDED", str(tmp_path / "sharded"))
    shared = recipe(tmp_path, resources={"processes": 2}, trainer=FSDP if way == "fsdp2" else {})
    found = run(shared, tmp_path / "out")[0]["net"]
    assert (tmp_path / "sharded").exists() == (way == "fsdp2")
    losses = [point["tune_loss"] for point in found.curve]
    steps = [int(point["step"]) for point in found.curve]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + PATIENCE
    assert (found.details["best_at"], found.details["stopped_at"]) == (steps[best], steps[-1])
    assert 0 < steps[best] < steps[-1] < STEPS
    assert found.examples == steps[-1] * 4
    assert found.metrics["eval_loss"] == found.curve[best]["eval_loss"]
    assert loss_of_what_it_left(shared, tmp_path / "out") == pytest.approx(losses[best], rel=1e-4)
    assert losses[-1] > losses[best] * 1.001
    assert not list(tmp_path.glob("out/net-*/trainer"))
