"""RAPTR in transformers' own Trainer: paths by global step, full evaluation, exact resume."""

import pico
import pytest
import torch
from pico_trainer import trainer
from transformers import TrainerCallback

import meristem as ms
from meristem.subnetworks.blocks import lists_of_blocks


class Watch(TrainerCallback):
    """Which blocks got gradients in each step."""

    def __init__(self):
        self.active = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        (blocks,) = lists_of_blocks(model)
        grads = [any(p.grad is not None for p in block.parameters()) for block in blocks.modules]
        self.active[state.global_step] = tuple(grads)


def test_paths_follow_the_global_step(tmp_path):
    watch = Watch()
    run = trainer(tmp_path, [ms.RaptrCallback(stages=[2, 4]), watch], gradient_accumulation_steps=2)
    run.train()
    schedule = ms.SubnetworkSchedule(4, 6, seed=5, stages=[2, 4])
    assert watch.active == {step: schedule.path(step, "model.layers").active for step in range(6)}
    assert not any("_meristem_gate" in vars(block) for block in run.model.model.layers)


def test_a_whole_network_that_is_compiled_is_warned_about(tmp_path):
    run = trainer(tmp_path, [callback := ms.RaptrCallback(stages=[2, 4])])
    run.args.torch_compile, run.state.max_steps = True, 6
    with pytest.warns(UserWarning, match=r"compile the blocks one by one \(block.compile\(\)\)"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=None)


@pytest.mark.parametrize(
    "options", [{"stages": [2, 4]}, {"stages": [3, 4], "widths": [0.5, 0.5], "scaling": "sqrt_gap"}]
)
def test_a_resumed_run_is_bit_identical(tmp_path, options):
    whole = trainer(tmp_path / "whole", [ms.RaptrCallback(**options)])
    whole.train()
    again = trainer(tmp_path / "again", [ms.RaptrCallback(**options)])
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_resumed_run_with_dropout_is_bit_identical(tmp_path):
    """A block that is skipped before any has run is looked at once, which draws no random number of the step."""
    runs = []
    for place in ("whole", "again"):
        model = pico.build("llama", num_hidden_layers=4, attention_dropout=0.3)
        runs.append(trainer(tmp_path / place, [ms.RaptrCallback(ms.LayerDrop(4, 6, rate=0.6, seed=16))], model))
    active = [ms.LayerDrop(4, 6, rate=0.6, seed=16).path(step, "model.layers").active for step in (0, 3)]
    assert [first for first, *_ in active] == [True, False]
    assert any(active[1])
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in runs[0].model.state_dict().items():
        assert torch.equal(tensor, runs[1].model.state_dict()[name]), name


def test_any_schedule_and_encoder_decoders(tmp_path):
    drop = ms.LayerDrop(4, 6, rate=0.5)
    watch = Watch()
    trainer(tmp_path, [ms.RaptrCallback(drop), watch]).train()
    assert watch.active == {step: drop.path(step, "model.layers").active for step in range(6)}
    t5 = pico.build("t5", num_layers=3, num_decoder_layers=4)
    trainer(tmp_path / "t5", [ms.RaptrCallback(stages=[2.5])], t5, eval_strategy="no").train()


def test_what_cannot_work_is_said_before_training(tmp_path):
    with pytest.raises(ms.MeristemError, match="stages"):
        ms.RaptrCallback()
    with pytest.raises(ms.MeristemError, match="impossible"):
        trainer(tmp_path, [ms.RaptrCallback(stages=[5])]).train()
    with pytest.raises(ms.MeristemError, match="has 4 blocks"):
        trainer(tmp_path, [ms.RaptrCallback(ms.LayerDrop(12, 6))]).train()
    bart = pico.build("bart", encoder_layerdrop=0.1)
    with pytest.raises(ms.MeristemError, match="encoder_layerdrop"):
        trainer(tmp_path, [ms.RaptrCallback(stages=[2])], bart).train()
