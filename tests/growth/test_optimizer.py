"""Gradients and Adam's moments ride the dual maps: the true gradients, the next step, and a whole trajectory."""

from __future__ import annotations

import copy

import pico
import pytest
import torch
from torch.testing import assert_close

import meristem as ms
from meristem.anatomy.inputs import example_inputs
from meristem.growth.optimizers.optimizer import load_named_state, named_state
from meristem.growth.tensors.apply import grow_tensor

METHOD = ms.HyperCloning(width=2, noise=0.0)  # copies that are alike follow the small network exactly


def gradients(model: torch.nn.Module, inputs: dict, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "gemma2", "phi3", "bart", "bert", "mixtral", "falcon_new"])
def test_mapped_gradients_are_the_true_gradients(family):
    small = pico.build(family)
    small = small if family == "mixtral" else small.double()  # its grouped matrix product has no float64 kernel
    big = ms.grow(small, METHOD)
    inputs = example_inputs(small)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    ours, true = gradients(small, inputs, labels), gradients(big, inputs, labels)
    plan = METHOD.plan(ms.Anatomy.of(small), small)
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in small.state_dict().items()}
    known = {**zeros, **ours}
    mapped = {name: grow_tensor(tensor, known.__getitem__, "gradient") for name, tensor in plan.tensors.items()}
    assert set(true) <= set(mapped)
    for name, gradient in true.items():
        scale = max(float(gradient.abs().max()), 1e-6)
        assert float((mapped[name] - gradient).abs().max()) / scale <= 1e-5, name


def adam(model: torch.nn.Module, **changes) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-10, **changes})


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def batches(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 67, (4, 16), generator=generator) for _ in range(count)]


def trained(family: str, steps: int, **changes) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = pico.build(family, **changes).double()
    optimizer = adam(model)
    for tokens in batches(steps, 0):
        step(model, optimizer, tokens)
    return model, optimizer


@pytest.mark.parametrize("family, tied", [("llama", False), ("llama", True), ("gpt2", True)])
def test_the_grown_network_follows_the_small_ones_trajectory(family, tied):
    """60 steps small, then 40 steps side by side: the published run of the design page, on weights, not only losses."""
    small, optimizer = trained(family, 60, tie_word_embeddings=tied)
    big = ms.grow(small, METHOD)
    grown = ms.grow_optimizer(optimizer, small, big, METHOD, scale_learning_rate=True)
    for tokens in batches(40, 1):
        assert abs(step(small, optimizer, tokens) - step(big, grown, tokens)) < 1e-6
    expected = ms.grow(small, METHOD, verify=False)
    for name, parameter in expected.named_parameters():
        assert_close(big.get_parameter(name), parameter, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("carry", ["reset", "unscaled"])
def test_the_trajectory_test_can_fail(carry):
    """The same run with the state reset, or copied without its coefficients, leaves the trajectory."""
    small, optimizer = trained("llama", 60)
    big = ms.grow(small, METHOD)
    grown = ms.grow_optimizer(optimizer, small, big, METHOD, scale_learning_rate=True)
    for entries in grown.state.values():
        if carry == "reset":
            entries.update({key: torch.zeros_like(value) for key, value in entries.items()})
        else:
            entries["exp_avg_sq"] *= 16
    gaps = [abs(step(small, optimizer, t) - step(big, grown, t)) for t in batches(40, 1)]
    assert max(gaps) > 1e-3


def test_one_adam_step_after_growth_is_what_the_theory_says():
    """The step of every weight is a times the small one's, a being the factor its weights were scaled by."""
    small, optimizer = trained("gpt2", 5)
    big = ms.grow(small, METHOD)
    grown = ms.grow_optimizer(optimizer, small, big, METHOD)
    before_small = {n: p.detach().clone() for n, p in small.named_parameters()}
    before_big = {n: p.detach().clone() for n, p in big.named_parameters()}
    for group in (*optimizer.param_groups, *grown.param_groups):
        group["weight_decay"] = 0.0
    (tokens,) = batches(1, 2)
    step(small, optimizer, tokens)
    step(big, grown, tokens)
    name = "transformer.h.0.mlp.c_fc.weight"  # both axes grown: weights / 2, so without scaling the step is not halved
    moved_small = small.get_parameter(name) - before_small[name]
    moved_big = big.get_parameter(name) - before_big[name]
    assert_close(moved_big, moved_small.repeat(2, 2), rtol=1e-3, atol=1e-9)


def test_parameter_groups_and_hyperparameters_survive():
    small = pico.build("llama")
    decayed = [p for p in small.parameters() if p.dim() > 1]
    others = [p for p in small.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.8, 0.9))
    step(small, optimizer, batches(1, 0)[0])
    big = ms.grow(small, METHOD)
    grown = ms.grow_optimizer(optimizer, small, big, METHOD)
    assert [g["weight_decay"] for g in grown.param_groups] == [0.2, 0.0]
    assert all(g["betas"] == (0.8, 0.9) and g["lr"] == 3e-4 for g in grown.param_groups)
    assert sum(len(g["params"]) for g in grown.param_groups) == len(list(big.parameters()))
    assert all(int(entries["step"]) == 1 for entries in named_state(grown, big).values())


def test_silent_layers_keep_a_learning_rate():
    small = pico.build("llama")
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    step(small, optimizer, batches(1, 0)[0])
    method = ms.IdentityBlocks(depth=2)
    big = ms.grow(small, method)
    grown = ms.grow_optimizer(optimizer, small, big, method, scale_learning_rate=True)
    step(big, grown, batches(1, 1)[0])
    assert big.model.layers[1].self_attn.o_proj.weight.abs().max() > 0


def test_sgd_momentum_grows_too():
    small = pico.build("gpt2").double()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-2, momentum=0.9)
    step(small, optimizer, batches(1, 0)[0])
    big = ms.grow(small, METHOD)
    state = named_state(ms.grow_optimizer(optimizer, small, big, METHOD), big)
    name = "transformer.h.0.attn.c_proj.weight"
    assert_close(
        state[name]["momentum_buffer"], named_state(optimizer, small)[name]["momentum_buffer"].repeat(2, 2) / 2
    )


def test_a_strange_model_is_refused():
    small = pico.build("gpt2")
    optimizer = torch.optim.AdamW(small.parameters())
    step(small, optimizer, batches(1, 0)[0])
    with pytest.raises(ms.MeristemError, match="not the model's"):
        named_state(optimizer, copy.deepcopy(small))


def test_named_state_round_trip():
    small, optimizer = trained("llama", 2)
    fresh = adam(small)
    load_named_state(fresh, small, named_state(optimizer, small))
    a, b = named_state(optimizer, small), named_state(fresh, small)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])
