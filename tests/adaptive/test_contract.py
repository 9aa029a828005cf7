"""What every estimator owes its users beside scikit-learn's checks: any memory layout, files that forget nothing, options named."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import MinMaxScaler

import meristem as ms
from meristem.adaptive import (
    RBM,
    AdaNetClassifier,
    AdaNetRegressor,
    EnergyNetClassifier,
    EnergyNetRegressor,
    InfiniteRBM,
    InfiniteRBMClassifier,
    OrderedRBM,
)
from meristem.adaptive.targets import counted_rows

pd = pytest.importorskip("pandas")

ADANET = {"width": 4, "max_steps": 30, "max_rounds": 2, "random_state": 0}
ENERGYNET = {"structure_iter": 2, "max_epochs": 3, "random_state": 0}
MACHINE = {"n_iter": 2, "gibbs_steps": 1, "random_state": 0}
EVERY = [
    AdaNetClassifier(**ADANET),
    AdaNetRegressor(**ADANET),
    AdaNetClassifier(**ADANET, variant="CVX"),
    EnergyNetClassifier(**ENERGYNET),
    EnergyNetRegressor(**ENERGYNET),
    RBM(n_components=4, **MACHINE),
    OrderedRBM(n_components=4, **MACHINE),
    InfiniteRBM(**MACHINE),
    InfiniteRBMClassifier(**MACHINE),
]
NAMES = [f"{type(e).__name__}{' CVX' if getattr(e, 'variant', '') == 'CVX' else ''}" for e in EVERY]
every = pytest.mark.parametrize("estimator", EVERY, ids=NAMES)


def rows():
    draw = np.random.default_rng(0)
    x = draw.random((60, 3))
    return pd.DataFrame(x, columns=["a", "b", "c"]), np.where(x.sum(1) > 1.5, 1, 0)


def said(estimator, x):
    return next(getattr(estimator, n)(x) for n in ("predict_proba", "predict", "transform") if hasattr(estimator, n))


@every
def test_rows_of_any_layout(estimator):
    frame, y = rows()
    x = frame.to_numpy()
    whole = said(estimator.fit(x, y), x)
    for laid_out in (x[::-1][::-1], np.asfortranarray(x), np.pad(x, ((0, 0), (0, 2)))[:, :3]):
        np.testing.assert_allclose(said(estimator, laid_out), whole, rtol=1e-6)
    np.testing.assert_allclose(said(estimator, x[::-1]), whole[::-1], rtol=1e-6)
    backwards = np.ascontiguousarray(x[::-1])[::-1], np.ascontiguousarray(y[::-1])[::-1]
    np.testing.assert_allclose(said(estimator.fit(*backwards), x), whole, rtol=1e-6)


@every
def test_files_keep_names_and_structure(estimator, tmp_path):
    frame, y = rows()
    estimator.fit(frame, y)
    estimator.save(tmp_path / "model")
    loaded = type(estimator).load(tmp_path / "model")
    np.testing.assert_array_equal(said(loaded, frame), said(estimator, frame))
    assert loaded.feature_names_in_.tolist() == ["a", "b", "c"]
    assert loaded.n_features_in_ == 3
    with pytest.raises(ValueError, match="feature names"):
        said(loaded, frame[["c", "b", "a"]])
    if hasattr(estimator, "summary"):
        assert loaded.summary() == estimator.summary()
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("estimator", [e for e in EVERY if hasattr(e, "device")])
def test_saved_on_a_device_that_is_not_here(estimator, tmp_path):
    frame, y = rows()
    estimator.fit(frame, y).save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["options"]["device"] = "cuda:77"  # no machine has so many
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    loaded = type(estimator).load(tmp_path / "model")
    assert loaded.device == "cpu"
    np.testing.assert_array_equal(said(loaded, frame), said(estimator, frame))


def test_numpy_numbers_are_options_too(tmp_path):
    frame, y = rows()
    AdaNetClassifier(**{**ADANET, "width": np.int64(4)}).fit(frame, y).save(tmp_path / "model")
    assert AdaNetClassifier.load(tmp_path / "model").width == 4


@pytest.mark.parametrize(
    ("weights", "counted"),
    [
        ([1, 1, 1, 1], 4),
        ([0.25, 0.25, 0.25, 0.25], 4),
        ([2, 0, 6, 4], 6),  # once, three times, twice
        ([1e-3, 0, 3e-3, 2e-3], 6),
        ([0.3, 1.1, 0.7, 2.2], 4),
        ([1e-9, 1, 1, 1], 4),
    ],
)
def test_weights_are_relative(weights, counted):
    assert counted_rows(np.array(weights, dtype=float)) == counted


def test_a_common_factor_of_the_weights_changes_nothing():
    x, y = load_breast_cancer(return_X_y=True)
    options = {"width": 16, "max_steps": 100, "max_rounds": 3, "min_improvement": 0.0, "random_state": 0}
    plain = AdaNetClassifier(**options).fit(x, y)
    assert len(plain.module_.blocks) == 3
    for factor in (1 / len(x), 7.0):
        other = AdaNetClassifier(**options).fit(x, y, np.full(len(x), factor))
        np.testing.assert_allclose(other.decision_function(x), plain.decision_function(x), rtol=1e-6, atol=1e-9)


def test_rounding_outside_the_unit_interval_is_no_error():
    x = MinMaxScaler().fit_transform(load_breast_cancer().data[:100])
    x[3, 4] = 1.0000000000000002
    x[5, 6] = -1e-17
    machine = InfiniteRBM(**MACHINE).fit(x)
    np.testing.assert_array_equal(machine.transform(x), machine.transform(x.clip(0, 1)))
    with pytest.raises(ms.MeristemError, match=r"take values in \[0, 1\], found 0 to 1.01"):
        machine.transform(np.where(x == 1, 1.01, x.clip(0, 1)))
    net = EnergyNetClassifier(**ENERGYNET).fit(x, load_breast_cancer().target[:100])
    assert net.visible_ == "binary"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdaNetClassifier, {"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        (AdaNetClassifier, {"adanet_lambda": float("inf")}, "adanet_lambda must be at least 0, got inf"),
        (AdaNetClassifier, {"standardize": "false"}, "standardize is true or false, got 'false'"),
        (AdaNetClassifier, {"width": 2.5}, "width is a whole number, got 2.5"),
        (AdaNetRegressor, {"max_depth": 0}, "max_depth must be at least 1, got 0"),
        (AdaNetRegressor, {"validation_fraction": 1.0}, "validation_fraction must be at least 0 and below 1, got 1.0"),
        (EnergyNetClassifier, {"quantile": 0}, "quantile must be above 0 and at most 1, got 0"),
        (EnergyNetRegressor, {"batch_size": True}, "batch_size is a whole number, got True"),
        (EnergyNetRegressor, {"device": "gpu"}, "device='gpu' cannot be used here"),
        (RBM, {"n_components": 0}, "n_components must be at least 1, got 0"),
        (InfiniteRBM, {"initial_visible_bias": "ones"}, "known: data, zeros"),
        (InfiniteRBMClassifier, {"generative_weight": -1.0}, "generative_weight must be at least 0, got -1.0"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    x, y = rows()
    with pytest.raises(ms.MeristemError, match=message):
        kind(**options).fit(x, y)


def test_generator_state_is_untouched():
    """Loading and predicting draw nothing from torch's global generator."""
    frame, y = rows()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    EVERY[0].fit(frame, y).predict(frame)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", [AdaNetClassifier, EnergyNetClassifier])
def test_predictions_take_the_memory_of_some_rows(kind, monkeypatch):
    frame, y = rows()
    x = frame.to_numpy()
    model = kind(**(ADANET if kind is AdaNetClassifier else ENERGYNET)).fit(x, y)
    whole = model.predict_proba(x)
    seen = []
    network = model.module_ if kind is AdaNetClassifier else model.network_
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    monkeypatch.setattr("meristem.adaptive.tensors.PIECE", 25)
    np.testing.assert_allclose(model.predict_proba(x), whole, rtol=1e-12)
    assert seen == [25, 25, 10]
