"""Runs that end early, and steps whose loss jumps: by the recipe's rule, and the same after a kill."""

from __future__ import annotations

import json

import pytest
import torch
from small import TRAIN, corpus
from transformers import TrainerCallback

import meristem as ms
from meristem.recipes import run
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.training.guards import diverged

STEPS = 40
WILD = {"learning_rate": 0.1, "warmup": 0.0, "schedule": "constant_with_warmup"}


def recipe(tmp_path, **train):
    own = {**TRAIN, "tokens": STEPS * 4 * 32, "evaluations": 20, "checkpoint_every": 5 * 4 * 32, **train}
    return parse_recipe({"data": corpus(tmp_path), "nodes": {"net": {"train": own}}})


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the run in the middle of a step, before anything of it is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


class Poison(TrainerCallback):
    """Wrong labels in some steps: their loss jumps. What a step reads is replaced, so that a resumed run meets the same."""

    def __init__(self, steps):
        self.steps, self.now = steps, False

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if not hasattr(self, "hook"):
            self.hook = model.lm_head.register_forward_hook(
                lambda module, args, output: output * -30 if self.now and module.training else None
            )
        self.now = state.global_step + 1 in self.steps

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()


def weights(out):
    (file,) = out.glob("net-*/model/model.safetensors")
    (optimizer,) = out.glob("net-*/optimizer.safetensors")
    return file.read_bytes(), optimizer.read_bytes()


def killed_and_resumed(recipe, out, steps, callbacks=lambda: []):
    for step in steps:
        with pytest.raises(Killed):
            run(recipe, out, callbacks=[*callbacks(), KillAt(step)])
    return run(recipe, out, callbacks=callbacks())[0]["net"]


def test_a_run_ends_when_it_no_longer_gets_better(tmp_path):
    """At a learning rate that is too high, its best evaluation is an early one; curve, costs and what later nodes read follow."""
    own = recipe(tmp_path, **WILD, early_stop={"patience": 3})
    found = run(own, tmp_path / "out")[0]["net"]
    steps = found.details["stopped_at"]
    assert steps < STEPS
    losses = [point["tune_loss"] for point in found.curve]
    assert found.details["best_tune_loss"] == min(losses)
    assert losses.index(min(losses)) == len(losses) - 4  # three evaluations later it ended
    assert found.curve[-1]["step"] == steps
    assert (found.examples, found.tokens) == (steps * 4, steps * 4 * 32)
    best = found.curve[losses.index(min(losses))]
    assert found.details["best_at"] == best["step"]
    assert found.metrics["eval_loss"] == best["eval_loss"]  # of the weights that it leaves
    assert found.metrics["eval_loss"] != found.curve[-1]["eval_loss"]
    assert "tune_loss" not in found.metrics
    whole = run(recipe(tmp_path, **WILD), tmp_path / "whole")[0]["net"]
    assert found.flops * STEPS == whole.flops * steps
    assert [p["eval_loss"] for p in whole.curve[: len(losses)]] == [p["eval_loss"] for p in found.curve]


def test_it_leaves_the_best_weights(tmp_path):
    """Model and optimizer are, bit for bit, those that a run of the same seed keeps at that step."""
    own = recipe(tmp_path, **WILD, early_stop={"patience": 3})
    best = run(own, tmp_path / "out")[0]["net"].details["best_at"]
    assert 0 < best < STEPS
    run(recipe(tmp_path, **WILD, keep_every=best * 4 * 32), tmp_path / "whole")
    (kept,) = (tmp_path / "whole").glob(f"net-*/kept/{best}")
    model, optimizer = weights(tmp_path / "out")
    assert model == (kept / "model" / "model.safetensors").read_bytes()
    assert optimizer == (kept / "optimizer.safetensors").read_bytes()


def test_a_run_that_gets_better_goes_on_to_its_end(tmp_path):
    found = run(recipe(tmp_path, early_stop={"patience": 2}), tmp_path / "out")[0]["net"]
    assert found.details["stopped_at"] is None
    assert found.examples == STEPS * 4


def test_min_delta_counts(tmp_path):
    found = run(recipe(tmp_path, early_stop={"patience": 2, "min_delta": 100.0}), tmp_path / "out")[0]["net"]
    assert found.details["stopped_at"] == 4  # evaluations at 0, 2 and 4
    losses = [point["tune_loss"] for point in found.curve]
    assert found.details["best_at"] == 4  # what it leaves is the best all the same
    assert found.details["best_tune_loss"] == min(losses) == losses[-1]


