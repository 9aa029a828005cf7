"""Majority Kernels in transformers' own Trainer: draws by global step, exact resume, two processes with one traffic."""

from pathlib import Path

import pico
import pytest
import torch
from pico_trainer import trainer
from processes import losses_of

import meristem as ms

WORKER = Path(__file__).with_name("worker.py")


def test_a_resumed_run_is_bit_identical(tmp_path):
    model = ms.majority(pico.build("llama", num_hidden_layers=2), kernels=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = trainer(tmp_path / "whole", [ms.MajorityCallback()], model)
    whole.train()
    model = ms.majority(pico.build("llama", num_hidden_layers=2), kernels=2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    again = trainer(tmp_path / "again", [ms.MajorityCallback()], model)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_it_learns_and_deploys(tmp_path):
    run = trainer(tmp_path, [ms.MajorityCallback()], ms.majority(pico.build("llama")), max_steps=12)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before
    plain = ms.deploy(run.model)
    plain.save_pretrained(tmp_path / "plain")
    assert set(plain.state_dict()) == set(pico.build("llama").state_dict())


@pytest.mark.dist
@pytest.mark.parametrize("traffic", ["mixed", "kernels"])
def test_two_processes_are_one(traffic, tmp_path):
    def run(processes):
        folder = tmp_path / str(processes)
        folder.mkdir()
        return [float(x) for x in losses_of(WORKER, traffic, processes, folder)]

    assert run(2) == pytest.approx(run(1), abs=2e-5)
