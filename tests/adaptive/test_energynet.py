"""EnergyNet: widths follow the data, depth has to pay, labels never reach stage one."""

import itertools

import numpy as np
import pytest
import torch
from infinite_rbm import bars
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import meristem as ms
from meristem.adaptive import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.energynet.columns import equal_columns, shared_out
from meristem.adaptive.energynet.structure import StructureOptions, learn_structure
from meristem.adaptive.rbm.infinite import PUBLISHED
from meristem.adaptive.rbm.machine import Machine
from meristem.adaptive.rbm.order import Infinite
from meristem.adaptive.rbm.visible import BinaryVisible

QUICK = {"structure_iter": 3, "max_epochs": 60, "learning_rate": 0.01}


@parametrize_with_checks([EnergyNetClassifier(**QUICK), EnergyNetRegressor(**QUICK)])
def test_scikit_learn_agrees(estimator, check):
    check(estimator)


def test_labels_never_reach_stage_one():
    digits = load_digits()
    x = digits.data[:400] / 16
    by_labels = EnergyNetClassifier(**QUICK, random_state=3).fit(x, digits.target[:400])
    shuffled = EnergyNetClassifier(**QUICK, random_state=3).fit(x, np.roll(digits.target[:400], 7))
    alone = EnergyNetClassifier(**QUICK, random_state=3).fit_structure(x)
    for one, other in itertools.pairwise([by_labels, shuffled, alone]):
        assert one.widths_ == other.widths_
        assert torch.equal(one.layers_[0].machine.weights, other.layers_[0].machine.weights)


def test_independent_pixels_give_almost_no_units():
    data = bars(8)
    shuffled = np.stack([np.random.default_rng(j).permutation(column) for j, column in enumerate(data.T)], 1)
    widths = [
        EnergyNetClassifier(structure_iter=20, max_layers=1, random_state=0).fit_structure(x).widths_[0]
        for x in (data, shuffled)
    ]
    assert widths[1] < widths[0] / 5


def test_copies_of_features_change_nothing():
    data = bars(4)
    twice = data[:, np.random.default_rng(0).permutation(np.repeat(np.arange(144), 2))]
    first, which = equal_columns(torch.as_tensor(twice))
    assert len(first) == 144
    assert torch.equal(torch.as_tensor(twice), torch.as_tensor(twice)[:, first][:, which])
    assert first.tolist() == sorted(first.tolist())
    quick = {**QUICK, "max_layers": 1, "max_epochs": 0, "random_state": 0}
    labels = np.arange(len(data)) % 2
    one, other = (EnergyNetClassifier(**quick).fit(x, labels) for x in (twice[:, first], twice))
    assert one.widths_ == other.widths_
    assert "144 of them copies of others" in other.summary()
    with torch.no_grad():
        received = [net.network_[0](torch.as_tensor(x).double()) for net, x in ((one, twice[:, first]), (other, twice))]
    torch.testing.assert_close(*received, atol=1e-4, rtol=1e-4)


def test_data_of_one_machine_give_one_layer():
    generator = torch.Generator().manual_seed(0)
    weights = 3 * torch.randn(4, 16, generator=generator)
    machine = Machine(weights, -weights.sum(1) / 2, torch.zeros(16), Infinite(2.0, "constant"), BinaryVisible())
    x = machine.gibbs(torch.zeros(3000, 16), 200, generator)
    options = StructureOptions(
        {"beta": 2.0, "penalty": "constant", "n_iter": 30, "gibbs_steps": 5, "learning_rate": 0.05}, max_layers=3
    )
    said = []
    layers = learn_structure(x, options, generator, said.append)
    assert len(layers) == 1
    assert "not taken" in said[-1]


