"""Runs that cannot be trusted end with a sentence: reserved keys, losses that are no numbers, refused nodes."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from concurrent.futures import Future

import pytest
from safetensors import SafetensorError
from small import MODEL, TRAIN, corpus
from transformers import TrainerCallback, TrainerState, TrainingArguments

import meristem as ms
from meristem.recipes import run
from meristem.recipes.executors import Executor
from meristem.recipes.node import NodeResult
from meristem.recipes.nodes import work
from meristem.recipes.nodes.perform import perform
from meristem.recipes.pages import watch
from meristem.recipes.specs.schema import parse_recipe
from meristem.recipes.specs.trainer_keys import RANGES, REFUSED, RESERVED, checked_keys
from meristem.recipes.tasks import open_task
from meristem.recipes.training.guards import LossGuard, diverged
from meristem.recipes.training.left import load_state
from meristem.recipes.training.trainer import NodeTrainer


def recipe(tmp_path, **train):
    return parse_recipe({"data": corpus(tmp_path), "nodes": {"small": {"train": {**TRAIN, **train}}}})


def modules(first, second):
    """Two nodes that incubate these modules."""
    own = {"from": "m", "tokens": "8k", "learning_rate": 1e-3}
    return {
        f"{name}{module}": {"train": {**own, "incubate": {"num_hidden_layers": 4, "modules": 2, "module": module}}}
        for name, module in zip("ab", (first, second), strict=True)
    }


@pytest.mark.parametrize("key, value, use", [
    ("eval_strategy", "no", "evaluations"), ("eval_on_start", False, "evaluations"), ("max_steps", 3, "tokens"),
    ("per_device_train_batch_size", 2, "batch_size"), ("learning_rate", 1.0, "learning_rate"), ("seed", 3, "seeds"),
    ("save_steps", 1, "checkpoint_every"), ("load_best_model_at_end", True, "of its last step"), ("lr_scheduler_type", "linear", "schedule"),
    ("label_names", ["x"], "labels"), ("push_to_hub", True, "uploads nothing"),
])  # fmt: skip
def test_reserved_keys_name_the_one_to_use(tmp_path, key, value, use):
    with pytest.raises(ms.MeristemError, match=f"{key} is set by the recipe; .*{use}"):
        recipe(tmp_path, trainer={key: value})


@pytest.mark.parametrize("key, value, words", [
    ("label_smoothing_factor", 0.5, "cannot be set in a recipe: it changes the loss that evaluations measure"),
    ("deepspeed", "nosuch.json", "cannot be set in a recipe: use `fsdp`"),
    ("gradient_accumulation_steps", 0, "is at least 1, found 0"), ("gradient_accumulation_steps", -2, "is at least 1, found -2"),
    ("adam_beta1", 2, "is at least 0 and below 1, found 2.0"), ("adam_beta2", 1, "is at least 0 and below 1, found 1.0"),
    ("adam_epsilon", -1, "is at least 0, found -1.0"), ("max_grad_norm", -1, "is at least 0, found -1.0"),
])  # fmt: skip
def test_values_of_the_trainer_that_cannot_work_are_refused_when_the_recipe_is_read(tmp_path, key, value, words):
    with pytest.raises(ms.MeristemError, match=re.escape(f"nodes.small.train.trainer: {key} {words}")):
        recipe(tmp_path, trainer={key: value})


def test_a_package_of_kernels_that_is_missing(tmp_path):
    if importlib.util.find_spec("liger_kernel"):
        pytest.skip("it is there")
    with pytest.raises(ms.MeristemError, match="use_liger_kernel needs the package liger-kernel"):
        run(recipe(tmp_path, trainer={"use_liger_kernel": True}), tmp_path / "out")


def test_an_evaluation_without_a_loss_ends_the_node(tmp_path):
    guard = LossGuard("small (seed 0)", tmp_path)
    with pytest.raises(ms.MeristemError, match=r"small \(seed 0\): its evaluation at step 0 measured no loss"):
        guard.on_evaluate(None, TrainerState(global_step=0), None, metrics={"eval_runtime": 0.1})


def test_what_is_reserved_exists():
    """But for keys of earlier versions, which people remember."""
    assert set(REFUSED) | set(RANGES) <= set(TrainingArguments.__dataclass_fields__)
    assert set(RESERVED) - set(TrainingArguments.__dataclass_fields__) <= {"warmup_ratio", "group_by_length"}


def test_an_unknown_key_is_refused_when_the_recipe_is_read(tmp_path):
    with pytest.raises(ms.MeristemError, match=r"unknown key 'zzz'; known: .*\bbf16\b") as listed:
        checked_keys({"zzz": 1})
    assert not {"max_steps", "seed", "deepspeed"} & set(str(listed.value).split(": ")[-1].split(", "))
    with pytest.raises(ms.MeristemError, match="did you mean 'gradient_accumulation_steps'"):
        recipe(tmp_path, trainer={"gradient_acumulation_steps": 2})


@pytest.mark.parametrize("evaluations, what", [(60, "evaluation"), (2, "training")])
def test_a_diverged_node_fails_and_says_where(tmp_path, evaluations, what):
    """Not a result: the next command meets the same step again, from the last good checkpoint."""
    wild = recipe(
        tmp_path,
        tokens=128 * 60,
        learning_rate=1e18,
        evaluations=evaluations,
        warmup=0.5,
        trainer={"max_grad_norm": 0, "optim": "sgd"},
    )
    for _ in range(2):
        with pytest.raises(
            ms.MeristemError,
            match=rf"small \(seed 0\) diverged: its {what} loss is not finite at step [23]; .*checkpoint",
        ) as error:
            run(wild, tmp_path / "out")
    (directory,) = (tmp_path / "out").glob("small-*")
    assert diverged(directory)
    assert not (directory / "node.json").exists()
    step = json.loads((directory / "diverged.json").read_text())["step"]
    assert f"at step {step};" in str(error.value)
    for checkpoint in directory.glob("trainer/checkpoint-*"):
        assert int(checkpoint.name.split("-")[1]) < step


def test_nothing_is_deleted_before_the_result_is_written(tmp_path, monkeypatch):
    class Full(Exception):
        pass

    def full(*_):
        raise Full

    small = recipe(tmp_path)
    monkeypatch.setattr(NodeResult, "save", full)
    with pytest.raises(Full):
        run(small, tmp_path / "out")
    (directory,) = (tmp_path / "out").glob("small-*")
    assert (directory / "trainer" / "checkpoint-10" / "trainer_state.json").exists()
    monkeypatch.undo()
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    done = run(small, tmp_path / "out", callbacks=[Count()])[0]["small"]
    assert steps == []
    assert [point["step"] for point in done.curve] == [0, 5, 10]
    assert not (directory / "trainer").exists()


class Refusing(Executor):
    """Runs nodes here, and refuses those that want a GPU."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, job):
        if job.node.resources.gpus:
            raise ms.MeristemError(f"{job.label} needs a GPU; the whole cluster has 0")
        future = Future()
        perform(job.directory)
        future.set_result(None)
        return future


