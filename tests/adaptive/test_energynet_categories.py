"""Categorical visible units of EnergyNet: which columns they are, what the first machine reads, what it says of dependences, files."""

import numpy as np
import pytest
import torch

import meristem as ms
from meristem.adaptive import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.energynet.columns import Columns, one_hot_groups
from meristem.adaptive.rbm.visible import LabelledVisible

QUICK = {"structure_iter": 5, "max_epochs": 10, "random_state": 0}


def people(rows=400):
    """A number, a job of three, a flag, a town of two that follows the job; whether the number is high."""
    draw = np.random.default_rng(0)
    job = draw.choice(3, rows, p=[0.6, 0.3, 0.1])
    number = draw.normal(size=rows)
    town = np.eye(2)[(job == 0).astype(int)]
    x = np.hstack([number[:, None], np.eye(3)[job], draw.integers(2, size=(rows, 1)), town])
    return x, (number + (job == 1) > 0).astype(int)


def test_one_hot_features_are_found_where_they_are():
    x, _ = people()
    assert one_hot_groups(x) == [[1, 2, 3], [5, 6]]
    assert one_hot_groups(x[:, [0, 4]]) == []
    assert one_hot_groups(np.hstack([x, 1 - x[:, 5:6]])) == [[1, 2, 3], [5, 6]]  # three columns, of which two may be on
    x[0, 1:4] = 0  # a row of no category
    assert one_hot_groups(x) == [[5, 6]]


def test_the_machine_reads_plain_features_once_and_groups_last():
    x = torch.as_tensor(people()[0])
    columns = Columns.of(torch.cat([x, x[:, :1]], 1), [[1, 2, 3], [5, 6]])
    assert columns.read.tolist() == [0, 4, 1, 2, 3, 5, 6]
    assert columns.which.tolist() == [0, 2, 3, 4, 1, 5, 6, 0]  # the last feature is a copy of the first
    assert columns.sizes == (3, 2)


@pytest.mark.parametrize("visible", ["gaussian", "auto"])
def test_categories_are_units_of_the_first_machine_only(visible):
    x, y = people()
    net = EnergyNetClassifier(**QUICK, visible=visible, categories="auto").fit(x, y)
    kind = net.layers_[0].machine.visible
    assert isinstance(kind, LabelledVisible)
    assert (kind.num_labels, kind.inputs.num_labels) == (2, 3)
    assert net.categories_ == (3, 2)
    assert "2 categorical units" in net.summary().splitlines()[0]
    np.testing.assert_allclose(net.mean_[1:4], 0)  # not standardised
    assert net.mean_[0] == pytest.approx(x[:, 0].mean())


def test_what_the_last_features_are_may_be_said():
    x, y = people()
    order = [0, 4, 1, 2, 3, 5, 6]
    said = EnergyNetClassifier(**QUICK, categories=(3, 2)).fit(x[:, order], y)
    found = EnergyNetClassifier(**QUICK, categories="auto").fit(x[:, order], y)
    np.testing.assert_array_equal(said.predict_proba(x[:, order]), found.predict_proba(x[:, order]))
    moved = EnergyNetClassifier(**QUICK, categories="auto").fit(x, y)  # the same machine, whatever the columns' order
    assert moved.layers_[0].gain == pytest.approx(said.layers_[0].gain, rel=1e-5)


def test_dependent_categories_are_more_likely_than_independent_units():
    x, y = people(800)
    x = x[:, [1, 2, 3, 5, 6]]  # the town follows the job: entropy 0.898 nats
    options = {**QUICK, "structure_iter": 60}
    grouped = EnergyNetClassifier(**options, categories="auto").fit(x, y).layers_[0].gain
    apart = EnergyNetClassifier(**options).fit(x, y).layers_[0].gain
    assert apart < grouped < -0.75
    assert grouped == pytest.approx(-0.9, abs=0.12)


def test_files_keep_the_units(tmp_path):
    x, y = people()
    net = EnergyNetRegressor(**QUICK, categories="auto").fit(x, y)
    net.save(tmp_path / "net")
    loaded = EnergyNetRegressor.load(tmp_path / "net")
    np.testing.assert_array_equal(loaded.predict(x), net.predict(x))
    assert loaded.summary() == net.summary()
    assert loaded.layers_[0].machine.visible == net.layers_[0].machine.visible


def test_groups_that_are_none_are_named():
    x, y = people()
    with pytest.raises(ms.MeristemError, match=r"categorical unit 1, row 1: .*exactly one of its 3 columns is 1"):
        EnergyNetClassifier(categories=(3, 4)).fit(x - 0.5, y)
    with pytest.raises(ms.MeristemError, match="categories are sizes of at least 2, such as \\(3, 4\\), got 'all'"):
        EnergyNetClassifier(categories="all").fit(x, y)
