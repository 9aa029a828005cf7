"""Where AdaNet computes: every tensor follows `device`, and a device that cannot be used is named before anything is learned."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

import meristem as ms
from meristem.adaptive import RBM, AdaNetClassifier, AdaNetRegressor
from meristem.adaptive.adanet.network import AdaNetModule

QUICK = {"width": 4, "max_steps": 20, "max_rounds": 2, "random_state": 0}
WAYS = {
    "table": {"adanet_lambda": "auto", "embedding": "auto", "batch_size": 32},
    "dropout": {"variant": "D", "batch_size": 32, "max_depth": 2},
    "deviation": {"variant": "SD"},
    "held out": {"validation_fraction": 0.2},
    "nodes": {"variant": "CVX"},
}


def rows():
    x, y = load_breast_cancer(return_X_y=True)
    return x[:200], y[:200]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_made_on_torchs_default_device(way):
    x, y = rows()
    options = {**QUICK, **WAYS[way]}
    wanted = AdaNetClassifier(**options).fit(x, y).predict_proba(x)
    with torch.device("meta"):  # where a tensor that does not name its device would lose its numbers
        found = AdaNetClassifier(**options, device="cpu").fit(x, y).predict_proba(x)
    np.testing.assert_array_equal(found, wanted)


def test_a_device_that_is_not_here_is_named_before_anything_is_learned():
    x, y = rows()
    with pytest.raises(ms.MeristemError, match=r"device='cuda:77' cannot be used here: \S"):
        AdaNetClassifier(**QUICK, device="cuda:77").fit(x, y)
    with pytest.raises(ms.MeristemError, match=r"device='warp' cannot be used here: .*warp"):
        AdaNetRegressor(**QUICK, device="warp").fit(x, y)


@pytest.mark.parametrize("estimator", [AdaNetClassifier(device="meta"), RBM(device="meta")])
def test_meta_keeps_no_numbers(estimator):
    x, y = rows()
    with pytest.raises(ms.MeristemError, match="device='meta' keeps no numbers"):
        estimator.fit(x / x.max(), y)


def test_saved_on_a_device_that_is_not_here_loads_on_the_cpu(tmp_path):
    x, y = rows()
    model = AdaNetClassifier(**QUICK).fit(x, y)
    model.device = "cuda:77"
    model.save(tmp_path / "model")
    loaded = AdaNetClassifier.load(tmp_path / "model")
    assert loaded.device == "cpu"
    model.device = "cpu"
    np.testing.assert_array_equal(loaded.predict_proba(x), model.predict_proba(x))
    assert isinstance(loaded.module_, AdaNetModule)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_finds_what_the_cpu_finds():
    x, y = rows()
    for way in ("table", "held out", "nodes"):
        options = {**QUICK, **WAYS[way]}
        here = AdaNetClassifier(**options).fit(x, y)
        there = AdaNetClassifier(**options, device="cuda").fit(x, y)
        assert next(there.module_.parameters()).device.type == "cuda"
        np.testing.assert_allclose(there.predict_proba(x), here.predict_proba(x), atol=0.02)