def test_a_node_that_an_executor_refuses_fails_alone(tmp_path):
    nodes = {"greedy": {"train": TRAIN, "resources": {"gpus": 1}}, "modest": {"train": {**TRAIN, "seed": 1}}}
    with pytest.raises(ms.MeristemError, match=r"1 of 2 nodes did not finish\ngreedy-s0-.*needs a GPU"):
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out", executor=Refusing())
    assert list((tmp_path / "out").glob("modest-*/node.json"))


def test_a_node_that_fails_here_stops_only_those_that_depend_on_it(tmp_path, monkeypatch):
    """By bad input, and by an error of a library."""
    plain = work.average_node

    def refused(job, *rest):
        if job.name == "odd":
            raise ValueError("no such value\nmore")
        return plain(job, *rest)

    monkeypatch.setattr(work, "average_node", refused)
    nodes = {
        "small": {"train": TRAIN},
        "second": {"train": {**TRAIN, "seed": 1}},
        "grown": {"grow": {"from": "small", "method": "hypercloning", "hidden_size": 24}},
        "after": {"train": {**TRAIN, "model": None, "from": "grown"}},
        "odd": {"average": {"from": ["small", "second"]}},
        "other": {"average": {"from": ["second", "small"]}},
    }
    with pytest.raises(ms.MeristemError) as error:
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")
    first, *rest = str(error.value).splitlines()
    assert first == "3 of 6 nodes did not finish"
    words = [
        r"grown-s0-\w+: .*hypercloning",
        r"after-s0-\w+: not run: a parent failed",
        r"odd-s0-\w+: odd \(seed 0\): no such value",
    ]
    for line, pattern in zip(rest, words, strict=True):
        assert re.match(pattern, line), line
    assert list((tmp_path / "out").glob("other-*/node.json"))


