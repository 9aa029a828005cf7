"""The pictures show what they say: as many filters, units and blocks as there are."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from meristem.adaptive import AdaNetClassifier
from meristem.adaptive.pictures import (
    filters,
    network_of_blocks,
    posterior_over_units,
    save_figure,
    width_over_training,
)


def test_filters_lie_in_their_order():
    weights = np.arange(20 * 6, dtype=float).reshape(20, 6)
    image = filters(weights, (2, 3), columns=4).axes[0].images[0].get_array()
    assert image.shape == (5 * 3 - 1, 4 * 4 - 1)
    np.testing.assert_array_equal(np.asarray(image)[3:5, 4:7], weights[5].reshape(2, 3))


def test_posterior_and_width():
    figure = posterior_over_units(np.tile([0.5, 0.25, 0.25], (4, 1)))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 0.25, 0.25]
    assert figure.axes[1].lines[0].get_ydata()[-1] == pytest.approx(1)
    history = [{"n_components": 3, "mean_z": 2.5}, {"n_components": 4, "mean_z": 2.0}]
    lines = width_over_training([history, history]).axes[0].lines
    assert len(lines) == 4
    assert lines[0].get_ydata().tolist() == [3, 4]


def test_blocks(tmp_path):
    x, y = make_moons(100, noise=0.1, random_state=0)
    model = AdaNetClassifier(width=4, max_rounds=3, max_steps=100, min_improvement=0.0, random_state=0).fit(x, y)
    figure = network_of_blocks(model.module_)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels.count("4 units") == sum(block.depth for block in model.module_.blocks)
    assert {"2 inputs", "output"} <= set(labels)
    save_figure(figure, tmp_path / "net.png")
    assert (tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    empty = type(model.module_)(torch.zeros(2), torch.ones(2), 1)
    assert "output" in [text.get_text() for text in network_of_blocks(empty).axes[0].texts]
