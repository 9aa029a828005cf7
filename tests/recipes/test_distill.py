"""A network learns the answers of another one: the value of the loss, its cost, and what it does not go together with."""

from __future__ import annotations

import math

import pytest
import torch
from small import MODEL, TRAIN, corpus
from torch.nn import functional

import meristem as ms
from meristem.anatomy.flops import forward_flops
from meristem.checkpoints import open_model
from meristem.recipes.modifiers.distillation import soft_loss
from meristem.recipes.run import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.training.train import NodeTrainer

SHORT = {"tokens": 640, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}
WIDE = {"train": {**TRAIN, "model": {**MODEL, "intermediate_size": 64}, "seed": 1}}


def test_the_soft_loss_by_hand():
    """T = 2, teacher logits (2 ln 3, 0) are 3/4 and 1/4 then; a student that knows nothing: 4 (ln 2 - H(3/4, 1/4))."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(soft_loss(student, teacher, 2.0)) == pytest.approx(4 * (math.log(2) - entropy), rel=1e-5)
    assert float(soft_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    twice = soft_loss(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert float(twice) == pytest.approx(2 * float(soft_loss(student, teacher, 2.0)))


def test_a_run_minimises_the_mixture_and_counts_the_teacher(tmp_path, monkeypatch):
    """The loss of the first step, by hand; evaluations keep the task's own; accumulated micro-batches are the same run."""
    seen: list[tuple[dict, float]] = []
    step = NodeTrainer.compute_loss

    def watched(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = step(self, model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            loss = result[0] if return_outputs else result
            seen.append((dict(inputs), float(loss.detach())))
        return result

    monkeypatch.setattr(NodeTrainer, "compute_loss", watched)
    distil = {"teacher": "wide", "temperature": 3.0, "weight": 0.25}
    four = {"gradient_accumulation_steps": 4}
    nodes = {
        "wide": WIDE,
        "small": {"train": TRAIN},
        "plain": {"train": {"from": "small", **SHORT}},
        "taught": {"train": {"from": "small", **SHORT, "distill": distil}},
        "accumulated": {"train": {"from": "small", **SHORT, "distill": distil, "trainer": four}},
    }
    recipe = parse_recipe({"data": corpus(tmp_path), "nodes": nodes})
    results = run(recipe, tmp_path / "out")[0]
    found = {place.name.split("-s0-")[0]: place for place in (tmp_path / "out").glob("*-s0-*")}
    student, teacher = (open_model(str(found[name] / "model")).eval() for name in ("small", "wide"))
    inputs, loss = seen[10 + 10 + 5]  # after the steps of wide, small and plain
    with torch.no_grad():
        ours, theirs = student(**inputs), teacher(**inputs)
    student_p, teacher_p = (functional.log_softmax(out.logits[:, :-1].flatten(0, 1) / 3, -1) for out in (ours, theirs))
    soft = 9 * float((teacher_p.exp() * (teacher_p - student_p)).sum(-1).mean())
    assert loss == pytest.approx(0.75 * float(ours.loss) + 0.25 * soft, rel=1e-4)
    more = 20 * forward_flops(teacher, open_task(recipe.data).example())
    assert results["taught"].flops == results["plain"].flops + more
    assert results["taught"].details["teacher_flops"] * 20 == more
    assert results["taught"].curve[0]["eval_loss"] == pytest.approx(results["plain"].curve[0]["eval_loss"])
    apart = results["taught"].metrics["eval_loss"] - results["plain"].metrics["eval_loss"]
    assert abs(apart) > 1e-5
    assert results["accumulated"].metrics["eval_loss"] == pytest.approx(
        results["taught"].metrics["eval_loss"], rel=1e-5
    )
    assert not any("teacher" in name for name in open_model(str(found["taught"] / "model")).state_dict())


def test_a_pruned_network_is_healed_by_the_one_it_was_cut_from(tmp_path):
    nodes = {
        "big": {"train": {**TRAIN, "tokens": 12800}},
        "cut": {"grow": {"from": "big", "method": "prune", "intermediate_size": 8}},
        "healed": {"train": {"from": "cut", **SHORT, "tokens": 3200, "distill": {"teacher": "big"}}},
    }
    results = run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")[0]
    assert results["cut"].flops > 0
    curve = results["healed"].curve
    assert curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    assert results["healed"].parents[1] == results["cut"].parents[0]


@pytest.mark.parametrize("train, message", [
    ({"distill": {"teacher": "nobody"}}, "comes from 'nobody', which is no node"),
    ({"distill": {"teacher": "wide", "temperature": 0}}, "temperature"),
    ({"distill": {"teacher": "wide", "weight": 1.5}}, "weight"),
    ({"distill": {"teacher": "wide"}, "trainer": {"fsdp": True}}, "distill and fsdp cannot be combined"),
    ({"distill": {"teacher": "wide"}, "incubate": {"num_hidden_layers": 4, "modules": 2, "module": 0}}, "distill and incubate cannot be combined"),
    ({"distill": {}}, "teacher"),
])  # fmt: skip
def test_refusals(tmp_path, train, message):
    nodes = {"small": {"train": TRAIN}, "wide": WIDE, "node": {"train": {"from": "small", **SHORT, **train}}}
    with pytest.raises(ms.MeristemError) as error:
        parse_recipe({"data": corpus(tmp_path), "nodes": nodes})
    assert message in str(error.value)


def test_a_decay_has_no_teacher(tmp_path):
    stable = {**SHORT, "schedule": "constant_with_warmup", "distill": {"teacher": "small"}}
    nodes = {"small": {"train": TRAIN}, "run": {"train": {"from": "small", **stable}},
             "end": {"decay": {"from": "run", "at": 320, "tokens": 320}}}  # fmt: skip
    with pytest.raises(ms.MeristemError, match="learns from 'small'"):
        parse_recipe({"data": corpus(tmp_path), "nodes": nodes})


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path):
    other = {**WIDE["train"]["model"], "vocab_size": 300}
    nodes = {"small": {"train": TRAIN}, "wide": {"train": {**TRAIN, "model": other}},
             "node": {"train": {"from": "small", **SHORT, "distill": {"teacher": "wide"}}}}  # fmt: skip
    with pytest.raises(ms.MeristemError, match="has 300 possible answers, and the trained network 25"):
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")
