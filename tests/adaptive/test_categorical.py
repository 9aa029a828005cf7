"""Categorical visible units: exact probabilities by enumeration, what is drawn and learned, what is refused."""

import itertools

import numpy as np
import pytest
from sklearn.base import clone

import meristem as ms
from meristem.adaptive import RBM, InfiniteRBM, InfiniteRBMClassifier

SIZES = (3, 2)


def states():
    """All states of one binary unit and two categorical ones (12, 6)."""
    groups = itertools.product([[0.0], [1.0]], np.eye(3).tolist(), np.eye(2).tolist())
    return np.array([list(itertools.chain(*group)) for group in groups])


def test_probabilities_add_up_to_one_over_the_states_that_exist():
    draw = np.random.default_rng(0)
    machine = RBM.from_parameters(draw.normal(size=(4, 6)), draw.normal(size=4), draw.normal(size=6), categories=SIZES)
    assert np.exp(machine.score_samples(states())).sum() == pytest.approx(1, abs=1e-12)
    # the joint energy by hand: p(v) ~ sum over h of exp(v.c + h.b + h W v)
    w, b, c = machine.components_, machine.intercept_hidden_, machine.intercept_visible_
    hidden = np.array(list(itertools.product([0, 1], repeat=4)))
    joint = np.exp(states() @ c + (hidden @ w @ states().T + (hidden @ b)[:, None])).sum(0)
    np.testing.assert_allclose(np.exp(machine.score_samples(states())), joint / joint.sum(), rtol=1e-10)


def dependent(rows=600):
    """A binary unit, and two categorical ones of which the second follows from the first; values at 0.6, 0.3, 0.1."""
    draw = np.random.default_rng(1)
    first = draw.choice(3, rows, p=[0.6, 0.3, 0.1])
    return np.hstack([draw.integers(2, size=(rows, 1)), np.eye(3)[first], np.eye(2)[(first == 0).astype(int)]])


@pytest.mark.parametrize(("kind", "rate"), [(RBM, 0.1), (InfiniteRBM, 0.03)])
def test_dependences_between_categories_are_learned(kind, rate):
    x = dependent().astype(np.float32)
    machine = kind(n_components=4, categories=SIZES, n_iter=40, learning_rate=rate, random_state=0).fit(x)
    free = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)) + np.log(2)  # nats: the second follows
    apart = free - (0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert -apart + 0.3 < machine.score(x) < -free + 0.05
    known = states().astype(np.float32)
    follows = float(np.exp(machine.score_samples(known))[known[:, 1] == known[:, 5]].sum())
    assert follows > 0.52 + 0.2  # 0.6 x 0.6 + 0.4 x 0.4 if the two knew nothing of each other
    drawn = machine.sample(400, gibbs_steps=100)
    np.testing.assert_array_equal(drawn[:, 1:4].sum(1), 1)
    np.testing.assert_array_equal(drawn[:, 4:].sum(1), 1)
    assert (drawn[:, 1] == drawn[:, 5]).mean() == pytest.approx(follows, abs=0.07)  # three standard deviations


def test_biases_start_at_the_frequencies():
    x = dependent()
    machine = RBM(n_components=1, categories=SIZES, n_iter=0, random_state=0).fit(x)
    np.testing.assert_allclose(np.exp(machine.intercept_visible_[1:4]), x[:, 1:4].mean(0), rtol=1e-6)


def test_numbers_beside_categories_and_files(tmp_path):
    x = dependent()
    x[:, 0] = np.random.default_rng(2).normal(3, 2, len(x))
    machine = RBM(n_components=3, visible="gaussian", categories=SIZES, n_iter=3, random_state=0).fit(x)
    assert machine.intercept_visible_[0] == pytest.approx(3, abs=0.5)
    machine.save(tmp_path / "m")
    loaded = RBM.load(tmp_path / "m")
    np.testing.assert_allclose(loaded.score_samples(x), machine.score_samples(x))
    assert tuple(clone(machine).categories) == SIZES


def test_a_classifier_reads_categories():
    x = dependent()
    y = np.where(x[:, 1] == 1, "a", "b")
    model = InfiniteRBMClassifier(categories=SIZES, n_iter=15, gibbs_steps=1, learning_rate=0.1, random_state=0).fit(
        x, y
    )
    assert model.score(x, y) > 0.98


@pytest.mark.parametrize(
    ("categories", "change", "message"),
    [
        ((3, 2), lambda x: x[:, 1:4].fill(0), r"categorical unit 1, row 1: \[0.0, 0.0, 0.0\]"),
        ((3, 2), lambda x: x[3, 4:].fill(1), "categorical unit 2, row 4"),
        ((3, 9), lambda x: None, "need 12 columns, found 6"),
        ((3, 1), lambda x: None, "sizes of at least 2"),
    ],
)
def test_what_is_no_category_is_named(categories, change, message):
    x = dependent(20)
    change(x)
    with pytest.raises(ms.MeristemError, match=message):
        RBM(categories=categories).fit(x)
