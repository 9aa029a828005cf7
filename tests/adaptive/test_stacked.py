"""Candidates that train side by side: the gradients are autograd's, the steps torch's, and each is what it would be alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from meristem.adaptive import AdaNetClassifier
from meristem.adaptive.adanet import search as search_module
from meristem.adaptive.adanet.bins import Bins
from meristem.adaptive.adanet.candidates import propose
from meristem.adaptive.adanet.losses import Exponential, Logistic, Softmax, Squared
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.price import PART, PRICES, Rows, chosen_start
from meristem.adaptive.adanet.sample import Sample
from meristem.adaptive.adanet.stacked import Adam, Stack
from meristem.adaptive.adanet.training import Options


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
    found = [chosen_start([module], Rows(x, y, shares, 600), PRICES, Logistic(), options, 0) for y in (noise, clear)]
    assert found[0].price == PRICES[0] * PART > found[1].price


def test_bins_are_taken_where_they_help_on_held_out_rows():
    x = draw(600, 2)
    options, shares = Options(width=8, max_steps=100), torch.ones(600, dtype=torch.float64)
    zeros, ones = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    plain, binned = AdaNetModule(zeros, ones, 1), AdaNetModule(zeros, ones, 1, Bins.of(x))
    stripes = torch.where((4 * x[:, :1]).floor() % 2 == 0, 1.0, -1.0).double()
    line = x.sum(1, keepdim=True).sign()
    for targets, wanted in ((stripes, binned), (line, plain)):
        rows = Rows(x, targets, shares, 600)
        assert chosen_start([plain, binned], rows, PRICES, Logistic(), options, 0).module is wanted


def test_a_second_layer_is_proposed_where_it_helps_on_held_out_rows():
    x = draw(1500, 6)
    options, shares = Options(width=16, max_steps=300), torch.ones(1500, dtype=torch.float64)
    module = AdaNetModule(torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64), 1)
    parity, line = x[:, :3].sign().prod(1, keepdim=True), x.sum(1, keepdim=True).sign()
    for targets, wanted in ((parity, 3), (line, 1)):
        rows = Rows(x, targets, shares, 1500)
        assert chosen_start([module], rows, PRICES, Logistic(), options, 0, max_depth=3).max_depth == wanted
    rows = Rows(x, parity, shares, 1500)
    assert chosen_start([module], rows, PRICES, Logistic(), options, 0, max_depth=1).max_depth == 1
    assert chosen_start([module], rows, [1e-3], Logistic(), options, 0, max_depth=3).max_depth == 3  # nothing to choose


def test_bins_say_how_far_a_number_has_come():
    x = torch.arange(9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])  # the second input is constant
    bins = Bins.of(x, count=4)
    assert bins is not None
    assert bins.input.tolist() == [0, 0, 0, 0]
    assert bins.low.tolist() == [0, 2, 4, 6]
    zeros, ones = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    module = AdaNetModule(zeros, ones, 1, bins)
    said = module.features(torch.tensor([[3.0, 0.0], [-1.0, 0.0], [99.0, 0.0]], dtype=torch.float64))
    wanted = [[3, 0, 1, 0.5, 0, 0, 1], [-1, 0, 0, 0, 0, 0, 1], [99, 0, 1, 1, 1, 1, 1]]
    assert said.tolist() == wanted
    assert module.num_features == 7
    assert Bins.of(x[:, 1:]) is None


def test_a_network_that_reads_bins_is_kept(tmp_path):
    x, y = make_moons(200, noise=0.2, random_state=0)
    model = AdaNetClassifier(embedding="piecewise", max_rounds=2, width=8, random_state=0).fit(x, y)
    assert model.module_.num_bins == 16
    model.save(tmp_path / "model")
    loaded = AdaNetClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))


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
    assert model.price_ in [price * PART for price in PRICES]
    model.save(tmp_path / "model")
    assert AdaNetClassifier.load(tmp_path / "model").adanet_lambda == "auto"
