"""Networks exported to ONNX and torch.export answer as their estimators do, in runtimes that know nothing of Meristem."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

import meristem as ms
from meristem.adaptive import RBM, AdaNetClassifier, AdaNetRegressor, EnergyNetClassifier, EnergyNetRegressor

SMALL = {"width": 8, "max_steps": 30, "max_rounds": 3, "min_improvement": 0, "shrinkage": 0.5, "random_state": 0}
ENERGY = {"structure_iter": 2, "max_epochs": 3, "random_state": 0}
SIDES = {
    "two classes": (AdaNetClassifier(**SMALL), load_breast_cancer),
    "exponential": (AdaNetClassifier(**SMALL, loss="exponential"), load_breast_cancer),
    "bins": (AdaNetClassifier(**SMALL, embedding="piecewise"), load_iris),
    "CVX": (AdaNetClassifier(variant="CVX", max_steps=20, random_state=0), load_breast_cancer),
    "regression": (AdaNetRegressor(**SMALL, adanet_lambda=1e-4), load_diabetes),
    "energynet": (EnergyNetClassifier(**ENERGY), load_iris),
    "energynet, regression": (EnergyNetRegressor(**ENERGY), load_diabetes),
}
sides = pytest.mark.parametrize("side", SIDES)


def fitted(side):
    estimator, data = SIDES[side]
    x, y = data(return_X_y=True)
    return estimator.fit(x, y), x.astype(np.float32)


def answers(estimator, x):
    return estimator.predict_proba(x) if hasattr(estimator, "classes_") else estimator.predict(x)


@sides
def test_onnx_answers_as_the_estimator(side, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    estimator, x = fitted(side)
    path = estimator.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = answers(estimator, x)
    for rows in (x, x[:1], x[:7]):  # any number of rows
        (found,) = session.run(None, {"x": rows})
        np.testing.assert_allclose(found, wanted[: len(rows)], rtol=1e-3, atol=2e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["estimator"]) == type(estimator).__name__
    if hasattr(estimator, "classes_"):
        assert json.loads(said["classes"]) == estimator.classes_.tolist()


@pytest.mark.parametrize("side", ["bins", "energynet, regression"])
def test_torch_export_answers_as_the_estimator(side, tmp_path):
    estimator, x = fitted(side)
    path = estimator.export(tmp_path / "model.pt2")
    files = {"meristem.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    for rows in (x, x[:3]):
        found = program(torch.as_tensor(rows)).detach().numpy()
        np.testing.assert_allclose(found, answers(estimator, rows), rtol=1e-3, atol=2e-5)
    assert json.loads(files["meristem.json"])["estimator"] == type(estimator).__name__


def test_what_cannot_be_exported_is_said_and_nothing_is_left(tmp_path):
    estimator, _ = fitted("CVX")
    with pytest.raises(ms.MeristemError, match=r"\.onnx or \.pt2, got 'model.bin'"):
        estimator.export(tmp_path / "model.bin")
    estimator.export(tmp_path / "model.pt2")
    with pytest.raises(ms.MeristemError, match="exists"):
        estimator.export(tmp_path / "model.pt2")
    estimator.export(tmp_path / "model.pt2", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_a_graph_that_differs_is_not_kept(tmp_path, monkeypatch):
    estimator, _ = fitted("regression")
    right = estimator._to_answers()
    right.mean += 1.0
    monkeypatch.setattr(type(estimator), "_to_answers", lambda self: right)
    with pytest.raises(ms.MeristemError, match="differs from the estimator"):
        estimator.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_machines_have_no_network_to_export(tmp_path):
    from meristem.adaptive.exporting import export

    machine = RBM(n_components=2, n_iter=1, gibbs_steps=1).fit(np.eye(4))
    with pytest.raises(ms.MeristemError, match="RBM has no network to export"):
        export(machine, tmp_path / "model.onnx")
