"""Certificates: the measured proof that two networks compute the same function.

How the tolerance is chosen. A right growth differs from its source by rounding only; a wrong one (a head out of place, a
forgotten factor) differs by a good part of the logits' own spread, 1e-2 and more. Both networks are run in float64 where
the architecture can (many still compute norms and rotary tables in float32, which leaves about 1e-7 each), else in
float32, as are networks above `FLOAT64_LIMIT` parameters, whose float64 copies might not fit in memory. 1e-5 of the
largest logit lies at least two orders of magnitude from either; in pure float32 rounding piles up with depth and the
tolerance is 1e-4.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

FLOAT64_LIMIT = 500_000_000
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


@dataclass(frozen=True)
class Certificate:
    """What was measured. `relative_error` is max |dlogit| / max |logit|; `holds` compares it with `tolerance`."""

    absolute_error: float
    relative_error: float
    kl_divergence: float  # mean over positions of KL(small || big), nats
    top1_agreement: float  # share of positions with the same argmax
    dtype: str  # in which both were computed
    tolerance: float
    inputs: str
    stored_dtype: str
    stored_relative_error: float | None = None  # the same in the stored dtype, where that is a half precision

    @property
    def holds(self) -> bool:
        return self.relative_error <= self.tolerance

    def summary(self) -> str:
        return (
            f"relative logit error {self.relative_error:.1e} (tolerance {self.tolerance:.0e}, {self.dtype}), "
            f"KL {self.kl_divergence:.1e}, top-1 agreement {self.top1_agreement:.1%}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def verify(
    small: nn.Module,
    big: nn.Module,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    stored: Certificate | None = None,
) -> Certificate:
    """Run both networks on the same inputs, in evaluation mode and high precision, and compare their outputs.

    Args:
        small, big: two networks with the same inputs and outputs; neither is changed.
        inputs: keyword arguments of forward; random ones by default.
        stored: a certificate of the same pair in a lower stored dtype, to be quoted.

    Raises:
        MeristemError: if the inputs cannot be guessed, or the outputs have different shapes.
    """
    from meristem.anatomy.inputs import example_inputs
    from meristem.errors import MeristemError

    described = "given" if inputs is not None else "random"
    inputs = dict(inputs) if inputs is not None else example_inputs(small)
    described += ": " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    original = next(small.parameters()).dtype
    a, b, dtype = _logits_in_high_precision(small, big, inputs)
    if a.shape != b.shape:
        raise MeristemError(f"the outputs cannot be compared: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    error = float((a - b).abs().max())
    scale = float(a.abs().max())
    return Certificate(
        absolute_error=error,
        relative_error=error / scale if scale else error,
        kl_divergence=float((log_a.exp() * (log_a - log_b)).sum(-1).mean()),
        top1_agreement=float((a.argmax(-1) == b.argmax(-1)).double().mean()),
        dtype=str(dtype).removeprefix("torch."),
        tolerance=TOLERANCE[dtype],
        inputs=described,
        stored_dtype=(stored.stored_dtype if stored else str(original).removeprefix("torch.")),
        stored_relative_error=stored.relative_error if stored else None,
    )


def _logits_in_high_precision(
    small: nn.Module, big: nn.Module, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor, torch.dtype]:
    count = sum(parameter.numel() for parameter in big.parameters())
    for dtype in (torch.float64, torch.float32) if count <= FLOAT64_LIMIT else (torch.float32,):
        try:
            return _logits(small, inputs, dtype), _logits(big, inputs, dtype), dtype
        except RuntimeError:  # an operator without a float64 kernel (grouped_mm)
            if dtype == torch.float32:
                raise
    raise AssertionError


def _logits(model: nn.Module, inputs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    from meristem.anatomy.inputs import logits_of

    if {parameter.dtype for parameter in model.parameters()} != {dtype}:
        return logits_of(copy.deepcopy(model).to(dtype).eval(), inputs)
    was_training = model.training
    try:
        return logits_of(model.eval(), inputs)
    finally:
        model.train(was_training)
