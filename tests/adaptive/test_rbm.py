"""The estimators: growth and shrinkage in training, resume, scikit-learn's contract, files, errors."""

import numpy as np
import pytest
import torch
from infinite_rbm import bars
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import meristem as ms
from meristem.adaptive import RBM, InfiniteRBM, InfiniteRBMClassifier, OrderedRBM
from meristem.adaptive.rbm.infinite import PUBLISHED
from meristem.adaptive.rbm.order import Infinite
from meristem.adaptive.rbm.training import Learner, Options
from meristem.adaptive.rbm.visible import BinaryVisible


@parametrize_with_checks(
    [
        RBM(n_components=8, visible="gaussian", n_iter=2, gibbs_steps=1),
        OrderedRBM(n_components=8, visible="gaussian", n_iter=2, gibbs_steps=1),
        InfiniteRBM(visible="gaussian", n_iter=2, gibbs_steps=1),
        InfiniteRBMClassifier(visible="gaussian", n_iter=30, gibbs_steps=1, learning_rate=0.1),
    ]
)
def test_scikit_learn_agrees(estimator, check):
    check(estimator)


def learner(**options):
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(1, 144), torch.zeros(144)
    return Learner(*start, Infinite(), BinaryVisible(), Options(**options), generator, particles=64)


def test_growth_never_changes_the_free_energy():
    subject, v = learner(), torch.as_tensor(bars(4))
    for step in range(30):
        subject.update(v[step * 64 : (step + 1) * 64])
        before, units = subject.machine.free_energy(v).double(), subject.num_hidden
        subject.append()
        assert subject.num_hidden == units + 1
        torch.testing.assert_close(subject.machine.free_energy(v).double(), before, atol=2e-4, rtol=0)


def test_at_first_every_update_adds_a_unit():
    subject, v = learner(), torch.as_tensor(bars(4))
    for step in range(20):
        subject.update(v[step * 64 : (step + 1) * 64])
    assert subject.num_hidden == 21


def test_growth_stops_where_it_is_told():
    subject, v = learner(max_components=5), torch.as_tensor(bars(4))
    for step in range(20):
        subject.update(v[step * 64 : (step + 1) * 64])
    assert subject.num_hidden == 5


def test_l1_makes_units_zero_and_zero_units_leave():
    model = InfiniteRBM(l1=10.0, n_iter=2, gibbs_steps=1, random_state=0).fit(bars(4))
    assert model.n_components_ <= 2
    assert not model.components_.any()


def test_regrouping_reorders_units_with_their_state():
    subject, v = learner(), torch.as_tensor(bars(4))
    for step in range(10):
        subject.update(v[step * 64 : (step + 1) * 64])
    before = subject.state()
    subject.regroup(8)
    after = subject.state()
    order = torch.cdist(after["weights"], before["weights"]).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    assert order.tolist() != list(range(len(order)))
    assert torch.equal(after["weight_sum"], before["weight_sum"][order])
    assert order[8:].tolist() == list(range(8, len(order)))


@pytest.mark.parametrize("kind", [RBM, OrderedRBM, InfiniteRBM])
def test_training_learns_what_independent_pixels_cannot_say(kind):
    """Nine pixels of each of four strips: all that independent pixels know is 8.28 nats a row, and the truth is 5.09."""
    data = bars(4)[:, ::4]
    share = data.mean(0)
    independent = float((share * np.log(share) + (1 - share) * np.log(1 - share)).sum())
    assert independent == pytest.approx(-8.28, abs=0.01)
    options = PUBLISHED if kind is InfiniteRBM else {"n_components": 12}
    options = options | {"learning_rate": 0.2, "gibbs_steps": 2, "random_state": 0}
    before, after = (kind(**options | {"n_iter": passes}).fit(data).score(data) for passes in (0, 20))
    assert before == pytest.approx(independent, abs=0.05)
    assert independent + 1.0 < after < -5.0