def test_a_growth_that_does_not_keep_the_function_is_told_apart(tmp_path, monkeypatch):
    """The command line exits with 1 then, and with 2 for bad input."""

    def broken(*_):
        raise ms.PreservationError("this growth should keep the function and does not")

    monkeypatch.setattr(work, "grow_node", broken)
    grow = {"grow": {"from": "small", "method": "hypercloning", "width": 2}}
    nodes = {"small": {"train": TRAIN}, "grown": grow, "after": {"train": {**TRAIN, "model": None, "from": "grown"}}}
    with pytest.raises(ms.PreservationError, match="2 of 3 nodes did not finish"):
        run(parse_recipe({"data": corpus(tmp_path), "nodes": nodes}), tmp_path / "out")


def test_a_pattern_that_is_none_is_refused_when_the_recipe_is_read(tmp_path):
    with pytest.raises(ms.MeristemError, match=r"learning_rates.*'mlp\(' is not a regular expression"):
        recipe(tmp_path, learning_rates={"mlp(": 2.0})


@pytest.mark.parametrize("nodes, words", [
    ({"a": {"train": {"model": MODEL, "tokens": "8q", "learning_rate": 1e-3}}}, "'8q' is no number of tokens or examples; write 300000"),
    ({"a": {"train": {"model": MODEL, "tokens": 10, "learning_rate": 1e-3}}}, "10 tokens are less than one step (16 sequences of 32 tokens)"),
    ({"a": ["train"]}, "nodes.a: expected `key: value` entries (checkpoint, train, "),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3, "subnetwork": {"kind": "raptr"}}}}, "raptr needs stages"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3, "trainer": {"gradient_accumulation_steps": 3}}}},
     "batch_size 16 is not a multiple of gradient_accumulation_steps 3"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3, "trainer": {"optim": "adafactor"}}},
      "b": {"grow": {"from": "a", "method": "hypercloning", "width": 2, "optimizer": "carry"}},
      "c": {"train": {"from": "b", "tokens": "8k", "learning_rate": 1e-3}}},
     "carries the state of adafactor ('a') into adamw_torch"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}, "resources": {"processes": 3}}},
     "batch_size 16 cannot be cut into 3 equal parts"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}},
      "b": {"train": {"from": "a", "tokens": "8k", "learning_rate": 1e-3, "train_only": "fresh"}}},
     "node 'b': train_only and fresh need a grown model"),
    ({"m": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, **modules(0, 1),
      "x": {"assemble": {"from": ["a0", "b1"]}}, "y": {"train": {"from": "x", "tokens": "8k", "learning_rate": 1e-3}},
      "z": {"train": {"from": "y", "tokens": "8k", "learning_rate": 1e-3, "train_only": "fresh"}}},
     "node 'z': train_only and fresh need a grown model, and 'x' assembles modules"),
    ({"m": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, **modules(0, 0), "x": {"assemble": {"from": ["a0", "b0"]}}},
     "node 'x' assembles ['a0', 'b0'], and two of them incubate module 0"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, "b": {"grow": {"from": "a", "method": "hypercloning", "width": 1.5}}},
     "hypercloning: width must be a whole number of at least 1, got 1.5"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, "b": {"grow": {"from": "a", "method": "hypercloning", "width": "two"}}},
     "hypercloning: width must be a whole number of at least 1, got 'two'"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, "b": {"grow": {"from": "a", "method": "hypercloning", "width": -2}}},
     "hypercloning: width must be a whole number of at least 1, got -2"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}, "b": {"grow": {"from": "a", "method": "lemon", "hidden_size": 24.5}}},
     "lemon: hidden_size must be a positive whole number, got 24.5"),
    ({"a": {"train": {"model": MODEL, "tokens": "8k", "tune": {"learning_rate": [1e-3, 2e-3], "on": {"examples": 4}}}}},
     "node 'a': tune: on: 4 examples are less than one step (16 examples)"),
    ({"a": {"train": None}}, "nodes.a: train is empty; give its options"),
    ({"a": {"train": {"model": {"hidden_size": 8}, "tokens": "8k", "learning_rate": 1e-3}}}, "model needs a `model_type`"),
])  # fmt: skip
def test_what_can_be_known_is_said_when_the_recipe_is_read(nodes, words):
    with pytest.raises(ms.MeristemError, match=re.escape(words)):
        parse_recipe({"data": {"sequence_length": 32}, "nodes": nodes})


