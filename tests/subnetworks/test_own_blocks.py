"""Sub-networks of networks outside transformers: blocks that can be skipped, and those that cannot be."""

from __future__ import annotations

import copy
import pickle

import pico
import pytest
import torch
from pico_trainer import trainer
from torch import nn

import meristem as ms
from meristem.subnetworks.blocks import lists_of_blocks
from meristem.subnetworks.gate import along, ungate
from meristem.subnetworks.path import Path

DEPTH = 6


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return self.linear(self.norm(x))


class Residual(Block):
    def forward(self, x):
        return x + super().forward(x)


class Conditioned(Block):
    def forward(self, condition, x):
        return x + super().forward(x) * condition.mean()


class Packed(Residual):
    def forward(self, packed):
        return (super().forward(packed[0]),)


class Network(nn.Module):
    """Blocks in a row, called in one of several ways."""

    CALLS = {
        "inside": (Residual, lambda block, x: block(x)),
        "by name": (Residual, lambda block, x: block(x=x)),
        "outside": (Block, lambda block, x: x + block(x)),
        "second": (Conditioned, lambda block, x: block(torch.ones_like(x), x)),
        "packed": (Packed, lambda block, x: block((x,))[0]),
    }

    def __init__(self, width: int, depth: int, form: str) -> None:
        super().__init__()
        kind, self.call = self.CALLS[form]
        self.inner, self.outer = nn.Linear(8, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(kind(width) for _ in range(depth))

    def forward(self, x):
        x = self.inner(x)
        for block in self.blocks:
            x = self.call(block, x)
        return self.outer(x)


def build(form: str):
    torch.manual_seed(0)
    network = Network(16, DEPTH, form)
    return network, ms.Anatomy.infer(lambda width, depth: Network(width, depth, form), {"width": 16}, {"depth": DEPTH})


def path(*active: int) -> Path:
    return Path(tuple(layer in active for layer in range(DEPTH)), (2.0,) * DEPTH)


@pytest.mark.parametrize("form", ["inside", "by name"])
def test_what_is_skipped_is_left_out_and_the_rest_is_scaled(form):
    network, anatomy = build(form)
    x = torch.randn(3, 8)
    with along(network, {"blocks": path(1, 4)}, anatomy=anatomy):
        found = network(x)
    hidden = network.inner(x)
    for layer in (1, 4):
        hidden = hidden + 2 * Block.forward(network.blocks[layer], hidden)
    assert torch.allclose(found, network.outer(hidden), atol=1e-6)


@pytest.mark.parametrize("active", [(1, 4), (0, 1, 2)])
@pytest.mark.parametrize("form, message", [
    ("outside", r"residual of blocks is added outside the blocks \(x = x \+ block\(x\)\)"),
    ("second", "first argument of a block of blocks is not what the block before returned"),
    ("packed", "first argument of a block of blocks is a tuple"),
])  # fmt: skip
def test_blocks_that_cannot_be_skipped_are_refused(form, message, active):
    """They ran, with another hidden state than without the block: doubled, or the condition."""
    network, anatomy = build(form)
    with along(network, {"blocks": path(*active)}, anatomy=anatomy), pytest.raises(ms.MeristemError, match=message):
        network(torch.randn(3, 8))


def deep(depth: int = DEPTH):
    return pico.build("llama", num_hidden_layers=depth).train()


def ran(model, schedule) -> list[int]:
    """The blocks that have gradients after a step."""
    model.zero_grad()
    tokens = torch.arange(24).view(2, 12) % 60 + 1
    with ms.subnetwork(model, schedule, 0):
        model(input_ids=tokens, labels=tokens).loss.backward()
    return [i for i, block in enumerate(model.model.layers) if next(block.parameters()).grad is not None]


def test_blocks_that_were_replaced_are_found_again():
    """The old ones were kept: nothing was skipped, while a depth of 2 was reported."""
    model, schedule = deep(), ms.SubnetworkSchedule(DEPTH, 10, stages=[2, DEPTH])
    assert ran(model, schedule) == [0, 5]
    for layer in range(1, 5):
        model.model.layers[layer] = copy.deepcopy(model.model.layers[layer])
    assert ran(model, schedule) == [0, 5]
    assert lists_of_blocks(model)[0].modules == list(model.model.layers)


def test_a_network_that_drops_layers_itself_is_refused():
    model = pico.build("llama")
    model.config.layerdrop = 0.5
    with (
        pytest.raises(ms.MeristemError, match=r"drops layers itself \(layerdrop\)"),
        ms.subnetwork(model, ms.LayerDrop(2, 4), 0),
    ):
        pass


def test_contexts_do_not_nest_and_one_that_was_left_behind_can_be_undone():
    model, schedule = deep(), ms.SubnetworkSchedule(DEPTH, 10, stages=[2, DEPTH])
    behind = ms.subnetwork(model, schedule, 0)
    behind.__enter__()
    with pytest.raises(ms.MeristemError, match="in a sub-network already"), ms.subnetwork(model, schedule, 0):
        pass
    ungate(model)
    assert {type(block) for block in model.model.layers} == {type(deep().model.layers[0])}
    with ms.subnetwork(model, schedule, 0):
        behind.__exit__(None, None, None)  # as when the old Trainer is collected
        assert all("_meristem_gate" in vars(block) for block in model.model.layers)


def test_a_network_can_be_saved_whole_in_its_context(tmp_path):
    model, schedule = deep(), ms.SubnetworkSchedule(DEPTH, 10, stages=[2, DEPTH])
    with ms.subnetwork(model, schedule, 0):
        copied = pickle.loads(pickle.dumps(model))
    assert ran(copied, schedule) == [0, 5]
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)


class Interrupted(ms.RaptrCallback):
    """Stops the run in the middle of a step, as Ctrl-C does."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise KeyboardInterrupt


def test_a_run_after_an_interrupted_one_is_that_of_a_network_as_it_is(tmp_path):
    """The first run's gate stayed, and every update was scaled twice."""
    options = {"stages": [2, 4], "scaling": "inv_p"}
    first = trainer(tmp_path / "first", [Interrupted(**options)], pico.build("llama", num_hidden_layers=4))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    fresh = pico.build("llama", num_hidden_layers=4)
    fresh.load_state_dict(first.model.state_dict())
    runs = [
        trainer(tmp_path / name, [ms.RaptrCallback(**options)], m) for name, m in (("a", first.model), ("b", fresh))
    ]
    for run in runs:
        run.train()
    for name, tensor in runs[0].model.state_dict().items():
        assert torch.equal(tensor, runs[1].model.state_dict()[name]), name


def test_a_callback_makes_a_schedule_for_each_run(tmp_path):
    """That of the first run stayed, so that a run that became longer ended its stages too early."""
    callback = ms.RaptrCallback(stages=[2, 4])
    for steps in (4, 8):
        trainer(tmp_path / str(steps), [callback], max_steps=steps).train()
        (schedule,) = callback.schedule.values()
        assert schedule.total_steps == steps
