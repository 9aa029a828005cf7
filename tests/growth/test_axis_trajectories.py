"""Optimizer state follows on every new axis: a network trained on, and its grown copy with the grown state, have the same losses."""

from __future__ import annotations

import pico
import pytest
import torch
from test_post_norm import steps
from torch import nn

import meristem as ms
from meristem.growth import Growth
from meristem.growth.tensors.apply import grow_tensor

EARLIER, LATER = [0, 1, 2] * 4, [0, 1, 2] * 4  # seeds of batches
REGROUPED = {
    "4 on 1 to 8 on 4": ({"num_key_value_heads": 1}, ms.LEMON(num_attention_heads=8, num_key_value_heads=4, noise=0.0)),
    "4 on 2 to 8 on 8": ({}, ms.LEMON(num_attention_heads=8, num_key_value_heads=8, noise=0.0)),
}
# what -> (family, changes of its config, growth)
ROWS = {
    "stream scaled": ("llama", {}, ms.ZeroPadding(hidden_size=48, noise=0.0)),
    "stream scaled, norms on the branch": ("olmo2", {}, ms.ZeroPadding(hidden_size=48, noise=0.0)),
    "stream scaled, gains that count from 1": ("gemma2", {}, ms.ZeroPadding(hidden_size=48, noise=0.0)),
    "head_dim": ("llama", {}, ms.LEMON(head_dim=16, noise=0.0)),
    "head_dim under per-head norms": ("qwen3", {}, ms.LEMON(head_dim=16, noise=0.0)),
    "head_dim without rotary positions": ("t5", {}, ms.LEMON(head_dim=12, noise=0.0)),
    "all heads copied": ("llama", {}, ms.LEMON(num_attention_heads=8, num_key_value_heads=4, noise=0.0)),
    "all at once": (
        "llama",
        {},
        ms.LEMON(hidden_size=64, intermediate_size=88, head_dim=16, num_attention_heads=8, num_key_value_heads=4, noise=0.0),
    ),
}  # fmt: skip


def hold_fresh(growth: Growth) -> None:
    """Gradients of entries without a source are zero, so that only what was there trains on."""
    for name, parameter in growth.model.named_parameters():
        fresh = growth.provenance.mask(name, "fresh")
        parameter.register_hook(lambda gradient, fresh=fresh: gradient.masked_fill(fresh, 0.0))


def losses(
    family: str, changes: dict, method, forget: bool = False, decay: float = 0.1
) -> tuple[list[float], list[float]]:
    """Of 12 steps of the small network and of its grown copy, after 12 that it was trained alone."""
    small = pico.build(family, **changes).double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3, weight_decay=decay, eps=1e-10)
    steps(small, optimizer, EARLIER)
    growth = Growth.of(small, method)
    grown = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    if forget:
        for entries in grown.state.values():
            entries["exp_avg_sq"] = torch.ones_like(entries["exp_avg_sq"])
    hold_fresh(growth)
    return steps(small, optimizer, LATER), steps(growth.model, grown, LATER)


@pytest.mark.parametrize("row", ROWS)
def test_the_grown_network_follows(row):
    decay = 0.0 if "from 1" in row else 0.1  # decay draws such a gain to 1, and not to the 1 / s that it has become
    ours, theirs = losses(*ROWS[row], decay=decay)
    assert ours[0] - ours[-1] > 0.02  # it does learn
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-6


def test_the_test_can_fail():
    ours, theirs = losses(*ROWS["head_dim"], forget=True)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) > 1e-3


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    tokens = torch.arange(3, 35).view(2, 16)
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("row", ROWS)
def test_mapped_gradients_are_the_true_gradients(row):
    """On every entry that has a source, on the axes that `--like` brings."""
    family, changes, method = ROWS[row]
    small = pico.build(family, **changes).double()
    growth = Growth.of(small, method)
    ours, theirs = gradients(small), gradients(growth.model)
    for name, plan in growth.plans[0].tensors.items():
        if name in theirs:
            mapped, known = grow_tensor(plan, ours.__getitem__, "gradient"), ~growth.provenance.mask(name, "fresh")
            torch.testing.assert_close(mapped[known], theirs[name][known], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("row", REGROUPED)
def test_regrouped_heads_share_the_gradient_of_their_source(row):
    """The sum over a key-value head's copies is exact, and so is the rest; the copies' own shares are not in the state."""
    changes, method = REGROUPED[row]
    small = pico.build("llama", **changes).double()
    growth = Growth.of(small, method)
    ours, theirs = gradients(small), gradients(growth.model)
    uneven = 0
    for name, plan in growth.plans[0].tensors.items():
        mapped, true = grow_tensor(plan, ours.__getitem__, "gradient"), theirs[name]
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            uneven += not torch.allclose(mapped, true, rtol=1e-2)
            mapped, true = (plan.unit_map(0).transposed_apply(gradient, 0) for gradient in (mapped, true))
        torch.testing.assert_close(mapped, true, rtol=1e-4, atol=2e-6, msg=name)
    assert uneven == 4  # in two layers


@pytest.mark.parametrize("row", REGROUPED)
def test_regrouped_heads_follow_at_first(row):
    """Equal before the first step, near after it, and apart by little after twelve: the state is worth having."""
    ours, theirs = losses("llama", *REGROUPED[row])
    _, forgotten = losses("llama", *REGROUPED[row], forget=True)
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    assert apart[0] < 1e-6
    assert max(apart) < 0.25 * max(abs(a - b) for a, b in zip(ours, forgotten, strict=True))
