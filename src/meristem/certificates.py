"""Certificates: the measured proof that two networks compute the same function.

What is measured. Both networks run on the same inputs with the weights that are stored, in float64 where the architecture
can, else in float32, as do networks above `FLOAT64_LIMIT` parameters, whose float64 copies might not fit in memory. Both
run in their own dtype too, where a result that is not finite is a failure.

How the tolerance is chosen. A right growth differs from its source by rounding only; a wrong one (a head out of place, a
forgotten factor) differs by a good part of the logits' own spread, 1e-2 and more. Many networks compute norms and rotary
tables in float32 whatever their dtype, which leaves about 1e-7; 1e-5 of the largest logit lies two orders of magnitude from
either. In pure float32 rounding piles up with depth and the tolerance is 1e-4.

Weights in half precision are rounded when they are stored, and a growth whose factors are no powers of two rounds them once
more. What one such rounding may change is measured on the small network itself: each of its weights moves by at most half a
digit of the stored dtype, at random, and `ROUNDINGS` times the change of the logits is allowed on top (`rounding_allowance`).
A growth is then also proved without any rounding, from the same weights in float32 (`unrounded_relative_error`).
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

FLOAT64_LIMIT = 500_000_000
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
ROUNDINGS = 2  # the largest of many errors varies from draw to draw, and a list of methods rounds more than once


@dataclass(frozen=True)
class Certificate:
    """What was measured. `relative_error` is max |dlogit| / max |logit|; `holds` compares it with `tolerance`.

    Attributes:
        absolute_error, relative_error, kl_divergence, top1_agreement: of the stored weights, run in `dtype`. The divergence
            KL(small || big) is a mean over positions, in nats; the agreement is the share of positions with the same argmax.
        dtype: in which both were computed.
        tolerance: the bound for `relative_error`: that of `dtype`, plus `rounding_allowance`.
        inputs: which inputs, and whether they were given or random.
        device: where both ran.
        stored_dtype: of the weights.
        rounding_allowance: what rounding weights to a half-precision `stored_dtype` may change; 0 for other dtypes.
        own_dtype_relative_error: the same error with both networks run in `stored_dtype`; None where that cannot run.
        unrounded_relative_error: of the same growth with weights that are not rounded, judged by `unrounded_tolerance`; None
            where the stored weights say the same, or where only the two stored networks are known.
    """

    absolute_error: float
    relative_error: float
    kl_divergence: float
    top1_agreement: float
    dtype: str
    tolerance: float
    inputs: str
    device: str
    stored_dtype: str
    rounding_allowance: float = 0.0
    own_dtype_relative_error: float | None = None
    unrounded_relative_error: float | None = None
    unrounded_tolerance: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the networks agree as far as their dtype allows, and give finite results in it."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        return (
            self.relative_error <= self.tolerance
            and (own is None or math.isfinite(own))
            and (unrounded is None or self.unrounded_tolerance is None or unrounded <= self.unrounded_tolerance)
        )

    def summary(self) -> str:
        """One line for people."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        stored = f", weights in {self.stored_dtype}" if self.rounding_allowance else ""
        line = (
            f"relative logit error {self.relative_error:.1e} (tolerance {self.tolerance:.0e}, {self.dtype}{stored}), "
            f"KL {self.kl_divergence:.1e}, top-1 agreement {self.top1_agreement:.1%}"
        )
        if unrounded is not None:
            line += f"; before rounding, {unrounded:.1e} (tolerance {self.unrounded_tolerance:.0e})"
        if own is not None and not math.isfinite(own):
            line += f"; run in {self.stored_dtype}, a network gives results that are not finite"
        return line

    def as_dict(self) -> dict[str, Any]:
        """All of it, with the verdict, for JSON."""
        return {"holds": self.holds, **asdict(self)}


