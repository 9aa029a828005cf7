"""Every optimizer of the table: a network trained small, grown with its optimizer, and trained on follows the small one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pico
import pytest
import torch
from test_optimizer import batches, step
from torch import nn, optim

import meristem as ms
from meristem.growth.optimizers.optimizer import amplitudes, grow_state, named_state
from meristem.growth.optimizers.optimizer_families import FAMILIES, family_by_entries, family_of


class Lion(optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2, with a smooth sign so that rounding cannot flip it."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                average = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                (first, second), gradient = group["betas"], parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = first * average + (1 - first) * gradient
                parameter.sub_(group["lr"] * direction / (direction.abs() + 1e-30))
                average.mul_(second).add_((1 - second) * gradient)


def transformers_adafactor(**options) -> Callable:
    from transformers.optimization import Adafactor

    return lambda p: Adafactor(p, relative_step=False, **options)


def schedule_free(name: str, **options) -> Callable:
    schedulefree = pytest.importorskip("schedulefree")
    return lambda p: getattr(schedulefree, name)(p, foreach=False, **options)


EPS = {"eps": 1e-10}
OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda p: optim.SGD(p, lr=3e-2, momentum=0.9, weight_decay=0.01, nesterov=True),
    "SGD without momentum": lambda p: optim.SGD(p, lr=3e-2, weight_decay=0.01),
    "Adam with L2 decay": lambda p: optim.Adam(p, lr=1e-3, weight_decay=0.01, **EPS),
    "Adam with a large eps": lambda p: optim.Adam(p, lr=1e-3, eps=1e-3),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.1, **EPS),
    "AdamW amsgrad": lambda p: optim.AdamW(p, lr=1e-3, amsgrad=True, **EPS),
    "Adamax": lambda p: optim.Adamax(p, lr=1e-3, weight_decay=0.01, **EPS),
    "NAdam": lambda p: optim.NAdam(p, lr=1e-3, weight_decay=0.01, **EPS),
    "NAdam decoupled": lambda p: optim.NAdam(p, lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True, **EPS),
    "RAdam": lambda p: optim.RAdam(p, lr=1e-3, weight_decay=0.01, **EPS),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True, weight_decay=0.01, **EPS),
    "Adagrad": lambda p: optim.Adagrad(p, lr=1e-2, weight_decay=0.01),
    "Lion": lambda p: Lion(p, lr=1e-4, weight_decay=0.1),
    "Adafactor": lambda p: optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
    "transformers' Adafactor": lambda p: transformers_adafactor(lr=1e-2, beta1=0.9)(p),
    "transformers' Adafactor, fixed rate": lambda p: transformers_adafactor(lr=1e-3, scale_parameter=False)(p),
    "AdamWScheduleFree": lambda p: schedule_free("AdamWScheduleFree", lr=1e-3, weight_decay=0.1, **EPS)(p),
    "SGDScheduleFree": lambda p: schedule_free("SGDScheduleFree", lr=3e-2, weight_decay=0.1)(p),
}


def grown_beside(small: nn.Module, optimizer: optim.Optimizer, **options) -> list[float]:
    """The gaps between the losses of both, over 20 steps after the growth."""
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
    carried = growth.grow_optimizer(optimizer, **options)
    return [abs(step(small, optimizer, t) - step(growth.model, carried, t)) for t in batches(20, 1)]


def trained(make: Callable, family: str) -> tuple[nn.Module, optim.Optimizer]:
    small = pico.build(family, tie_word_embeddings=False).double()
    optimizer = make(small.parameters())
    if hasattr(optimizer, "train"):
        optimizer.train()
    for tokens in batches(12, 0):
        step(small, optimizer, tokens)
    return small, optimizer


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_grown_network_follows_the_small_ones_trajectory(name, family):
    small, optimizer = trained(OPTIMIZERS[name], family)
    assert max(grown_beside(small, optimizer, scale_learning_rate=True)) < 2e-6


@pytest.mark.parametrize("name", ["SGD", "Adam with L2 decay", "AdamW", "Lion", "RMSprop"])
def test_the_trajectory_test_can_fail(name):
    """Without the factors of its family the same run leaves the trajectory."""
    small, optimizer = trained(OPTIMIZERS[name], "llama")
    assert max(grown_beside(small, optimizer, scale_learning_rate=False)) > 1e-3


class Both:
    """Muon for matrices inside the blocks, AdamW for the rest, as Muon is used."""

    def __init__(self, *optimizers: optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_follows_up_to_the_rounding_of_its_iterations(adjust):
    """1e-4, because Newton-Schulz iterations run in bfloat16; its own adjustment to the shape is taken back."""
    small = pico.build("llama").double()
    inner = [p for n, p in small.named_parameters() if p.dim() == 2 and ".layers." in n]
    outer = [p for n, p in small.named_parameters() if p.dim() != 2 or ".layers." not in n]
    muon = optim.Muon(inner, lr=1e-2, adjust_lr_fn=adjust)
    adamw = optim.AdamW(outer, lr=1e-3, eps=1e-10)
    for tokens in batches(12, 0):
        step(small, Both(muon, adamw), tokens)
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
    carried = Both(*(growth.grow_optimizer(o, scale_learning_rate=True) for o in (muon, adamw)))
    gaps = [abs(step(small, Both(muon, adamw), t) - step(growth.model, carried, t)) for t in batches(20, 1)]
    assert max(gaps) < 1e-3


@pytest.mark.parametrize("method", [
    ms.IdentityBlocks(depth=2), ms.ZeroPadding(hidden_size=48, intermediate_size=60),
    [ms.ZeroPadding(intermediate_size=60), ms.HyperCloning(width=2)],
])  # fmt: skip
def test_the_first_step_of_what_is_fresh_is_one_learning_rate_long(method):
    """Zero moments beside the old step count would make it 3.2 times as long."""
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.0), "llama")
    growth = ms.Growth.of(small, method)
    carried = growth.grow_optimizer(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in growth.model.named_parameters()}
    step(growth.model, carried, batches(1, 2)[0])
    longest = 0.0
    for name, parameter in growth.model.named_parameters():
        fresh = growth.provenance.mask(name, "fresh")
        moved = (parameter.detach() - before[name]).abs()[fresh]
        longest = max(longest, float(moved.max()) if moved.numel() else 0.0)
    assert longest == pytest.approx(1e-3, rel=1e-3)


def test_inside_silent_blocks_nothing_carries_momentum():
    """Their gradient is zero until their outputs speak, so nothing may move them before."""
    small, optimizer = trained(lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.0), "llama")
    growth = ms.Growth.of(small, ms.IdentityBlocks(depth=2))
    carried = growth.grow_optimizer(optimizer)
    query = growth.model.model.layers[1].self_attn.q_proj.weight
    before = query.detach().clone()
    step(growth.model, carried, batches(1, 2)[0])
    assert torch.equal(query, before)
    step(growth.model, carried, batches(1, 3)[0])
    assert 0 < float((query - before).detach().abs().max()) <= 1.001e-3


def test_groups_names_and_defaults_survive():
    small = pico.build("llama")
    named = list(small.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.dim() > 1], "weight_decay": 0.2},
        {"params": [(n, p) for n, p in named if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = optim.AdamW(groups, lr=3e-4, betas=(0.8, 0.9), eps=1e-7)
    step(small, optimizer, batches(1, 0)[0])
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
    for scale in (False, True):
        carried = growth.grow_optimizer(optimizer, scale_learning_rate=scale)
        assert carried.defaults == optimizer.defaults
        for group in carried.param_groups:
            found = {
                growth.model.get_parameter(name) is p
                for name, p in zip(group["param_names"], group["params"], strict=True)
            }
            assert found == {True}
        assert sum(len(group["params"]) for group in carried.param_groups) == len(list(growth.model.parameters()))


def test_accelerates_wrapper_is_seen_through():
    from accelerate import Accelerator

    small, optimizer = trained(OPTIMIZERS["AdamW"], "gpt2")
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0))
    carried = growth.grow_optimizer(Accelerator(cpu=True).prepare(optimizer))
    assert type(carried) is optim.AdamW
    assert named_state(carried, growth.model).keys() == dict(growth.model.named_parameters()).keys()


class AdamW8bit(optim.Optimizer):
    """Stands for bitsandbytes' class of this name: refused by it, before any state is looked at."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 1e-3})

    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {
                "state1": torch.zeros(parameter.shape, dtype=torch.uint8),
                "qmap1": torch.zeros(256),
            }