def test_the_defaults_of_the_infinite_machine_learn_a_density_and_features():
    """What a pipeline with nothing said gets: pixels explained beyond independence, and features that tell the strips apart."""
    data = bars(4)[:400, ::4]
    machine = InfiniteRBM(random_state=0).fit(data)
    assert -8.28 + 1.0 < machine.score(data) < -5.09
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    scores = []
    for kind in (InfiniteRBM(random_state=0), BernoulliRBM(random_state=0)):
        features = make_pipeline(kind, LogisticRegression(max_iter=2000)).fit(x[:400], y[:400])
        scores.append(features.score(x[400:1200], y[400:1200]))
    assert scores[0] > scores[1] - 0.01, scores


@pytest.mark.parametrize(("rows", "passes"), [(200, 40), (4000, 16), (60000, 10)])
def test_passes_follow_the_rows(rows, passes):
    assert InfiniteRBM()._passes(rows) == passes
    assert InfiniteRBM(n_iter=3)._passes(rows) == 3


def test_width_rises_with_the_number_of_factors():
    counts = [1, 2, 4, 8, 16]
    widths = []
    for count in counts:
        data = bars(count)
        options = {"beta": 2.0, "penalty": "constant", "learning_rate": 0.05, "n_iter": 20, "gibbs_steps": 2}
        options = PUBLISHED | options
        widths.append(InfiniteRBM(**options, random_state=0).fit(data).effective_components(data))
    assert spearmanr(counts, widths).statistic > 0.9, widths


def test_a_killed_fit_goes_on(tmp_path):
    data, file = bars(4), tmp_path / "state.safetensors"
    options = {"gibbs_steps": 1, "random_state": 0}
    whole = InfiniteRBM(n_iter=4, **options).fit(data)
    InfiniteRBM(n_iter=2, checkpoint=str(file), **options).fit(data)
    resumed = InfiniteRBM(n_iter=4, checkpoint=str(file), **options).fit(data)
    np.testing.assert_array_equal(whole.components_, resumed.components_)
    assert len(resumed.history_) == 4
    with pytest.raises(ms.MeristemError, match="other data"):
        InfiniteRBM(n_iter=4, checkpoint=str(file), **options).fit(data[:100])


def test_a_pipeline_and_names():
    digits = load_digits()
    model = InfiniteRBM(n_iter=1, gibbs_steps=1, random_state=0)
    features = make_pipeline(model).fit_transform((digits.data / 16).astype(np.float32))
    assert features.shape == (1797, model.n_components_)
    assert features.dtype == np.float32
    assert model.get_feature_names_out()[:2].tolist() == ["infiniterbm0", "infiniterbm1"]


def test_the_classifier_learns_digits():
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target
    model = InfiniteRBMClassifier(n_iter=15, gibbs_steps=1, random_state=2).fit(x[:1200], y[:1200])
    assert model.score(x[1200:], y[1200:]) > 0.85
    assert model.transform(x[:3]).shape == model.posterior(x[:3]).shape == (3, model.n_components_)
    assert np.isfinite(model.free_energy(x[:3])).all()


def test_save_and_load_without_a_pickle(tmp_path):
    data = bars(4)
    model = InfiniteRBM(n_iter=1, gibbs_steps=1, beta=1.5, random_state=0).fit(data)
    model.save(tmp_path / "model")
    assert sorted(p.suffix for p in (tmp_path / "model").glob("[!.]*")) == [".json", ".safetensors"]
    again = InfiniteRBM.load(tmp_path / "model")
    np.testing.assert_array_equal(model.transform(data), again.transform(data))
    with pytest.raises(ms.MeristemError, match="exists"):
        model.save(tmp_path / "model")
    with pytest.raises(ms.MeristemError, match="holds an InfiniteRBM"):
        RBM.load(tmp_path / "model")
    with pytest.raises(ms.MeristemError, match="no saved estimator"):
        RBM.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visible": "poisson"}, "known: binary, gaussian"),
        ({"initial_visible_bias": "mean"}, "known: data, zeros"),
        ({"n_components": 0}, "n_components"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ms.MeristemError, match=message):
        RBM(**options).fit(bars(2)[:10])


def test_values_outside_the_unit_interval_are_refused():
    with pytest.raises(ms.MeristemError, match=r"found -1 to 3; scale the data"):
        RBM().fit(np.array([[-1.0, 3.0], [0.0, 1.0]]))
