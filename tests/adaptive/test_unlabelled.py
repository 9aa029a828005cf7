"""Rows without labels, weights, and machines that learn batch by batch."""

import numpy as np
import pytest
import torch
from infinite_rbm import bars
from sklearn.datasets import load_digits

from meristem.adaptive import RBM, EnergyNetClassifier, EnergyNetRegressor, InfiniteRBM, InfiniteRBMClassifier

QUICK = {"structure_iter": 3, "max_epochs": 20, "learning_rate": 0.01, "random_state": 0}


def digits(rows=400):
    data = load_digits()
    return data.data[:rows] / 16, data.target[:rows]


def test_a_structure_that_is_given_stays():
    x, y = digits()
    net = EnergyNetClassifier(**QUICK).fit_structure(x)
    weights, widths = net.layers_[0].machine.weights.clone(), net.widths_
    net.fit(x[:50], y[:50])
    assert torch.equal(net.layers_[0].machine.weights, weights)
    assert net.widths_ == widths
    assert EnergyNetClassifier(**QUICK).fit(x[:50], y[:50]).widths_ != widths
    with pytest.raises(ValueError, match="features"):
        net.fit(x[:50, :60], y[:50])


def test_rows_without_a_label_are_of_stage_one_only():
    x, y = digits()
    some = np.where(np.arange(400) < 60, y, -1)
    both = EnergyNetClassifier(**QUICK).fit(x, some)
    assert both.classes_.tolist() == list(range(10))
    alone = EnergyNetClassifier(**QUICK).fit_structure(x)
    assert torch.equal(both.layers_[0].machine.weights, alone.layers_[0].machine.weights)
    every = EnergyNetClassifier(**QUICK, unlabelled=None).fit(x, some)
    assert every.classes_.tolist() == [-1, *range(10)]


def test_minus_one_beside_one_other_label_is_a_class():
    x, y = digits()
    assert EnergyNetClassifier(**QUICK).fit(x, np.where(y < 5, -1, 1)).classes_.tolist() == [-1, 1]


def test_weights_of_stage_two():
    draw = np.random.default_rng(0)
    x = draw.random((300, 2))
    y = np.where(np.arange(300) % 2 == 0, 1.0, 3.0)  # two targets at the same places
    for factor in (1.0, 10.0):
        weight = factor * np.where(y == 1.0, 0.1234, 0.9)
        net = EnergyNetRegressor(**QUICK).fit(x, y, weight)
        assert net.predict(x).mean() == pytest.approx((1 * 0.1234 + 3 * 0.9) / (0.1234 + 0.9), abs=0.1)


def test_the_order_of_rows_does_not_matter():
    x, y = digits(200)
    order = np.random.default_rng(0).permutation(200)
    one, other = (EnergyNetClassifier(**QUICK).fit(a, b) for a, b in ((x, y), (x[order], y[order])))
    np.testing.assert_array_equal(one.predict_proba(x), other.predict_proba(x))


@pytest.mark.parametrize("machine", [RBM(n_components=16), InfiniteRBM()], ids=["RBM", "InfiniteRBM"])
def test_machines_learn_batch_by_batch(machine):
    x = bars(4)[:512]
    mixed = np.stack([np.random.default_rng(j).permutation(column) for j, column in enumerate(x.T)], 1)
    machine.set_params(random_state=0, gibbs_steps=2, learning_rate=0.1)
    machine.partial_fit(x[:64])
    first = machine.free_energy(x).mean() - machine.free_energy(mixed).mean()
    for _ in range(30):
        for batch in np.array_split(x, len(x) // 64):
            machine.partial_fit(batch)
    assert machine.free_energy(x).mean() - machine.free_energy(mixed).mean() < first - 10
    assert len(machine.history_) == 1 + 30 * (len(x) // 64)
    with pytest.raises(ValueError, match="features"):
        machine.partial_fit(x[:, :9])
    whole = machine.fit(x).components_.copy()
    np.testing.assert_array_equal(machine.fit(x).components_, whole)  # fit begins anew


def test_one_pass_in_batches_is_one_pass():
    x = bars(2)[:64]
    once = RBM(n_components=8, n_iter=1, batch_size=64, random_state=0).fit(x)
    batch = RBM(n_components=8, n_iter=1, batch_size=64, random_state=0).partial_fit(x)
    np.testing.assert_array_equal(once.components_, batch.components_)


def test_labels_batch_by_batch():
    x, y = digits()
    machine = InfiniteRBMClassifier(random_state=0, gibbs_steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="classes"):
        machine.partial_fit(x[:100], y[:100])
    for _ in range(15):
        for start in range(0, 400, 100):
            machine.partial_fit(x[start : start + 100], y[start : start + 100], classes=np.arange(10))
    assert machine.score(x, y) > 0.8