class Homemade(optim.AdamW):
    """An optimizer derived from a known one counts as that."""


@pytest.mark.parametrize("make, message", [
    (AdamW8bit, "AdamW8bit keeps its state in 8 bits"),
    (lambda p: optim.Rprop(p), "optimizer state 'prev' of an unknown optimizer cannot be grown; .*AdamW.*start the optimizer with a new state"),
    (lambda p: optim.Adadelta(p), "optimizer state 'acc_delta' of an unknown optimizer cannot be grown"),
])  # fmt: skip
def test_what_cannot_grow_is_refused(make, message):
    small = pico.build("gpt2")
    optimizer = make(small.parameters())
    step(small, optimizer, batches(1, 0)[0])
    with pytest.raises(ms.MeristemError, match=message):
        ms.Growth.of(small, ms.HyperCloning(width=2)).grow_optimizer(optimizer)


def test_steps_that_are_not_known_are_not_scaled():
    class Mine(optim.Optimizer):
        def __init__(self, params) -> None:
            super().__init__(params, {"lr": 1e-3})

        def step(self, closure=None) -> None:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}

    small = pico.build("gpt2")
    optimizer = Mine(small.parameters())
    step(small, optimizer, batches(1, 0)[0])
    growth = ms.Growth.of(small, ms.HyperCloning(width=2))
    assert type(growth.grow_optimizer(optimizer)) is Mine
    with pytest.raises(ms.MeristemError, match="does not know how the steps of an unknown optimizer depend"):
        growth.grow_optimizer(optimizer, scale_learning_rate=True)


