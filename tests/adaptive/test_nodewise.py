"""AdaNet.CVX: units in closed form, the slope that duality promises, the objective, files."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine, make_circles
from sklearn.utils.estimator_checks import parametrize_with_checks

import meristem as ms
from meristem.adaptive import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.adanet.losses import Logistic
from meristem.adaptive.adanet.nodewise import NodewiseModule, best_unit
from meristem.adaptive.pictures import network

CVX = {"variant": "CVX", "max_steps": 60}


@parametrize_with_checks([AdaNetRegressor(**CVX)])
def test_scikit_learn_agrees(estimator, check):
    check(estimator)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0])
def test_the_best_unit_is_duality(p):
    generator = torch.Generator().manual_seed(0)
    edge = torch.randn(12, generator=generator, dtype=torch.float64)
    unit, value = best_unit(edge, 1.3, p)
    assert float(torch.linalg.vector_norm(unit, ord=p)) == pytest.approx(1.3)
    assert float(unit @ edge) == pytest.approx(value)
    others = torch.randn(2000, 12, generator=generator, dtype=torch.float64)
    others *= 1.3 / torch.linalg.vector_norm(others, ord=p, dim=1, keepdim=True)
    assert float((others @ edge).max()) <= value


def test_the_slope_at_zero_is_the_edge():
    """dF/d eta at 0 = -(S_t / m) u . eps: by finite differences on the mean loss."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(50, 6, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(50, 1, generator=generator) < 0.5, 1.0, -1.0).double()
    f = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    loss, shares = Logistic(), torch.full((50,), 1 / 50, dtype=torch.float64)
    unit, value = best_unit((inputs.T @ (-shares[:, None] * loss.slope(f, y)))[:, 0], 1.0, 2.0)
    step = 1e-6
    h = (inputs @ unit)[:, None]
    change = (shares @ loss.value(f + step * h, y) - shares @ loss.value(f - step * h, y)) / (2 * step)
    assert float(change) == pytest.approx(-value, abs=1e-8)


def test_the_objective_falls_at_every_step_to_an_optimum():
    x, y = load_breast_cancer(return_X_y=True)
    model = AdaNetClassifier(**CVX | {"max_steps": 150}, max_depth=1, random_state=0).fit(x, y)
    objectives = [record["objective"] for record in model.history_]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(objectives))
    assert model.score(x, y) > 0.95


def test_depth_is_learned_where_a_line_does_not_do():
    x, y = make_circles(400, noise=0.08, factor=0.5, random_state=0)
    shallow = AdaNetClassifier(**CVX, max_depth=1).fit(x[:300], y[:300])
    deep = AdaNetClassifier(**CVX | {"max_steps": 400}, max_depth=3, adanet_lambda=1e-5).fit(x[:300], y[:300])
    assert shallow.score(x[300:], y[300:]) < 0.7
    assert len(deep.module_.parts()) > 1
    assert deep.history_[-1]["objective"] < shallow.history_[-1]["objective"]


def test_units_read_the_layer_as_it_was():
    module = NodewiseModule(torch.zeros(2).double(), torch.ones(2).double())
    module.add_unit(1, torch.tensor([1.0, 0, 0]).double())
    module.add_unit(2, torch.tensor([2.0]).double())
    x = torch.tensor([[3.0, -1.0]]).double()
    before = module.layers(x)[1]
    module.add_unit(1, torch.tensor([0.0, 1, 0]).double())
    assert module.layers(x)[0].tolist() == [[3.0, -1.0]]
    assert torch.equal(module.layers(x)[1], before)


def test_regression_files_and_pictures(tmp_path):
    x, y = load_diabetes(return_X_y=True)
    model = AdaNetRegressor(**CVX, adanet_lambda=1e-3).fit(x, y)
    assert model.score(x, y) > 0.4
    model.save(tmp_path / "model")
    loaded = AdaNetRegressor.load(tmp_path / "model")
    np.testing.assert_array_equal(model.predict(x), loaded.predict(x))
    assert loaded.summary() == model.summary()
    labels = [text.get_text() for text in network(model.module_).axes[0].texts]
    assert {"10 inputs", "output"} <= set(labels)


def test_several_classes_are_refused():
    with pytest.raises(ms.MeristemError, match="two classes or regression, found 3"):
        AdaNetClassifier(**CVX).fit(*load_wine(return_X_y=True))
