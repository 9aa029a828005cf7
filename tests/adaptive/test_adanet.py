"""AdaNet: golden values, optimality of the re-fit, the promises of the rounds, scikit-learn's contract, files."""

import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_circles, make_moons
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

import meristem as ms
from meristem.adaptive import AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.adanet.complexity import dual_exponent, margin_bound, rademacher_bound
from meristem.adaptive.adanet.losses import Exponential, Logistic, Softmax, Squared
from meristem.adaptive.adanet.refit import Problem, path, refit

QUICK = {"width": 8, "max_steps": 100, "max_rounds": 3}


@parametrize_with_checks([AdaNetClassifier(**QUICK), AdaNetRegressor(**QUICK)])
def test_scikit_learn_agrees(estimator, check):
    check(estimator)


# -- the convex re-fit ---------------------------------------------------------------------------------------------------


def toy(gamma):
    i = torch.arange(1, 9, dtype=torch.float64)
    rates = torch.tensor([1, 2.3, 3.1], dtype=torch.float64)
    features = torch.relu(torch.sin(i[:, None] * rates))
    shares = torch.full((8,), 1 / 8, dtype=torch.float64)
    return Problem(
        Logistic(), 0.3 * torch.cos(i)[:, None], features, torch.sign(torch.sin(i * i))[:, None], shares, gamma
    )


@pytest.mark.parametrize(
    ("gamma", "weights", "value"),
    [
        (0.0, [1.314144272, 0.1278884, -10.449197781], 1.171899355),
        (0.01, [0.918940938, 0, -7.029280208], 1.270341856),
        (0.02, [0.514295545, 0, -3.917742853], 1.332218939),
        (0.0350164, [0, 0, 0], 1.358754239),
    ],
)
def test_golden_refits(gamma, weights, value):
    problem = toy(gamma)
    found = refit(problem)
    assert found[:, 0].tolist() == pytest.approx(weights, abs=2e-8)
    assert float(problem.value(found)) == pytest.approx(value, abs=1e-9)
    assert problem.violation(found) < 1e-12
    assert all((w == 0) == (v == 0) for w, v in zip(found[:, 0].tolist(), weights, strict=True))


def test_golden_largest_useful_penalty():
    problem = toy(0.0)
    found = float(problem.gradient(problem.outputs(problem.start())).abs().max())
    assert found == pytest.approx(0.03501639120604, abs=1e-13)


@pytest.mark.parametrize("loss", [Logistic(), Exponential(), Squared()])
@pytest.mark.parametrize("gamma", [1e-4, 1e-2])
def test_the_refit_is_optimal(loss, gamma):
    generator = torch.Generator().manual_seed(0)
    features = torch.relu(torch.randn(500, 60, generator=generator, dtype=torch.float64))
    targets = (features @ torch.randn(60, 1, generator=generator, dtype=torch.float64)).sign() + 0.0
    flipped = torch.rand(500, 1, generator=generator) < 0.2
    targets = torch.where(flipped, -targets, targets)
    shares = torch.rand(500, generator=generator, dtype=torch.float64)
    offset = 0.1 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    problem = Problem(loss, offset, features, targets, shares / shares.sum(), gamma)
    w = refit(problem)
    gradient = problem.gradient(problem.outputs(w))
    assert float((gradient.abs() - gamma)[w == 0].max() if (w == 0).any() else -1) < 1e-10
    assert float((gradient + gamma * w.sign())[w != 0].abs().max()) < 1e-10


