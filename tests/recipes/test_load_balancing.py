"""A mixture of experts learns to share its tokens out: the value of the loss, and evaluations that keep the task's own."""

from __future__ import annotations

import json

import pytest
import torch
from small import MODEL, TRAIN, corpus
from torch.nn import functional

import meristem as ms
from meristem.checkpoints import open_model
from meristem.recipes.run import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.tasks import open_task
from meristem.recipes.training.train import NodeTrainer

MIXTURE = {**MODEL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
SHORT = {"tokens": 640, "learning_rate": 3e-3, "batch_size": 4, "evaluations": 2}


def balance(model, inputs, top=2) -> float:
    """Fedus et al., equations (4) to (6): experts x sum over experts of (share of tokens x mean probability), the mean over layers."""
    with torch.no_grad():
        layers = model(**inputs, output_router_logits=True).router_logits
    found = []
    for logits in layers:
        probabilities = logits.softmax(-1)
        chosen = functional.one_hot(probabilities.topk(top).indices, probabilities.shape[-1]).sum(1).float()
        found.append(probabilities.shape[-1] * float((chosen.mean(0) * probabilities.mean(0)).sum()))
    return sum(found) / len(found)


@pytest.fixture
def losses(monkeypatch):
    """What training steps minimise: (inputs, loss)."""
    seen: list[tuple[dict, float]] = []
    step = NodeTrainer.compute_loss

    def watched(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = step(self, model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            seen.append((dict(inputs), float((result[0] if return_outputs else result).detach())))
        return result

    monkeypatch.setattr(NodeTrainer, "compute_loss", watched)
    return seen


def result_of(nodes, folder):
    results = run(parse_recipe({"data": corpus(folder), "nodes": nodes}), folder / "out")[0]
    return results, {place.name.split("-s0-")[0]: place for place in (folder / "out").glob("*-s0-*")}


def test_the_loss_by_hand_once_however_batches_are_cut(tmp_path, losses):
    four = {"gradient_accumulation_steps": 4}
    balanced = {"from": "first", **SHORT, "load_balancing": 0.5}
    results, found = result_of(
        {
            "first": {"train": {**TRAIN, "model": MIXTURE}},
            "plain": {"train": {"from": "first", **SHORT}},
            "balanced": {"train": balanced},
            "accumulated": {"train": {**balanced, "trainer": four}},
        },
        tmp_path,
    )
    model = open_model(str(found["first"] / "model")).eval()
    inputs, loss = losses[10 + 5]  # after the steps of first and plain
    with torch.no_grad():
        own = float(model(**inputs).loss)
    assert loss == pytest.approx(own + 0.5 * balance(model, inputs), rel=1e-5)
    parts = losses[10 + 5 + 5 :][:4]
    shares = sum(float(model(**cut).loss.detach()) / 4 + 0.5 * balance(model, cut) / 4 for cut, _ in parts)
    assert sum(loss for _, loss in parts) == pytest.approx(shares, rel=1e-5)
    # Evaluations keep the task's own loss, and the two runs part.
    assert results["balanced"].curve[0]["eval_loss"] == results["plain"].curve[0]["eval_loss"]
    assert results["balanced"].metrics["eval_loss"] != results["plain"].metrics["eval_loss"]
    assert results["balanced"].details["load_balancing"] == 0.5
    config = json.loads((found["balanced"] / "model" / "config.json").read_text())
    assert config["router_aux_loss_coef"] == 0.5
    assert not config.get("output_router_logits")


def test_tokens_are_shared_out_better(tmp_path):
    """The largest share of an expert's tokens in any layer; an even one is a quarter."""
    longer = {**TRAIN, "model": MIXTURE, "tokens": 12800, "learning_rate": 1e-2}
    _, found = result_of(
        {"plain": {"train": longer}, "balanced": {"train": {**longer, "load_balancing": 1.0}}}, tmp_path
    )
    task = open_task(parse_recipe({"data": corpus(tmp_path), "nodes": {"x": {"train": TRAIN}}}).data)
    held_out = task.evaluation_set()
    inputs = torch.stack([torch.as_tensor(held_out[number]["input_ids"]) for number in range(len(held_out))])
    largest = {}
    for name in ("plain", "balanced"):
        with torch.no_grad():
            layers = open_model(str(found[name] / "model")).eval()(inputs, output_router_logits=True).router_logits
        chosen = [layer.topk(2).indices.flatten().bincount(minlength=4) for layer in layers]
        largest[name] = max(float(counts.max() / counts.sum()) for counts in chosen)
    assert largest["balanced"] < 0.3 < largest["plain"]


def test_evaluations_leave_it_out_where_a_config_asks_for_it(tmp_path):
    """Stock classes add it to the loss of evaluations too, 0.5 times about 2 here."""
    asked = {**MIXTURE, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    results, _ = result_of(
        {"plain": {"train": {**TRAIN, "model": MIXTURE}}, "asked": {"train": {**TRAIN, "model": asked}}}, tmp_path
    )
    assert results["asked"].curve[0]["eval_loss"] == results["plain"].curve[0]["eval_loss"]
    assert results["asked"].metrics["eval_loss"] == pytest.approx(results["plain"].metrics["eval_loss"], rel=0.05)


def test_a_dense_network_has_no_such_loss(tmp_path):
    with pytest.raises(
        ms.MeristemError, match="mixture of experts whose class has such a loss; LlamaForCausalLM has none"
    ):
        result_of({"node": {"train": {**TRAIN, "load_balancing": 0.1}}}, tmp_path)