def test_seeds_that_name_one_twice_are_no_replicates():
    nodes = {"a": {"train": {"model": MODEL, "tokens": "8k", "learning_rate": 1e-3}}}
    with pytest.raises(ms.MeristemError, match=re.escape("seeds [0, 1, 0] name one twice")):
        parse_recipe({"seeds": [0, 1, 0], "nodes": nodes})


@pytest.mark.parametrize("model, words", [
    ({"model_type": "vit"}, "node 'b': vit has no network for this task"),
    ({**MODEL, "hidden_size": 15}, "node 'b': llama cannot be built from these entries: .* not a multiple of"),
    ({**MODEL, "num_hidden_layers": 0}, "node 'b': llama cannot be built from these entries: a network needs at least one layer"),
])  # fmt: skip
def test_no_node_runs_before_a_network_that_cannot_be_built(tmp_path, model, words):
    own = {"tokens": 512, "learning_rate": 1e-3}
    nodes = {"a": {"train": {"model": MODEL, **own}}, "b": {"train": {"model": model, **own}}}
    with pytest.raises(ms.MeristemError, match=words):
        run(parse_recipe({"data": corpus(tmp_path, lines=300), "nodes": nodes}), tmp_path / "out")
    assert not list(tmp_path.glob("out/a-*"))


GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize("task, model", [
    ("causal-lm", {**GPT2, "n_positions": 16}), ("causal-lm", {**GPT2, "max_position_embeddings": 16}),
    ("masked-lm", {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}),
])  # fmt: skip
def test_given_positions_are_not_changed_and_must_suffice(tmp_path, task, model):
    nodes = {"a": {"train": {**TRAIN, "model": model}}}
    with pytest.raises(
        ms.MeristemError, match=r"a \(seed 0\): a sequence has 32 tokens, and the model has only 16 posi"
    ):
        run(parse_recipe({"data": {**corpus(tmp_path, lines=300), "task": task}, "nodes": nodes}), tmp_path / "out")


def test_more_positions_than_the_data_need_are_kept(tmp_path):
    small = recipe(tmp_path, model={**GPT2, "n_positions": 64})
    assert open_task(small.data).new_model(small.nodes["small"].train.model, 0).config.n_positions == 64


def test_no_node_runs_before_a_checkpoint_that_is_not_there(tmp_path):
    nodes = {"a": {"train": TRAIN}, "b": {"checkpoint": {"source": str(tmp_path / "none")}}}
    with pytest.raises(ms.MeristemError, match="none"):
        run(parse_recipe({"data": corpus(tmp_path, lines=300), "nodes": nodes}), tmp_path / "out")
    assert not list(tmp_path.glob("out/a-*"))


def test_an_optimizer_whose_package_is_missing(tmp_path):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("it is there")
    with pytest.raises(ms.MeristemError, match=r"optim .*: You need to install `bitsandbytes`"):
        run(recipe(tmp_path, trainer={"optim": "lion_32bit"}), tmp_path / "out")