@pytest.mark.parametrize("loss", [Logistic(), Exponential(), Softmax(), Squared()])
def test_slopes_and_curvatures_are_autograds(loss):
    outputs = 3 if isinstance(loss, Softmax) else 1
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(5, outputs, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.eye(3, dtype=torch.float64)[[0, 2, 1, 1, 0]] if outputs == 3 else torch.tensor([[1.0, -1, -1, 1, 1]]).T
    (slope,) = torch.autograd.grad(loss.value(f, y).sum(), f, create_graph=True)
    torch.testing.assert_close(slope.detach(), loss.slope(f.detach(), y))
    direction = torch.randn(5, outputs, generator=generator, dtype=torch.float64)
    (bent,) = torch.autograd.grad((slope * direction).sum(), f)
    torch.testing.assert_close(bent, loss.curvature(f.detach(), y, direction))


def test_probabilities_minimise_the_expected_loss():
    """Of outputs on a grid, the one with the least expected loss under p is where `probabilities` says p."""
    grid = torch.linspace(-6, 6, 4801, dtype=torch.float64)[:, None]
    for loss, p in itertools.product((Logistic(), Exponential()), (0.2, 0.5, 0.9)):
        one = torch.ones_like(grid)
        best = (p * loss.value(grid, one) + (1 - p) * loss.value(grid, -one)).argmin()
        assert float(loss.probabilities(grid[best : best + 1])[0, 1]) == pytest.approx(p, abs=2e-3)


# -- complexities ---------------------------------------------------------------------------------------------------------


def test_golden_complexities():
    layers = ([154], [154, 150], [154, 150, 150])
    assert [rademacher_bound(n, 9600) for n in layers] == pytest.approx(
        [0.428766488, 10.50259115, 257.2598929], rel=1e-8
    )
    expected = [0.034550988, 0.069101976, 0.138203953]
    assert [rademacher_bound(n, 9600, p=1) for n in layers] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_monte_carlo_complexity_is_below_the_bound(p):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(400, 10, generator=generator, dtype=torch.float64) - 1
    signs = torch.randint(0, 2, (2000, 400), generator=generator).double() * 2 - 1
    norms = torch.linalg.vector_norm(signs @ x / 400, ord=dual_exponent(p), dim=1)  # sup over |u|_p <= 1
    assert float(norms.mean()) < rademacher_bound([10], 400, float(x.abs().max()), p=p)


def test_the_margin_bound_grows_with_what_it_should():
    base = margin_bound(0.1, 0.01, 2, 10_000)
    assert base > 0.1
    assert margin_bound(0.1, 0.02, 2, 10_000) == pytest.approx(base + 4 * 0.01)
    assert margin_bound(0.1, 0.01, 2, 1_000) > base
    assert margin_bound(0.1, 0.01, 2, 10_000, confidence=0.999) > base
    assert math.isinf(dual_exponent(1))
    with pytest.raises(ms.MeristemError, match="at least 1"):
        dual_exponent(0.5)


# -- the rounds -----------------------------------------------------------------------------------------------------------


def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], y[order]


@pytest.mark.parametrize("options", [{}, {"shrinkage": 0.3}, {"standardize": False, "project": True}])
def test_the_objective_never_rises_and_is_what_the_network_says(options):
    x, y = cancer()
    model = AdaNetClassifier(width=16, max_rounds=5, min_improvement=0.0, random_state=0, **options).fit(x, y)
    objectives = [record["objective"] for record in model.history_]
    assert objectives[0] == pytest.approx(math.log(1 + math.e))
    assert all(after <= before for before, after in itertools.pairwise(objectives))
    accepted = [record for record in model.history_ if "depth" in record]
    assert all(b["objective"] < a["objective"] for a, b in itertools.pairwise([model.history_[0], *accepted]))
    signs = torch.as_tensor(2.0 * y - 1)[:, None]
    outputs = torch.as_tensor(model.decision_function(x))[:, None]
    penalty = sum(model.adanet_lambda * part.complexity * part.mass for part in model.module_.parts())
    assert objectives[-1] == pytest.approx(float(Logistic().value(outputs, signs).mean()) + penalty, abs=1e-9)
    assert all(c["violation"] < 1e-10 for record in accepted for c in record["candidates"])


def test_shrinkage_scales_what_joins():
    x, y = cancer()
    whole, part = (
        AdaNetClassifier(**QUICK | {"max_rounds": 1}, random_state=0, shrinkage=share).fit(x, y)
        for share in (1.0, 0.25)
    )
    np.testing.assert_allclose(part.output_weights_[0], 0.25 * whole.output_weights_[0], rtol=1e-12)
    assert whole.history_[1]["objective"] < part.history_[1]["objective"] < part.history_[0]["objective"]


def test_features_are_read_as_they_are():
    x, y = cancer()
    x = x / x.max(0)
    model = AdaNetClassifier(**QUICK | {"max_rounds": 1}, random_state=0, standardize=False).fit(x, y)
    features = model.module_.features(torch.as_tensor(x))
    assert torch.equal(features[:, :-1], torch.as_tensor(x))
    assert model.module_.parts()[0].complexity == pytest.approx(rademacher_bound([31], len(x), 1.0))


def test_earlier_blocks_never_move():
    x, y = cancer()
    few = AdaNetClassifier(**QUICK | {"max_rounds": 1}, random_state=0).fit(x, y).module_.state_dict()
    many = AdaNetClassifier(**QUICK | {"max_rounds": 4}, random_state=0, min_improvement=0.0).fit(x, y).module_
    assert len(many.blocks) > 1
    state = many.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in few.items())