def test_an_early_end_is_the_same_after_kills(tmp_path):
    """Killed in the middle, and once more between its last step and its result."""
    own = recipe(tmp_path, **WILD, early_stop={"patience": 3}, checkpoint_every=2 * 4 * 32)
    undisturbed = run(own, tmp_path / "one")[0]["net"]
    again = killed_and_resumed(own, tmp_path / "two", (3, 7))
    assert again.details == undisturbed.details
    assert weights(tmp_path / "one") == weights(tmp_path / "two")

    class KillAtEnd(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            raise Killed

    with pytest.raises(Killed):
        run(own, tmp_path / "three", callbacks=[KillAtEnd()])
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    last = run(own, tmp_path / "three", callbacks=[Count()])[0]["net"]
    assert steps == []
    assert last.details == undisturbed.details
    assert (last.flops, last.metrics) == (undisturbed.flops, undisturbed.metrics)
    assert weights(tmp_path / "one") == weights(tmp_path / "three")


def test_a_spike_is_left_out(tmp_path):
    """Weights and moments stay as they were: the run is the one in which the step's gradient is none."""
    own = recipe(tmp_path, spikes={"window": 8, "sigma": 6})
    found = run(own, tmp_path / "out", callbacks=[Poison({20, 21})])[0]["net"]
    assert found.details["skipped_steps"] == [20]  # the second one is in the company of the first
    calm = run(own, tmp_path / "calm")[0]["net"]
    assert calm.details["skipped_steps"] == []
    without = run(recipe(tmp_path), tmp_path / "without")[0]["net"]
    assert without.metrics == calm.metrics

    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step in (19, 20):
                moments = [v["exp_avg"].clone() for v in optimizer.optimizer.state.values()]
                seen[state.global_step] = [p.detach().clone() for p in model.parameters()] + moments

    run(own, tmp_path / "watched", callbacks=[Poison({20}), Watch()])
    assert all(map(torch.equal, seen[19], seen[20]))


def test_spikes_are_judged_alike_after_a_kill(tmp_path):
    """The window reaches back over the checkpoint that the run resumes from."""
    own = recipe(tmp_path, spikes={"window": 12, "sigma": 6})

    def poison():
        return [Poison({17, 33})]

    undisturbed = run(own, tmp_path / "one", callbacks=poison())[0]["net"]
    assert undisturbed.details["skipped_steps"] == [17, 33]
    again = killed_and_resumed(own, tmp_path / "two", (16, 31), poison)
    assert again.details == undisturbed.details
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_a_spike_may_end_the_node(tmp_path):
    own = recipe(tmp_path, spikes={"window": 8, "sigma": 6, "action": "end"})
    with pytest.raises(
        ms.MeristemError,
        match=r"net \(seed 0\) diverged: its training loss is .*, over 6 deviations above .*, at step 23; .*checkpoint-20",
    ):
        run(own, tmp_path / "out", callbacks=[Poison({23})])
    (directory,) = (tmp_path / "out").glob("net-*")
    assert diverged(directory)
    assert json.loads((directory / "diverged.json").read_text())["step"] == 23


@pytest.mark.parametrize("more", [
    {"trainer": {"gradient_accumulation_steps": 2}}, {"subnetwork": {"kind": "layer_drop", "rate": 0.2}}, {"majority": {"kernels": 2}},
    {"trainer": {"bf16": True}},
])  # fmt: skip
def test_spikes_with_other_methods(tmp_path, more):
    own = recipe(tmp_path, spikes={"window": 8, "sigma": 8}, early_stop={"patience": 30}, **more)
    callbacks = [] if "majority" in more else [Poison({30})]
    found = run(own, tmp_path / "out", callbacks=callbacks)[0]["net"]
    assert found.details["skipped_steps"] == ([30] if callbacks else [])
    assert found.metrics["eval_loss"] < found.curve[0]["eval_loss"]


@pytest.mark.parametrize("train, words", [
    ({"early_stop": {"patience": 0}}, "greater than 0"), ({"early_stop": {"patients": 2}}, "did you mean 'patience'"),
    ({"spikes": {"window": 1}}, "greater than 1"), ({"spikes": {"action": "stop"}}, "'skip' or 'end'"),
    ({"spikes": {}, "trainer": {"fp16": True}}, "cannot be combined with fp16"),
])  # fmt: skip
def test_bad_input(tmp_path, train, words):
    with pytest.raises(ms.MeristemError, match=words):
        recipe(tmp_path, **train)


def test_nothing_branches_off_a_run_that_ends_nobody_knows_when(tmp_path):
    train = {**TRAIN, "schedule": "constant_with_warmup", "early_stop": {}}
    nodes = {"net": {"train": train}, "end": {"decay": {"from": "net", "at": 640, "tokens": 128}}}
    with pytest.raises(ms.MeristemError, match="whose end is not known"):
        parse_recipe({"data": corpus(tmp_path), "nodes": nodes})
