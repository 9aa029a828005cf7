"""A Trainer run that is grown in the middle goes on: same step, same batch, no loss spike; without its state, the spike."""

from __future__ import annotations

import pico
import pytest
import torch
from command_line import meristem
from transformers import Trainer, TrainingArguments

import meristem as ms
from meristem.checkpoints import open_model
from meristem.checkpoints.trainer_state import read_trainer_state

TOKENS = torch.randint(3, 67, (64, 12), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


def train(model, directory, steps, resume=None):
    """Losses by step."""
    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=20, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
        save_steps=5, report_to="none", use_cpu=True, disable_tqdm=True, seed=0, weight_decay=0.1, max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=DATA)
    trainer.train(resume_from_checkpoint=resume)
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_grown_in_the_middle(family, tmp_path):
    changes = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {}
    undisturbed = train(pico.build(family, **changes), tmp_path / "small", 20)
    source, out = tmp_path / "small" / "checkpoint-10", tmp_path / "grown"
    done = meristem("grow", source, out, "--width", 2)
    assert done.returncode == 0, done.stderr
    assert "optimizer state grown" in done.stdout
    losses = train(open_model(str(out)), tmp_path / "big", 20, resume=str(out))
    assert losses[11] == pytest.approx(undisturbed[11], abs=1e-5)  # the same batch, the same function
    assert set(losses) >= set(range(11, 21))
    carried = abs(losses[12] - undisturbed[12])

    for file in ("optimizer.pt", "scheduler.pt"):
        (out / file).unlink()
    reset = train(open_model(str(out)), tmp_path / "reset", 20, resume=str(out))
    assert reset[11] == pytest.approx(undisturbed[11], abs=1e-5)
    assert carried < abs(reset[12] - undisturbed[12])


def test_groups_of_another_shape_are_refused(tmp_path):
    small = pico.build("llama")
    torch.save({"state": {}, "param_groups": [{"params": [0, 1]}]}, tmp_path / "optimizer.pt")
    with pytest.raises(
        ms.MeristemError, match=r"parameter groups of \[2\] tensors; a Trainer of this model makes groups"
    ):
        read_trainer_state(tmp_path, small)


@pytest.mark.parametrize("entries, message", [
    ({"state1": 1, "qmap1": 1}, "keeps its state in 8 bits"),
    ({"z": 1, "exp_avg_sq": 1}, "schedule-free optimizer keeps a second set of weights"),
    ({"prev": 1, "step": 0}, "optimizer state 'prev' cannot be grown"),
])  # fmt: skip
def test_an_optimizer_that_cannot_grow_is_refused_before_anything_is_written(entries, message, tmp_path):
    """As `meristem grow RUN/checkpoint-N OUT` meets it: one sentence, exit code 2, and no OUT."""
    small = pico.build("llama")
    small.save_pretrained(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    names = [name for name, _ in small.named_parameters()]
    decayed = [n for n, name in enumerate(names) if "norm" not in name]
    groups = [{"params": list(range(len(decayed)))}, {"params": list(range(len(decayed), len(names)))}]
    state = {number: {key: torch.zeros(2) for key in entries} for number in range(len(names))}
    torch.save({"state": state, "param_groups": groups}, tmp_path / "checkpoint-1" / "optimizer.pt")
    done = meristem("grow", str(tmp_path / "checkpoint-1"), str(tmp_path / "out"), "--width", "2")
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault, words", [
    ({"exp_avg": torch.zeros(3)}, r"exp_avg of model\.embed_tokens\.weight has shape \(3,\) in place of \(67, 32\)"),
    ({"exp_avg_sq": torch.full((67, 32), torch.nan)}, r"exp_avg_sq of model\.embed_tokens\.weight is not finite"),
])  # fmt: skip
def test_a_state_that_does_not_fit_its_weights_is_refused(fault, words, tmp_path):
    small = pico.build("llama")
    names = [name for name, _ in small.named_parameters()]
    decayed = sum("norm" not in name for name in names)
    entries = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(67, 32), "exp_avg_sq": torch.zeros(67, 32)}
    groups = [list(range(decayed)), list(range(decayed, len(names)))]
    whole = {"state": {0: entries}, "param_groups": [{"params": group} for group in groups]}
    torch.save(whole, tmp_path / "optimizer.pt")
    assert read_trainer_state(tmp_path, small).state["model.embed_tokens.weight"]["exp_avg"].shape == (67, 32)
    torch.save({**whole, "state": {0: {**entries, **fault}}}, tmp_path / "optimizer.pt")
    with pytest.raises(ms.MeristemError, match=words):
        read_trainer_state(tmp_path, small)


@pytest.fixture
def checkpoint(tmp_path):
    """A Trainer's checkpoint of a small network after one step, and the numbers of its parameters."""
    small = pico.build("llama")
    small.save_pretrained(tmp_path / "checkpoint-1")
    names = [name for name, _ in small.named_parameters()]
    groups = [[n for n in names if "norm" not in n], [n for n in names if "norm" in n]]
    optimizer = torch.optim.AdamW([{"params": [small.get_parameter(n) for n in group]} for group in groups])
    ids = torch.arange(3, 20)[None]
    small(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint-1" / "optimizer.pt")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    return tmp_path / "checkpoint-1", [name for group in groups for name in group]


@pytest.mark.filterwarnings("error")
def test_a_parameter_without_a_state_is_named(checkpoint):
    directory, names = checkpoint
    small = pico.build("llama")
    assert len(read_trainer_state(directory, small).state) == len(names)
    saved = torch.load(directory / "optimizer.pt", weights_only=True)
    for number in (3, 5):
        del saved["state"][number]
    torch.save(saved, directory / "optimizer.pt")
    words = rf"holds no state of 2 of {len(names)} parameters \({names[3]}, {names[5]}\): the optimizer starts without a state"
    with pytest.warns(UserWarning, match=words):
        read_trainer_state(directory, small)


@pytest.mark.parametrize("content", ["[]", "5", "{", "", '{"steps of mine": 3}', "[" * 100_000])
def test_a_trainer_state_that_is_none_is_refused(checkpoint, tmp_path, content):
    directory, _ = checkpoint
    (directory / "trainer_state.json").write_text(content)
    done = meristem("grow", str(directory), str(tmp_path / "out"), "--width", "2")
    assert done.returncode == 2
    assert "trainer_state.json is not what a Trainer writes" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