def test_a_huge_price_leaves_nothing():
    x, y = cancer()
    model = AdaNetClassifier(**QUICK, adanet_lambda=10.0, random_state=0).fit(x, y)
    assert not model.output_weights_
    assert model.history_[-1]["refused"]
    assert model.predict(x).shape == y.shape


def test_deeper_blocks_read_all_units_below():
    x, y = make_moons(300, noise=0.1, random_state=0)
    options = {
        "width": 4,
        "max_rounds": 5,
        "max_steps": 200,
        "min_improvement": 0.0,
        "adanet_lambda": 0.0,
        "adanet_beta": 1e-4,
    }
    base = AdaNetClassifier(**options, random_state=0).fit(x, y).module_
    assert base.depth > 1
    for number, entry in enumerate(base.layout()):
        for layer, reads in enumerate(entry["reads"], 1):
            assert reads == [b for b in range(number) if len(base.blocks[b].layers) >= layer]
    previous = AdaNetClassifier(**options, variant="P", random_state=0).fit(x, y).module_
    assert all(set(reads) <= {n - 1} for n, entry in enumerate(previous.layout()) for reads in entry["reads"])


@pytest.mark.parametrize("variant", ["base", "R", "P", "D", "SD"])
def test_every_variant_learns_circles(variant):
    x, y = make_circles(400, noise=0.08, factor=0.5, random_state=0)
    model = AdaNetClassifier(variant=variant, width=16, random_state=0).fit(x[:300], y[:300])
    assert LogisticRegression().fit(x[:300], y[:300]).score(x[300:], y[300:]) < 0.6
    assert model.score(x[300:], y[300:]) > 0.95


def test_projection_holds_the_norms():
    x, y = cancer()
    model = AdaNetClassifier(**QUICK, project=True, max_norm=0.5, random_state=0).fit(x, y)
    norms = [float(w.weight.norm(dim=1).max()) for block in model.module_.blocks for w in block.layers]
    assert max(norms) <= 0.5 + 1e-9
    bound = model.generalization_bound(x, y)
    assert bound > 1 - model.score(x, y)


def test_several_classes_and_regression():
    digits = load_digits()
    model = AdaNetClassifier(width=32, max_rounds=2, random_state=0).fit(digits.data[:1200], digits.target[:1200])
    assert model.score(digits.data[1200:], digits.target[1200:]) > 0.88
    assert model.predict_proba(digits.data[:5]).sum(1) == pytest.approx(np.ones(5))
    x, y = load_diabetes(return_X_y=True)
    net = AdaNetRegressor(random_state=0, width=32).fit(x[:330], y[:330])
    assert net.score(x[330:], y[330:]) > Ridge().fit(x[:330], y[:330]).score(x[330:], y[330:]) - 0.15


def test_held_out_rows_stop_a_candidate_where_their_loss_is_lowest():
    x, y = make_moons(600, noise=0.5, random_state=0)
    options = {"width": 256, "max_steps": 2000, "max_rounds": 1, "adanet_lambda": 0.0, "random_state": 0}
    model = AdaNetClassifier(**options, validation_fraction=0.3, patience=100).fit(x, y)
    steps = model.history_[1]["candidates"][0]["steps"]
    assert 0 < steps < 2000
    assert steps % 50 == 0
    short = AdaNetClassifier(**options | {"max_steps": steps}, validation_fraction=0.3, patience=100).fit(x, y)
    np.testing.assert_array_equal(short.decision_function(x), model.decision_function(x))  # what came after is gone
    patient = AdaNetClassifier(**options, validation_fraction=0.3, patience=2).fit(x, y)
    assert patient.history_[1]["candidates"][0]["steps"] <= steps


def test_a_killed_search_goes_on(tmp_path):
    x, y = cancer()
    options = {**QUICK, "min_improvement": 0.0, "random_state": 0}
    whole = AdaNetClassifier(**options).fit(x, y)
    file = str(tmp_path / "search.safetensors")
    AdaNetClassifier(**options | {"max_rounds": 1}, checkpoint=file).fit(x, y)
    resumed = AdaNetClassifier(**options, checkpoint=file).fit(x, y)
    np.testing.assert_array_equal(whole.decision_function(x), resumed.decision_function(x))
    with pytest.raises(ms.MeristemError, match="other data"):
        AdaNetClassifier(**options, checkpoint=file).fit(x[:100], y[:100])


def test_replay_and_parallel_candidates_give_one_network():
    x, y = cancer()
    options = {**QUICK, "min_improvement": 0.0, "random_state": 7}
    one, two = AdaNetClassifier(**options).fit(x, y), AdaNetClassifier(**options, n_jobs=2).fit(x, y)
    np.testing.assert_array_equal(one.decision_function(x), two.decision_function(x))