def verify(small: nn.Module, big: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Certificate:
    """Run both networks on the same inputs, in evaluation mode, and compare their outputs: logits of the tokens that both have.

    Args:
        small, big: two networks with the same inputs and outputs; neither is changed.
        inputs: keyword arguments of forward; random ones by default.

    Raises:
        MeristemError: if the inputs cannot be guessed, or the outputs have different shapes.
    """
    from meristem.anatomy.inputs import device_of, example_inputs
    from meristem.errors import MeristemError

    described = "given" if inputs is not None else "random"
    inputs = dict(inputs) if inputs is not None else example_inputs(small)
    described += ": " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
    stored = stored_dtype(big)
    a, b, dtype = _in_high_precision(small, big, inputs)
    if a.shape != b.shape:
        raise MeristemError(f"the outputs cannot be compared: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    allowance = ROUNDINGS * _change_by_rounding(small, inputs, a, dtype, stored) if stored.itemsize < 4 else 0.0
    return Certificate(
        absolute_error=float((a - b).abs().max()),
        relative_error=_relative(a, b),
        kl_divergence=float((log_a.exp() * (log_a - log_b)).sum(-1).mean()),
        top1_agreement=float((a.argmax(-1) == b.argmax(-1)).double().mean()),
        dtype=_name(dtype),
        tolerance=TOLERANCE[dtype] + allowance,
        inputs=described,
        device=str(device_of(big)),
        stored_dtype=_name(stored),
        rounding_allowance=allowance,
        own_dtype_relative_error=_relative(a, b) if stored == dtype else _in_own_dtype(small, big, inputs),
    )


def error_in_high_precision(
    small: nn.Module, big: nn.Module, inputs: Mapping[str, Tensor] | None = None
) -> tuple[float, float]:
    """(relative error, tolerance) of two networks in the highest precision that they can run in, and nothing else."""
    from meristem.anatomy.inputs import example_inputs

    a, b, dtype = _in_high_precision(small, big, dict(inputs) if inputs is not None else example_inputs(small))
    return _relative(a, b), TOLERANCE[dtype]


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point weights; of several, that with the fewest bytes."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)


def _relative(a: Tensor, b: Tensor) -> float:
    error, scale = float((a - b).abs().max()), float(a.abs().max())
    return error / scale if scale else error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_high_precision(
    small: nn.Module, big: nn.Module, inputs: dict[str, Tensor]
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both networks' logits as float64 on the CPU, and the dtype that they were computed in."""
    count = sum(parameter.numel() for parameter in big.parameters())
    for dtype in (torch.float64, torch.float32) if count <= FLOAT64_LIMIT else (torch.float32,):
        try:
            a, b = logits_in(small, inputs, dtype), logits_in(big, inputs, dtype)
            return a, _of_old_tokens(b, small, a.shape), dtype
        except (RuntimeError, TypeError):  # an operator (grouped_mm) or a device (MPS) without float64
            if dtype == torch.float32:
                raise
    raise AssertionError


def _of_old_tokens(logits: Tensor, small: nn.Module, shape: torch.Size) -> Tensor:
    """Those of the tokens that `small` has, whose logits have `shape`: a larger vocabulary has more."""
    known = getattr(getattr(small, "config", None), "vocab_size", None) == shape[-1]
    larger = logits.shape[:-1] == shape[:-1] and logits.shape[-1] > shape[-1]
    return logits[..., : shape[-1]] if known and larger else logits


def _in_own_dtype(small: nn.Module, big: nn.Module, inputs: dict[str, Tensor]) -> float | None:
    try:
        a, b = _plain_logits(small, inputs), _plain_logits(big, inputs)
        error = _relative(a, _of_old_tokens(b, small, a.shape))
    except RuntimeError:  # an operator without a kernel for it
        return None
    return error


def _change_by_rounding(
    model: nn.Module, inputs: dict[str, Tensor], logits: Tensor, dtype: torch.dtype, stored: torch.dtype
) -> float:
    """The relative change of the logits when every weight moves at random by at most half a digit of `stored`."""
    from meristem.anatomy.streamed import with_weights

    def moved(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device, dtype)
        return tensor.to(dtype) * (1 + (2 * share - 1) * (torch.finfo(stored).eps / 2))

    return _relative(logits, logits_in(with_weights(copy.deepcopy(model).to(dtype), moved), inputs, dtype))


def logits_in(model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The model's logits computed in `dtype` by a copy of it (or by itself, if it has that dtype); float64 on the CPU."""
    if {parameter.dtype for parameter in model.parameters()} != {dtype}:
        model = copy.deepcopy(model).to(dtype)
    return _plain_logits(model, inputs)


def _plain_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    from meristem.anatomy.attention import plain_attention
    from meristem.anatomy.inputs import logits_of

    was_training = model.training
    try:
        with plain_attention(model):
            return logits_of(model.eval(), dict(inputs)).cpu().double()
    finally:
        model.train(was_training)
