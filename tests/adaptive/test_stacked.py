"""Candidates that train side by side: the gradients are autograd's, the steps torch's, and each is what it would be alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from meristem.adaptive import AdaNetClassifier
from meristem.adaptive.adanet import search as search_module
from meristem.adaptive.adanet.candidates import Options, Sample, propose
from meristem.adaptive.adanet.losses import Exponential, Logistic, Softmax, Squared
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.price import PRICES, chosen_price
from meristem.adaptive.adanet.stacked import Adam, Stack


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("loss", [Logistic(), Exponential(), Softmax(), Squared()])
@pytest.mark.parametrize("depths", [[1], [3, 2], [2, 2, 1]])
def test_gradients_are_autograds(loss, depths):
    outputs = 3 if isinstance(loss, Softmax) else 1
    features, earlier = draw(20, 5), [draw(20, 4, seed=1), draw(20, 0, seed=2)]
    offset, shares = 0.1 * draw(20, outputs, seed=3), torch.full((20,), 1 / 20, dtype=torch.float64)
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(20) % 3] if outputs == 3 else draw(20, 1, seed=4).sign()
    price = torch.tensor([0.01 * (k + 1) for k in range(len(depths))], dtype=torch.float64)[:, None, None]
    stack = Stack(depths, 5, 6, [4, 0], outputs, range(len(depths)), torch.float64)
    stack.differentiate(features, earlier, offset, targets, shares, loss, price)
    for number, depth in enumerate(depths):
        *layers, weights = leaves = [part.clone().requires_grad_() for part in stack.parts(number)]
        h = torch.relu(features @ layers[0])
        for layer, read in zip(layers[1:], earlier, strict=False):
            h = torch.relu(torch.cat([h, read], 1) @ layer)
        (shares @ loss.value(offset + h @ weights, targets) + price[number] * weights.abs().sum()).sum().backward()
        slopes = [s[number] for s in stack.layer_slopes[:depth]] + [stack.weight_slopes[number]]
        for leaf, slope in zip(leaves, slopes, strict=True):
            torch.testing.assert_close(slope, leaf.grad)


@pytest.mark.parametrize(("momentum", "like"), [(True, torch.optim.Adam), (False, torch.optim.SGD)])
def test_steps_are_torchs(momentum, like):
    vector, theirs = draw(50), torch.nn.Parameter(draw(50))
    mine, reference = Adam(vector, 0.03, momentum), like([theirs], lr=0.03)
    for step in range(30):
        slopes = draw(50, seed=step + 1)
        theirs.grad = slopes.clone()
        mine.step(slopes)
        reference.step()
    torch.testing.assert_close(vector, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("held", [False, True])
def test_a_candidate_is_the_same_alone(held):
    x, y = make_moons(200, noise=0.2, random_state=0)
    features = torch.cat([torch.as_tensor(x), torch.ones(200, 1, dtype=torch.float64)], 1)
    targets = torch.as_tensor(2.0 * y - 1)[:, None]
    shares = torch.full((200,), 1 / 200, dtype=torch.float64)
    sample = Sample(features, [], torch.zeros_like(targets), targets, shares, 200)
    options = Options(width=8, max_steps=300, patience=2, min_gain=0.05)
    arguments = (options, Logistic())
    together = propose(sample, [1, 2], [], *arguments, [5, 6], sample if held else None)
    for depth, seed, one in zip([1, 2], [5, 6], together, strict=True):
        (alone,) = propose(sample, [depth], [], *arguments, [seed], sample if held else None)
        assert alone.steps == one.steps
        np.testing.assert_allclose(alone.weights, one.weights, atol=1e-9)
        for layer, other in zip(alone.block.layers, one.block.layers, strict=True):
            torch.testing.assert_close(layer.weight, other.weight)
    assert together[0].objective != together[1].objective


def test_a_noisy_target_gets_a_high_price_and_a_clear_one_a_low_one():
    x = draw(600, 5)
    options, shares = Options(width=32, max_steps=100), torch.ones(600, dtype=torch.float64)
    module = AdaNetModule(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64), 1)
    clear = ((x[:, :1] * x[:, 1:2]) > 0).double() * 2 - 1
    noise = draw(600, 1, seed=9).sign()
    prices = [chosen_price(module, x, y, shares, 600, Logistic(), options, seed=0) for y in (noise, clear)]
    assert prices[0] == PRICES[0] > prices[1]


def test_many_rows_are_refitted_on_some(monkeypatch):
    monkeypatch.setattr(search_module, "MOST_REFITTED", 300)
    monkeypatch.setattr(search_module, "PIECE", 64)
    x, y = make_moons(1000, noise=0.2, random_state=0)
    model = AdaNetClassifier(random_state=0, max_rounds=3, min_improvement=0.0).fit(x, y)
    assert len(model.module_.blocks) == 3
    assert model.score(x, y) > 0.95
    objectives = [record["objective"] for record in model.history_]
    assert objectives == sorted(objectives, reverse=True)


def test_an_automatic_price_is_kept(tmp_path):
    x, y = make_moons(200, noise=0.2, random_state=0)
    model = AdaNetClassifier(adanet_lambda="auto", max_rounds=2, width=8, random_state=0).fit(x, y)
    assert model.price_ in PRICES
    model.save(tmp_path / "model")
    assert AdaNetClassifier.load(tmp_path / "model").adanet_lambda == "auto"
