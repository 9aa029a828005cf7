"""Only what is new trains: old entries are bit-equal after any number of steps of any optimizer, and what moves is clipped as if alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pico
import pytest
import torch
from processes import losses_of
from test_optimizer import batches, step
from torch import optim

import meristem as ms
from meristem.growth.optimizers.optimizer import named_state

WORKER = Path(__file__).parent / "train_new_worker.py"
GROWTHS = {
    "wider": ms.ZeroPadding(intermediate_size=60),
    "copies": ms.HyperCloning(width=2),
    "deeper": ms.IdentityBlocks(depth=2),
    "both": [ms.Net2Net(intermediate_size=88), ms.IdentityBlocks(depth=2)],
}


class MuonAndAdamW(optim.Optimizer):
    """Muon for matrices, AdamW for the rest, as one optimizer."""

    def __init__(self, model):
        matrices = [p for p in model.parameters() if p.dim() == 2 and p.requires_grad]
        others = [p for p in model.parameters() if p.dim() != 2 and p.requires_grad]
        self.parts = [optim.Muon(matrices, lr=1e-2, weight_decay=0.1)]
        self.parts += [optim.AdamW(others, lr=1e-2)] if others else []

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none)


OPTIMIZERS = {
    "AdamW": lambda m: optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1),
    "SGD": lambda m: optim.SGD(m.parameters(), lr=1e-1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Muon": MuonAndAdamW,
}


def grown(name="wider", family="llama"):
    return ms.Growth.of(pico.build(family), GROWTHS[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", GROWTHS)
@pytest.mark.parametrize("train", ["fresh", "copied"])
def test_old_entries_are_bit_equal_and_new_ones_move(name, optimizer, train):
    growth = grown(name)
    if train == "fresh" and name == "copies":
        with pytest.raises(ms.MeristemError, match=r"nothing to train .*fresh 0"):
            ms.freeze_old(growth.model, growth, train)
        return
    before = copy.deepcopy(growth.model.state_dict())
    frozen = ms.freeze_old(growth.model, growth, train)
    counts = growth.provenance.counts()
    assert frozen.moving == counts["fresh"] + (counts["copied"] if train == "copied" else 0)
    made = OPTIMIZERS[optimizer](growth.model)
    for tokens in batches(6, 3):
        step(growth.model, made, tokens)
    moved = 0
    for parameter_name, parameter in growth.model.named_parameters():
        masks = growth.provenance.masks(parameter_name)
        held = masks["old"] if train == "copied" else ~masks["fresh"]
        assert torch.equal(parameter[held], before[parameter_name][held]), parameter_name
        moved += int((parameter != before[parameter_name])[~held].sum())
    assert moved > 0.2 * frozen.moving  # the insides of silent blocks have no gradient at first


def test_carried_moments_and_decay_do_not_move_old_entries():
    """The small run's momentum is carried; old entries keep both weights and moments, and take them up again when they are freed."""
    small = pico.build("llama").train()
    optimizer = optim.AdamW(small.parameters(), lr=1e-2, weight_decay=0.1)
    for tokens in batches(3, 0):
        step(small, optimizer, tokens)
    growth = ms.Growth.of(small, ms.ZeroPadding(intermediate_size=60))
    carried = growth.grow_optimizer(optimizer)
    before, moments = copy.deepcopy(growth.model.state_dict()), copy.deepcopy(named_state(carried, growth.model))
    frozen = ms.freeze_old(growth.model, growth, "fresh")
    for tokens in batches(4, 1):
        step(growth.model, carried, tokens)
    after = named_state(carried, growth.model)
    up = "model.layers.0.mlp.up_proj.weight"
    old = growth.provenance.mask(up, "old")
    assert torch.equal(growth.model.get_parameter(up)[old], before[up][old])
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[up][key][old], moments[up][key][old])
        assert moments[up][key][old].abs().sum() > 0
    frozen.remove()
    step(growth.model, carried, batches(1, 2)[0])
    assert not torch.equal(growth.model.get_parameter(up)[old], before[up][old])


