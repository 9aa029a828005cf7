"""Export of learned networks as ONNX and with torch.export. Each export is compared with the estimator before
it is kept.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from meristem.errors import MeristemError

SUFFIXES = (".onnx", ".pt2")
TRIED_ROWS = 64
AGREES = 1e-3  # of probabilities, or of targets with deviation 1: float32 against float64


class Answering(nn.Module):
    """Inputs to predictions, as in `predict_proba` or `predict`: (n, inputs) -> (n, classes), or (n,) in
    regression.

    Args:
        network: the module from scaled inputs to outputs.
        mean, scale: the mean and the scale of the inputs.
        to_answers: the module from outputs to predictions.
    """

    def __init__(self, network: nn.Module, mean: Tensor, scale: Tensor, to_answers: nn.Module):
        super().__init__()
        self.network, self.to_answers = network, to_answers
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_answers(self.network((x - self.get_buffer("mean")) / self.get_buffer("scale")))


class Unscaled(nn.Module):
    """Outputs (n, 1) for a target of mean 0 and standard deviation 1, in the scale of the target (n,)."""

    def __init__(self, mean: float, scale: float):
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0] * self.scale + self.mean


class Probabilities(nn.Module):
    """Outputs of a two-class loss or of softmax, as probabilities (n, classes)."""

    def __init__(self, loss: Any = None):
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs, 1) if self.loss is None else self.loss.probabilities(outputs)


def export(estimator: Any, out: str | Path, overwrite: bool = False) -> Path:
    """Write the function of a fitted AdaNet or EnergyNet estimator, in float32, for a runtime without
    Meristem.

    The graph reads `x` (n, inputs) for any n, and returns `probabilities` (n, classes) or `prediction` (n,).
    The names of features and classes are in ONNX's metadata, or in torch.export's `extra_files`
    ("meristem.json").

    Args:
        estimator: a fitted AdaNet or EnergyNet classifier or regressor.
        out: a file name that ends in .onnx or .pt2.
        overwrite: replace `out` if it exists.

    Returns:
        The path of the file.

    Raises:
        MeristemError: for another ending, for an estimator without a network, if `out` exists, if ONNX is not
            installed, or if the graph and the estimator give different predictions.
    """
    out = Path(out)
    check_is_fitted(estimator)
    if not hasattr(estimator, "_answering"):
        raise MeristemError(f"{type(estimator).__name__} has no network to export; AdaNet and EnergyNet estimators do")
    if out.suffix not in SUFFIXES:
        raise MeristemError(f"export writes {' or '.join(SUFFIXES)}, got {out.name!r}")
    if out.exists() and not overwrite:
        raise MeristemError(f"{out} exists; choose another place or pass overwrite=True")
    module = estimator._answering().float().cpu().eval()
    x = _tried_rows(estimator)
    partial = out.with_name(f".partial-{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        said = _said(estimator)
        answers = (
            _write_onnx(module, x, partial, said) if out.suffix == ".onnx" else _write_pt2(module, x, partial, said)
        )
        _check(estimator, x.numpy(), answers)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _tried_rows(estimator: Any) -> Tensor:
    """Fixed rows around the mean of the training data (n, inputs), float32, so that an export can be
    repeated.
    """
    module = getattr(estimator, "module_", None)
    mean, scale = (
        (estimator.mean_, estimator.scale_)
        if module is None
        else (module.get_buffer("mean").numpy(), module.get_buffer("scale").numpy())
    )
    draw = np.random.default_rng(0).normal(size=(TRIED_ROWS, len(mean)))
    return torch.as_tensor(mean + scale * draw, dtype=torch.float32)


def _said(estimator: Any) -> dict[str, Any]:
    names = getattr(estimator, "feature_names_in_", None)
    said: dict[str, Any] = {"estimator": type(estimator).__name__}
    said["features"] = None if names is None else list(map(str, names))
    if is_classifier(estimator):
        said["classes"] = estimator.classes_.tolist()
    return said


def _write_onnx(module: nn.Module, x: Tensor, out: Path, said: dict[str, Any]) -> np.ndarray:
    """Write the graph, and return its predictions by onnxruntime."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch uses it to write
    except ImportError as error:
        raise MeristemError(f"ONNX needs {error.name}: pip install 'meristem-nn[onnx]'") from None
    name = "probabilities" if "classes" in said else "prediction"
    logger, before = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own converter
            program = torch.onnx.export(
                module, (x,), input_names=["x"], output_names=[name],
                dynamic_shapes=({0: torch.export.Dim("rows")},), dynamo=True, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(before)
    assert program is not None
    model = program.model_proto
    for key, value in said.items():
        onnx.helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, key: json.dumps(value)})
    onnx.checker.check_model(model)
    out.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], {"x": x.numpy()})[0])


def _write_pt2(module: nn.Module, x: Tensor, out: Path, said: dict[str, Any]) -> np.ndarray:
    """Write the program, read it again, and return its predictions."""
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, out, extra_files={"meristem.json": json.dumps(said)})
    with torch.no_grad():
        return torch.export.load(out).module()(x).numpy()


def _check(estimator: Any, x: np.ndarray, answers: np.ndarray) -> None:
    """Compare the predictions of the written graph and of the estimator.

    Raises:
        MeristemError: if they differ.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        wanted = estimator.predict_proba(x) if is_classifier(estimator) else estimator.predict(x)
    scale = 1.0 if is_classifier(estimator) else estimator.target_scale_
    gap = float(np.abs(np.asarray(wanted) - answers).max()) / scale
    size = max(1.0, float(np.abs(wanted).max()) / scale)
    if not gap <= AGREES * size:
        raise MeristemError(f"the exported graph differs from the estimator by {gap:.2g}; nothing is written")