def test_another_optimizer_begins_with_a_state_of_its_own(tmp_path):
    """A later stage with AdamW behind Adafactor; a decay of a run whose SGD keeps no state."""
    own = {"tokens": 512, "learning_rate": 1e-3, "batch_size": 4}
    run_ = {"model": MODEL, **own, "schedule": "wsd", "decay": 0}
    nodes = {
        "a": {"train": {"model": MODEL, **own, "trainer": {"optim": "adafactor"}}},
        "b": {"train": {"from": "a", **own}},
        "s": {"train": {**run_, "trainer": {"optim": "sgd"}}},
        "d": {"decay": {"from": "s", "at": 512, "tokens": 256}},
    }
    results = run(parse_recipe({"data": corpus(tmp_path, lines=300), "nodes": nodes}), tmp_path / "out")[0]
    state = {name: load_state(next(tmp_path.glob(f"out/{name}-*")) / "optimizer.safetensors") for name in nodes}
    assert all(set(entries) == {"step", "exp_avg", "exp_avg_sq"} for entries in state["b"].values())
    assert {float(entries["step"]) for entries in state["b"].values()} == {4.0}
    assert state["s"] == state["d"] == {}
    assert results["d"].examples == 2 * 4


@pytest.mark.parametrize("error", [
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/2: file write failed"),
    OSError(errno.ENOSPC, "No space left on device", "trainer_state.json"),
], ids=["weights", "optimizer", "state"])  # fmt: skip
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(tmp_path, monkeypatch, error):
    """As safetensors, torch.save and Python say it."""
    plain, saved = NodeTrainer._save, []

    def full(self, *args):
        saved.append(self.state.global_step)
        if len(saved) == 2:
            raise error
        return plain(self, *args)

    monkeypatch.setattr(NodeTrainer, "_save", full)
    with pytest.raises(
        ms.MeristemError, match=r"small \(seed 0\): .* cannot be written \(.*; free some space there and run the same"
    ):
        run(recipe(tmp_path), tmp_path / "out")
    assert run(recipe(tmp_path), tmp_path / "out")[0]["small"].examples == 40
    assert saved == [5, 10, 10]  # it went on from the first


def test_another_error_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def wrong(self, *args):
        raise RuntimeError("something else")

    monkeypatch.setattr(NodeTrainer, "_save", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        run(recipe(tmp_path), tmp_path / "out")


def test_a_page_that_cannot_be_written_ends_no_run_and_hides_no_error(tmp_path, monkeypatch, capsys):
    """A finished run in a folder that is only to be read; a damaged result, whose own sentence is the error."""
    small = recipe(tmp_path)
    done = run(small, tmp_path / "out")[0]["small"]

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system", "report.html")

    monkeypatch.setattr(watch, "write_report", refused)
    assert run(small, tmp_path / "out")[0]["small"] == done
    assert "report.html is not written: [Errno 30] Read-only file system" in capsys.readouterr().err
    monkeypatch.undo()
    (result,) = tmp_path.glob("out/small-*/node.json")
    result.write_text(result.read_text()[:20])
    with pytest.raises(ms.MeristemError, match=r"node\.json is damaged .*; remove .*small-s0.* to run the node again"):
        run(small, tmp_path / "out")


@pytest.mark.parametrize("subnetwork, message", [
    ({"stages": [2, 5]}, "nodes.small.train: a stage of 5 blocks is impossible: 2 always run and the network has 2"),
    ({"kind": "layer_drop", "rate": 1.0}, "rate"),
    ({"kind": "layer_drop", "rate": "much"}, "rate|str"),
])  # fmt: skip
def test_a_schedule_that_does_not_fit_is_refused_when_the_recipe_is_read(tmp_path, subnetwork, message):
    """It was refused when its node ran, after all ancestors."""
    with pytest.raises(ms.MeristemError, match=message):
        recipe(tmp_path, subnetwork=subnetwork)