def test_save_load_and_export(tmp_path):
    x, y = cancer()
    model = AdaNetClassifier(**QUICK, random_state=0).fit(x, y)
    model.save(tmp_path / "model")
    loaded = AdaNetClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(model.predict_proba(x), loaded.predict_proba(x))
    assert loaded.summary() == model.summary()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model.module_, (torch.tensor(x[:8]),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    outputs = torch.export.load(buffer).module()(torch.tensor(x))
    np.testing.assert_allclose(outputs[:, 0].numpy(), model.decision_function(x), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "Q"}, "known: base, R, P, D, SD, CVX"),
        ({"optimizer": "lion"}, "known: adam, sgd"),
        ({"loss": "hinge"}, "known: logistic, exponential"),
        ({"width": 0}, "width"),
        ({"adanet_lambda": -1.0}, "at least 0"),
        ({"shrinkage": 0.0}, "above 0 and at most 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ms.MeristemError, match=message):
        AdaNetClassifier(**options).fit(np.eye(4), [0, 1, 0, 1])


def test_a_path_of_prices_ends_where_rounding_hides_the_descent():
    """In float32 the bound of a step fails by rounding near the minimum; the search for a shorter one went on for ever."""
    draw = torch.Generator().manual_seed(0)
    features = torch.relu(torch.randn(300, 40, generator=draw)) * 30
    targets = features @ torch.randn(40, 1, generator=draw) * 1e3
    shares = torch.full((300,), 1 / 300)
    problem = Problem(Squared(), torch.zeros_like(targets), features, targets, shares, 0.0)
    found = list(path(problem, [1e3, 1e1, 1e-1, 1e-3], count=400))
    exact = refit(
        replace(problem, **{n: getattr(problem, n).double() for n in ("offset", "features", "targets", "shares")})
    )
    assert float((found[-1] - exact).abs().max() / exact.abs().max()) < 1e-2
    masses = [float(w.abs().sum()) for w in found]
    assert masses == sorted(masses)


@pytest.mark.parametrize("loss", [Logistic(), Squared()])
def test_a_path_of_prices_reaches_each_minimum(loss):
    draw = torch.Generator().manual_seed(1)
    features = torch.relu(torch.randn(200, 30, generator=draw, dtype=torch.float64))
    targets = torch.sign(features[:, :1] - features[:, 1:2] + 0.3 * torch.randn(200, 1, generator=draw).double())
    shares = torch.full((200,), 1 / 200, dtype=torch.float64)
    problem = Problem(loss, torch.zeros_like(targets), features, targets, shares, 0.0)
    gammas = [1.0, 3e-2, 1e-2, 3e-3]
    for gamma, found in zip(gammas, path(problem, gammas), strict=True):
        now = replace(problem, gamma=gamma)
        least, empty = (float(now.value(w)) for w in (refit(now), now.start()))
        assert float(now.value(found)) - least <= 1e-4 * (empty - least)
        assert bool(found.any()) == (gamma < 1)


def test_blocks_of_a_share_of_the_rows_are_weighted_on_all():
    x, y = load_breast_cancer(return_X_y=True)
    options = {**QUICK, "random_state": 0}
    whole, half = (AdaNetClassifier(**options, subsample=share).fit(x, y) for share in (1.0, 0.5))
    assert not np.array_equal(half.decision_function(x), whole.decision_function(x))
    margins = np.where(y == 1, 1, -1) * half.decision_function(x)
    loss = np.logaddexp(0, 1 - margins).mean()
    assert half.history_[-1]["objective"] == pytest.approx(loss + half.history_[-1]["penalty"], abs=1e-9)
    assert half.score(x, y) > 0.95
    with pytest.raises(ms.MeristemError, match=r"subsample must be above 0 and at most 1, got 0"):
        AdaNetClassifier(subsample=0.0).fit(x, y)


@pytest.mark.parametrize("unit", [1.6e-19, 1e-30, 1e12])
def test_features_in_any_unit_are_learned_alike(unit):
    """Features below 1e-12, such as charges in coulombs, were left as they are, and nothing was learned."""
    x = np.random.default_rng(0).normal(size=(200, 2))
    y = (x[:, 0] > 0).astype(int)

    def learned(x):
        return AdaNetClassifier(**QUICK, random_state=0).fit(x, y)

    plain = learned(x)
    assert plain.score(x, y) > 0.95
    assert np.allclose(plain.predict_proba(x), learned(x * unit).predict_proba(x * unit), atol=1e-3)
    constant = np.column_stack([x, np.full(200, 3.3e8)])
    assert learned(constant).score(constant, y) > 0.95
