"""LiGO learns: below its own starting point, below plain stacking, and what it learned is a plain checkpoint."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.growth import Growth


def patterned_batches(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Counting sequences modulo 61: something that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    starts = [torch.randint(0, 61, (8, 1), generator=generator) for _ in range(count)]
    tokens = [3 + (start + torch.arange(16)) % 61 for start in starts]
    return [{"input_ids": t, "labels": t} for t in tokens]


def loss(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(torch.stack([model(**batch).loss for batch in patterned_batches(4, 9)]).mean())


@pytest.fixture(scope="module")
def small():
    model = pico.build("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in patterned_batches(60, 0):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def test_the_fit_lowers_the_loss_and_is_baked_in(small, tmp_path):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    fitted = ms.LiGO(width=2, depth=2, steps=60).fit(small, patterned_batches(30, 1))
    big = ms.grow(small, fitted)
    stacked = ms.grow(small, [ms.HyperCloning(width=2), ms.Stacking(depth=2)])
    assert loss(big) < loss(stacked)
    assert fitted.losses[-1] < fitted.losses[0]
    assert (big.config.hidden_size, big.config.num_hidden_layers) == (64, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    big.save_pretrained(tmp_path)
    again = type(big).from_pretrained(tmp_path).eval()
    assert loss(again) == pytest.approx(loss(big), abs=1e-6)


def test_without_steps_it_is_where_it_starts(small):
    """One step of zero length: width alone starts at a function-preserving duplication."""
    fitted = ms.LiGO(width=2, steps=1, learning_rate=0.0).fit(small, patterned_batches(1, 1))
    growth = Growth.of(small, fitted)
    assert growth.certificate.relative_error < 1e-5
    assert not growth.plans[0].preserves_function
    assert growth.methods[0]["method"] == "ligo"
    assert growth.methods[0]["first_loss"] == pytest.approx(fitted.losses[0])


def test_unfitted_or_without_data_it_is_refused(small):
    with pytest.raises(ms.MeristemError, match="ligo is fitted on data first"):
        ms.grow(small, ms.LiGO(width=2))
    with pytest.raises(ms.MeristemError, match="no batches to fit on"):
        ms.LiGO(width=2).fit(small, [])


@pytest.mark.parametrize(
    "sizes", [{"width": 2}, {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 60}]
)
def test_the_noise_keeps_the_function_at_which_the_fit_starts_and_follows_the_seed(small, sizes):
    fitted = [
        ms.LiGO(**sizes, steps=1, learning_rate=0.0, seed=seed).fit(small, patterned_batches(1, 1))
        for seed in (0, 0, 1)
    ]
    one, again, other = (ms.grow(small, method) for method in fitted)
    tokens = torch.arange(12)[None]
    assert torch.allclose(one(tokens).logits, small(tokens).logits, atol=1e-5)
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