def test_families_by_class_and_by_state():
    parameters = [nn.Parameter(torch.zeros(2, 2))]
    assert family_of(Homemade(parameters)).name == "AdamW"
    assert family_by_entries({"momentum_buffer"}).entries["momentum_buffer"] == "gradient"
    assert family_by_entries({"step", "square_avg", "momentum_buffer"}).name == "RMSprop"
    assert family_by_entries({"step", "exp_avg", "exp_avg_sq"}).counts
    assert family_by_entries({"exp_avg_sq_row", "exp_avg_sq_col", "step", "RMS"}).name == "Adafactor"
    assert {family.name for family in FAMILIES.values()} == set(FAMILIES)


def test_state_that_was_saved_grows_like_the_live_one():
    """A state without its optimizer, as checkpoints have it, finds its row by its entries."""
    small, optimizer = trained(OPTIMIZERS["RMSprop"], "gpt2")
    plan = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0)).plans[0]
    state = named_state(optimizer, small)
    by_entries, by_class = grow_state(plan, state), grow_state(plan, state, FAMILIES["RMSprop"])
    name = "transformer.h.0.mlp.c_fc.weight"
    for key in ("square_avg", "momentum_buffer", "grad_avg"):
        assert torch.equal(by_entries[name][key], by_class[name][key])
    assert torch.equal(by_entries[name]["momentum_buffer"], state[name]["momentum_buffer"].repeat(2, 2))


def test_amplitudes_of_whole_copies():
    """docs/theory.md: a = 1/n and b = 1/n for hidden matrices, 1 and 1/n for embeddings, 1/n and 1 for the head."""
    small = pico.build("llama")
    found = amplitudes(ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0)).plans)
    assert found["model.layers.0.mlp.up_proj.weight"][:3] == pytest.approx((0.5, 0.5, 2.0))
    assert found["model.embed_tokens.weight"][:2] == (1.0, 0.5)
    assert found["lm_head.weight"][:2] == (0.5, 1.0)
    assert found["model.norm.weight"][:2] == (1.0, 0.5)


def test_a_copy_of_the_small_run_is_untouched():
    small, optimizer = trained(OPTIMIZERS["AdamW"], "llama")
    before = copy.deepcopy(optimizer.state_dict())
    ms.Growth.of(small, ms.IdentityBlocks(depth=2)).grow_optimizer(optimizer, scale_learning_rate=True)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for number, entries in before["state"].items():
        assert all(torch.equal(value, after["state"][number][key]) for key, value in entries.items())