def test_clipping_measures_what_moves():
    growth = grown("wider")
    ms.freeze_old(growth.model, growth, "copied")
    growth.model(input_ids=batches(1, 0)[0], labels=batches(1, 0)[0]).loss.backward()
    new = [p.grad[~growth.provenance.mask(n, "old")] for n, p in growth.model.named_parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(growth.model.parameters(), 1e9)
    assert norm > 0
    torch.testing.assert_close(norm, torch.cat(new).norm())
    for name, parameter in growth.model.named_parameters():
        old = growth.provenance.mask(name, "old")
        assert parameter.grad is None or not parameter.grad[old].any(), name


def test_grown_trains_whole_tensors_that_have_grown():
    """G-Train of *Grow, Don't Overwrite*: the feed-forward matrices, and nothing else."""
    growth = ms.Growth.of(pico.build("llama"), ms.Net2Net(intermediate_size=88))
    ms.freeze_old(growth.model, growth, "grown")
    trained = {name for name, parameter in growth.model.named_parameters() if parameter.requires_grad}
    parts = ("gate", "up", "down")
    assert trained == {f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(2) for part in parts}


def test_new_entries_step_by_their_own_rate_and_warm_up():
    """AdamW's first step is one learning rate long, whatever the gradient, so lengths can be read off."""
    growth = grown("wider")
    groups = ms.parameter_groups(
        growth.model, growth, learning_rate=1e-4, fresh_learning_rate=1e-3, warm_fresh=4, fresh="fresh"
    )
    assert [(group["provenance"], group["lr"]) for group in groups] == [("old", 1e-4), ("mixed", 1e-4)]
    optimizer = optim.AdamW(groups, weight_decay=0.0, eps=1e-12)
    up, fresh = growth.model.model.layers[0].mlp.down_proj.weight, growth.provenance.mask("model.layers.0.mlp.down_proj.weight", "fresh")  # fmt: skip
    tokens = batches(1, 0)[0]
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        before = up.detach().clone()
        optimizer.state.clear()  # so that each step is a first one
        step(growth.model, optimizer, tokens)
        moved = (up.detach() - before).abs()
        assert float(moved[fresh].max()) == pytest.approx(share * 1e-3, rel=1e-2)
        assert float(moved[~fresh].max()) == pytest.approx(1e-4, rel=1e-2)


def test_reset_begins_new_moments_at_zero_and_leaves_old_ones():
    """SPARKLING's asymmetric reset: without it copies go on with the momentum of their originals."""
    small = pico.build("llama").train()
    optimizer = optim.AdamW(small.parameters(), lr=1e-3, weight_decay=0.0)
    for tokens in batches(40, 0):
        step(small, optimizer, tokens)
    up = "model.layers.0.mlp.up_proj.weight"
    lengths = {}
    for reset in (False, True):
        network = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
        carried = network.grow_optimizer(optimizer)
        ms.parameter_groups(network.model, network, learning_rate=1e-3, reset_fresh=reset)
        before = network.model.get_parameter(up).detach().clone()
        step(network.model, carried, batches(1, 9)[0])
        lengths[reset] = (network.model.get_parameter(up).detach() - before).abs()
    new = ~network.provenance.mask(up, "old")
    assert torch.equal(lengths[True][~new], lengths[False][~new])
    assert float(lengths[True][new].max()) == pytest.approx(1e-3, rel=1e-3)  # a first step
    assert float(lengths[True][new].median()) == pytest.approx(1e-3, rel=1e-2)
    assert float(lengths[False][new].median()) < 0.9e-3


def test_refusals():
    growth = grown("wider")
    with pytest.raises(ms.MeristemError, match="another network"):
        ms.freeze_old(pico.build("llama"), growth)
    with pytest.raises(ms.MeristemError, match=r"train is one of fresh, copied, grown, all, got 'new'"):
        ms.freeze_old(growth.model, growth, "new")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ms.MeristemError, match=r"ms.provenance\(directory\)"):
        ms.freeze_old(growth.model, "out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ms.MeristemError, match="fresh_learning_rate must be a positive number"):
        ms.parameter_groups(growth.model, growth, learning_rate=1e-3, fresh_learning_rate=0)


def test_a_trainer_resumes_it(tmp_path):
    """Frozen and warmed up by the callback; a run that is cut in two ends where the whole one does."""
    import transformers

    growth = grown("both")
    before = copy.deepcopy(growth.model.state_dict())
    rows = [{"input_ids": row, "labels": row} for row in torch.cat(batches(12, 0))]

    def run(steps: int, resume: bool, folder: str):
        model = copy.deepcopy(growth.model)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=8, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
            save_steps=4, report_to="none", disable_tqdm=True, weight_decay=0.1, lr_scheduler_type="constant",
        )  # fmt: skip

        class Stop(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= steps

        callbacks = [ms.TrainNewCallback(growth, ratio=0.5, warmup=6), Stop()]
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = run(8, False, "whole")
    run(4, False, "parts")
    resumed = run(8, True, "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
        old = growth.provenance.mask(name, "old")
        assert torch.equal(tensor[old], before[name][old]), name
    assert not torch.equal(whole["model.layers.1.mlp.down_proj.weight"], before["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_hold_as_one_does(mode, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    """AdamW, SGD and Muon: old entries bit-equal and clipping by the norm of what moves in the worker, norms and losses here."""
    alone = [float(loss) for loss in losses_of(WORKER, mode, 1, tmp_path / "one")]
    together = [float(loss) for loss in losses_of(WORKER, mode, 2, tmp_path / "two")]
    assert len(alone) == len(together) == 3 * 8
    assert together[:16] == pytest.approx(alone[:16], abs=2e-5)
    assert together[16:] == pytest.approx(alone[16:], rel=1e-3)  # Muon makes its steps in bfloat16
    for start in (0, 8, 16):  # of each optimizer
        assert alone[start + 7] < alone[start + 1]  # losses stand behind the norms that gradients were clipped by


def test_layers_as_they_are_ranked():
    """Of an encoder and a decoder a number means the block in both, a ranked layer the one that it names."""
    small = pico.build("t5")
    tuned = copy.deepcopy(small)
    with torch.no_grad():
        tuned.decoder.block[1].layer[2].DenseReluDense.wi.weight.add_(torch.randn(44, 32))
    first = ms.rank_layers(small, tuned)[0]
    assert (first.blocks, first.layer) == ("decoder.block", 1)
    for layers, trains in (([first], {"decoder.block.1"}), ([1], {"encoder.block.1", "decoder.block.1"})):
        growth = ms.Growth.of(small, ms.GrowDontOverwrite())
        ms.freeze_old(growth.model, growth, layers=layers)
        moving = {n for n, p in growth.model.named_parameters() if p.requires_grad}
        assert {name.split(".layer.")[0] for name in moving} == trains
        assert all("DenseReluDense" in name for name in moving)


BAD_RATES = [
    {"learning_rate": "x"},
    {"learning_rate": float("inf")},
    {"learning_rate": 1e-3, "fresh_learning_rate": 0},
    {"learning_rate": 1e-3, "warm_fresh": float("nan")},
    {"learning_rate": 1e-3, "warm_fresh": 0.5},
    {"learning_rate": 1e-3, "fresh": "all"},
]


@pytest.mark.parametrize("bad", BAD_RATES, ids=str)
def test_rates_that_are_none_are_one_sentence(bad):
    growth = grown()
    with pytest.raises(ms.MeristemError, match=f"^{list(bad)[-1]} (must be|is) "):
        ms.parameter_groups(growth.model, growth, **bad)


@pytest.mark.parametrize("layers", [1, "1", [True], ["1"], [9], [-1]], ids=str)
def test_layers_that_are_none_are_one_sentence(layers):
    growth = grown()
    with pytest.raises(ms.MeristemError, match=r"^layers (is a list|must be numbers from 0 to 1)"):
        ms.freeze_old(growth.model, growth, layers=layers)


def test_what_it_has_done_is_said_in_one_line():
    growth = grown()
    said = repr(ms.freeze_old(growth.model, growth))
    assert said.startswith("Frozen(moving=")
    assert len(said) < 60


class Around(optim.Optimizer):
    """One optimizer around another, which decays weights of its own accord first."""

    def __init__(self, inner, decay):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner, self.decay = inner, decay

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(1 - self.decay)
        self.inner.step()


def test_an_optimizer_around_another_moves_no_old_entry():
    growth = grown("copies")
    before = copy.deepcopy(growth.model.state_dict())
    ms.freeze_old(growth.model, growth)
    optimizer = Around(optim.AdamW(growth.model.parameters(), lr=1e-2), 0.01)
    for tokens in batches(3, 3):
        step(growth.model, optimizer, tokens)
    for name, parameter in growth.model.named_parameters():
        old = growth.provenance.mask(name, "old")
        assert torch.equal(parameter[old], before[name][old]), name


def test_an_optimizer_around_another_scales_and_counts_once():
    weights = []
    for around in (False, True):
        growth = grown("copies")
        groups = ms.parameter_groups(growth.model, growth, learning_rate=1e-3, fresh_learning_rate=1e-2, warm_fresh=8)
        optimizer = optim.SGD(groups, momentum=0.9)
        for tokens in batches(5, 3):
            step(growth.model, Around(optimizer, 0.0) if around else optimizer, tokens)
        weights.append({name: tensor.clone() for name, tensor in growth.model.state_dict().items()})
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_step_that_raised_leaves_nothing_behind():
    growth = grown("copies")
    ms.freeze_old(growth.model, growth)

    class Broken(optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("on purpose")

    before = copy.deepcopy(growth.model.state_dict())
    tokens = batches(1, 3)[0]
    with pytest.raises(RuntimeError, match="on purpose"):
        step(growth.model, Broken(growth.model.parameters(), lr=1e-2), tokens)
    optimizer = optim.SGD(growth.model.parameters(), lr=1e-1, weight_decay=0.1)
    step(growth.model, optimizer, tokens)
    for name, parameter in growth.model.named_parameters():
        masks = growth.provenance.masks(name)
        assert torch.equal(parameter[masks["old"]], before[name][masks["old"]]), name
        assert (parameter != before[name])[~masks["old"]].any(), name