def test_the_gain_of_a_layer_is_what_enumeration_says():
    """E_q[ln p2(h) - ln p1(h)] from the two machines, all states summed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.as_tensor(bars(3)[:, ::12])
    options = StructureOptions(
        PUBLISHED | {"beta": 2.0, "penalty": "constant", "n_iter": 20, "gibbs_steps": 2, "learning_rate": 0.05},
        max_layers=2,
        depth_penalty=-100.0,
    )
    first, second = learn_structure(x, options, generator, lambda _: None)
    assert first.width <= 16  # 2 ** width states
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=first.width)))
    below = torch.log_softmax(-first.machine.hidden_free_energy(states), 0)
    above = torch.log_softmax(-second.machine.free_energy(states), 0)
    replay = torch.Generator().manual_seed(0)  # the held-out rows and their hidden states, drawn once more
    shuffled = torch.randperm(len(x), generator=replay)
    held = max(1, int(options.validation_fraction * len(x)))
    torch.randint(2**31 - 1, (), generator=replay)  # the first machine's seed
    first.machine.sample_hidden(x[shuffled[held:]], replay)
    code = codes(first.machine.sample_hidden(x[shuffled[:held]], replay))
    assert second.gain == pytest.approx(float((above - below)[code].mean()), abs=1e-3)
    assert abs(second.gain) > 0.05  # the comparison is between numbers that differ from nothing


def test_no_layer_explains_the_draws_of_the_one_below_better():
    generator = torch.Generator().manual_seed(0)
    x = torch.as_tensor(bars(3)[:, ::12])
    options = StructureOptions(
        {"beta": 4.0, "penalty": "constant", "n_iter": 10, "gibbs_steps": 2}, max_layers=2, depth_penalty=-100.0
    )
    first, second = learn_structure(x, options, generator, lambda _: None)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=first.width)))
    below = torch.log_softmax(-first.machine.hidden_free_energy(states), 0)
    above = torch.log_softmax(-second.machine.free_energy(states), 0)
    everything = torch.tensor(list(itertools.product([0.0, 1.0], repeat=x.shape[1])))
    # p1(h) = sum_v p(v) p(h | v): what enumeration says of h is how often it is drawn
    v = everything[torch.multinomial(torch.softmax(-first.machine.free_energy(everything), 0), 20000, True)]
    code = codes(first.machine.sample_hidden(v, generator))
    frequency = torch.bincount(code, minlength=len(states)) / len(code)
    torch.testing.assert_close(frequency, below.exp(), atol=0.02, rtol=0)
    assert float((below.exp() * (above - below)).sum()) <= 1e-6


def codes(hidden: torch.Tensor) -> torch.Tensor:
    """The place of each row of zeros and ones among all states in order."""
    return (hidden @ (2.0 ** torch.arange(hidden.shape[1] - 1, -1, -1))).long()


def test_it_learns_beside_logistic_regression():
    cancer = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(cancer.data))
    x, y = cancer.data[order], cancer.target[order]
    net = EnergyNetClassifier(random_state=0, structure_iter=20).fit(x[:400], y[:400])
    assert net.score(x[400:], y[400:]) > 0.93
    assert "layer 1" in net.summary()
    digits = load_digits()
    x, y = digits.data / 16, digits.target
    net = EnergyNetClassifier(random_state=0).fit(x[:1200], y[:1200])
    linear = LogisticRegression(max_iter=1000).fit(x[:1200], y[:1200])
    assert net.score(x[1200:], y[1200:]) > linear.score(x[1200:], y[1200:]) - 0.02


def test_regression_beats_the_mean():
    x, y = load_diabetes(return_X_y=True)
    net = EnergyNetRegressor(random_state=0, structure_iter=10).fit(x[:330], y[:330])
    assert net.score(x[330:], y[330:]) > 0.3


def test_ablations_change_what_they_say():
    digits = load_digits()
    x, y = digits.data[:300] / 16, digits.target[:300]
    quick = {**QUICK, "max_epochs": 0, "random_state": 0}
    energy, structure, widths = (
        EnergyNetClassifier(**quick, **options).fit(x, y)
        for options in ({}, {"initial": "random"}, {"widths": "random", "max_layers": 1})
    )
    first = energy.network_[0].weight.float()
    assert torch.equal(first, shared_out(energy.layers_[0].machine.weights, equal_columns(torch.as_tensor(x))[1]))
    assert not torch.equal(first, structure.network_[0].weight.float())
    assert energy.num_parameters_ == structure.num_parameters_
    assert abs(widths.num_parameters_ - energy.num_parameters_) < 100


def test_save_load_and_resume(tmp_path):
    digits = load_digits()
    x, y = digits.data[:300] / 16, digits.target[:300]
    options = {**QUICK, "random_state": 0}
    whole = EnergyNetClassifier(**options).fit(x, y)
    again = EnergyNetClassifier(**options, checkpoint=str(tmp_path / "state")).fit(x, y)
    resumed = EnergyNetClassifier(**options, checkpoint=str(tmp_path / "state")).fit(x, y)
    for other in (again, resumed):
        np.testing.assert_array_equal(whole.predict_proba(x), other.predict_proba(x))
    whole.save(tmp_path / "model")
    loaded = EnergyNetClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(whole.predict_proba(x), loaded.predict_proba(x))
    assert loaded.predict(x).tolist() == whole.predict(x).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, "beta > 1"),
        ({"depth_penalty": 0.0}, "depth_penalty must be above 0"),
        ({"initial": "zeros"}, "known: energy, random"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ms.MeristemError, match=message):
        EnergyNetClassifier(**options).fit(np.eye(4), [0, 1, 0, 1])
