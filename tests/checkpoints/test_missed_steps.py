"""Fresh entries of a distributed checkpoint take a first step of one learning rate, as they do in memory.

A tensor that is new as a whole begins its own count; one that is partly new needs the steps that its new entries have missed.
"""

from __future__ import annotations

import pico
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import meristem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import meristem as ms

RATE = 1e-3


def train_step(model, optimizer, seed):
    tokens = torch.randint(3, 67, (4, 16), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A directory grown by silent blocks in mid-run, and the growth of the same network in memory."""
    folder = tmp_path_factory.mktemp("dcp")
    small = pico.build("qwen2", tie_word_embeddings=True).train()
    optimizer = adam(small)
    for seed in range(6):
        train_step(small, optimizer, seed)
    weights, moments = get_state_dict(small, optimizer)
    dcp.save({"model": weights, "optim": moments}, checkpoint_id=folder / "small", no_dist=True)
    small.config.architectures = ["Qwen2ForCausalLM"]
    small.config.save_pretrained(folder / "small")
    options = ["--method", "zero_padding,identity_blocks", "--intermediate-size", 60, "--depth", 2]
    done = meristem("grow", folder / "small", folder / "big", *options)
    assert done.returncode == 0, done.stderr
    growth = ms.Growth.of(small, [ms.ZeroPadding(intermediate_size=60), ms.IdentityBlocks(depth=2)])
    return folder / "big", growth, growth.grow_optimizer(optimizer)


def loaded(folder, growth):
    model = pico.build("qwen2", tie_word_embeddings=True, num_hidden_layers=4, intermediate_size=60).train()
    optimizer = adam(model)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optim": moments}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return model, optimizer


PARTLY, WHOLLY = "model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight"


def longest_steps(model, optimizer, growth):
    """Of the fresh entries of a tensor that is partly new, and of one that is wholly new."""
    masks = {name: growth.provenance.mask(name, "fresh") for name in (PARTLY, WHOLLY)}
    assert bool(masks[WHOLLY].all())
    assert not bool(masks[PARTLY].all())
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    train_step(model, optimizer, 7)
    return [float((model.get_parameter(n) - before[n]).detach().abs()[mask].max()) for n, mask in masks.items()]


def test_the_first_step_is_one_learning_rate_long(grown):
    folder, growth, _ = grown
    model, optimizer = loaded(folder, growth)
    ms.load_missed_steps(optimizer, model, folder)

    assert longest_steps(model, optimizer, growth) == pytest.approx([RATE, RATE], rel=1e-3)


def test_without_them_its_length_is_that_of_the_old_count(grown):
    """Half a rate after 6 steps, 3.2 rates after many."""
    folder, growth, _ = grown
    model, optimizer = loaded(folder, growth)

    by_count = (0.1 / (1 - 0.9**7)) / (0.001 / (1 - 0.999**7)) ** 0.5
    assert longest_steps(model, optimizer, growth) == pytest.approx([by_count * RATE, RATE], rel=1e-3)


def test_they_are_those_of_the_growth_in_memory(grown):
    folder, growth, carried = grown
    model, optimizer = loaded(folder, growth)
    ms.load_missed_steps(optimizer, model, folder)

    for name, parameter in growth.model.named_parameters():
        expected = carried.state[parameter].get("missed_steps")
        found = optimizer.state[model.get_parameter(name)].get("missed_steps")
        assert (found is None) == (expected is None), name
        assert expected is None or torch.equal(found, expected), name


def test_another_network_and_another_directory_are_refused(grown, tmp_path):
    folder, _, _ = grown
    model = pico.build("qwen2", tie_word_embeddings=True, num_hidden_layers=2)
    with pytest.raises(
        ms.MeristemError, match=r"records missed steps for model\.layers\..*, and the model has no such tensor"
    ):
        ms.load_missed_steps(adam(model), model, folder)
    with pytest.raises(ms.MeristemError, match=r"is not a directory of torch\.distributed\.checkpoint"):
        ms.load_missed_steps(adam(model), model, tmp_path)
