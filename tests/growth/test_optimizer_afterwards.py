"""What happens to a grown optimizer later: saved and loaded, copied, scheduled, resumed by a Trainer."""

from __future__ import annotations

import copy
import io
import math

import pico
import pytest
import torch
from test_optimizer import batches, step
from torch import nn, optim

import meristem as ms

RATE = 1e-3
SILENT, PADDED = ms.IdentityBlocks(depth=2), ms.ZeroPadding(intermediate_size=60)
WHOLLY, PARTLY = "model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"


def trained(make, steps=12) -> tuple[nn.Module, optim.Optimizer]:
    small = pico.build("llama").double()
    optimizer = make(small.parameters())
    if hasattr(optimizer, "train"):
        optimizer.train()
    for tokens in batches(steps, 0):
        step(small, optimizer, tokens)
    return small, optimizer


def aged(optimizer: optim.Optimizer) -> None:
    """As after 5,000 steps, when no bias correction is left: moments are whole averages."""
    for entries in optimizer.state.values():
        for key, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
            if key in entries:
                entries[key] /= 1 - beta ** float(entries["step"])
        entries["step"] = torch.full_like(entries["step"], 5000.0) if torch.is_tensor(entries["step"]) else 5000
        if "mu_product" in entries:
            entries["mu_product"] = torch.zeros_like(entries["mu_product"])


def first_step(growth: ms.Growth, optimizer: optim.Optimizer, name: str) -> float:
    """How far the fresh entries of a tensor move in one step, in learning rates."""
    fresh, before = growth.provenance.mask(name, "fresh"), growth.model.get_parameter(name).detach().clone()
    step(growth.model, optimizer, batches(1, 2)[0])
    return float((growth.model.get_parameter(name) - before).detach().abs()[fresh].max()) / RATE


@pytest.mark.parametrize("make", [optim.AdamW, optim.Adam, optim.NAdam, optim.Adamax])
def test_silent_tensors_begin_as_from_scratch_after_many_steps(make):
    """5,000 steps of the old count would make it 3.2 rates long, NAdam's nearly 10."""
    small, optimizer = trained(lambda p: make(p, lr=RATE))
    aged(optimizer)
    growth = ms.Growth.of(small, SILENT)
    anew = make([nn.Parameter(torch.zeros(3))], lr=RATE)
    anew.param_groups[0]["params"][0].grad = torch.ones(3)
    anew.step()
    from_scratch = float(anew.param_groups[0]["params"][0].detach().abs().max()) / RATE
    assert first_step(growth, growth.grow_optimizer(optimizer), WHOLLY) == pytest.approx(from_scratch, rel=1e-2)


@pytest.mark.parametrize("make", [optim.NAdam, optim.RAdam])
def test_fresh_entries_of_old_tensors_do_not_leap(make):
    """Nothing corrects these counts, so the second moments of fresh entries start where those of the others are."""
    small, optimizer = trained(lambda p: make(p, lr=RATE))
    aged(optimizer)
    growth = ms.Growth.of(small, PADDED)
    carried = growth.grow_optimizer(optimizer)
    fresh = growth.provenance.mask(PARTLY, "fresh")
    moments = carried.state[growth.model.get_parameter(PARTLY)]["exp_avg_sq"]
    assert torch.allclose(moments[fresh], moments[~fresh].mean(), rtol=1e-6)
    assert first_step(growth, carried, PARTLY) < 2


def test_a_saved_state_is_as_good_as_the_live_one():
    """Loaded into a new optimizer, and into a copy of both; the correction asked for once, twice, or before the state is there."""
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=RATE, weight_decay=0.0))
    aged(optimizer)
    growth = ms.Growth.of(small, [PADDED, SILENT])
    carried = growth.grow_optimizer(optimizer)
    saved, weights = copy.deepcopy(carried.state_dict()), copy.deepcopy(growth.model.state_dict())

    def loaded(when: str) -> float:
        growth.model.load_state_dict(weights)
        again = optim.AdamW(growth.model.parameters(), lr=RATE, weight_decay=0.0)
        for moment in ("before", "load", "after", "after"):
            if moment == "load":
                again.load_state_dict(copy.deepcopy(saved))
            elif moment in when:
                ms.count_blocks_apart(again)
        return first_step(growth, again, PARTLY)

    assert first_step(growth, carried, PARTLY) == pytest.approx(1, rel=1e-3)
    assert loaded("after") == pytest.approx(1, rel=1e-3)
    assert loaded("before") == pytest.approx(1, rel=1e-3)
    assert loaded("never") == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-2)  # why it has to be asked for

    growth.model.load_state_dict(weights)
    carried.load_state_dict(copy.deepcopy(saved))
    model, copied = copy.deepcopy((growth.model, carried))
    step(model, copied, batches(1, 2)[0])  # a copy trains on


def test_a_one_cycle_schedule_goes_on_with_scaled_rates():
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=1e-2, eps=1e-10), 0)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 40)
    for tokens in batches(5, 0):
        step(small, optimizer, tokens)
        schedule.step()
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
    carried = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    ours = optim.lr_scheduler.OneCycleLR(carried, [g["max_lr"] for g in carried.param_groups], 40, last_epoch=4)
    gaps = []
    for tokens in batches(10, 1):
        gaps.append(abs(step(small, optimizer, tokens) - step(growth.model, carried, tokens)))
        schedule.step(), ours.step()
    assert max(gaps) < 2e-6


def test_a_rate_that_is_a_tensor_is_not_shared():
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=torch.tensor(RATE)))
    carried = ms.Growth.of(small, SILENT).grow_optimizer(optimizer)
    carried.param_groups[0]["lr"].fill_(5.0)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(RATE)


@pytest.mark.parametrize("stepped", [True, False])
def test_parameters_of_other_networks_are_named(stepped):
    small, other = pico.build("llama"), nn.Linear(2, 2)
    optimizer = optim.AdamW([*small.parameters(), *other.parameters()])
    if stepped:
        other(torch.ones(2)).sum().backward()
        step(small, optimizer, batches(1, 0)[0])
    with pytest.raises(ms.MeristemError, match="holds parameters that are not the model's"):
        ms.Growth.of(small, SILENT).grow_optimizer(optimizer)


def test_a_trainers_callback_counts_missed_steps():
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=RATE, weight_decay=0.0))
    aged(optimizer)
    growth = ms.Growth.of(small, PADDED)
    buffer = io.BytesIO()
    torch.save(growth.grow_optimizer(optimizer).state_dict(), buffer)
    buffer.seek(0)
    again = optim.AdamW(growth.model.parameters(), lr=RATE, weight_decay=0.0)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    ms.MissedStepsCallback().on_train_begin(None, None, None, optimizer=again)
    assert first_step(growth, again, PARTLY) == pytest.approx(1, rel=1e-3)


def test_verify_says_what_it_compares():
    small = pico.build("llama")
    with pytest.raises(ms.MeristemError, match=r"compares two networks, got a Growth; pass its \.model"):
        ms.verify(small, ms.Growth.of(small, SILENT))
