"""Certificates: the measured proof that two networks compute the same function.

What is measured. Both networks run on the same inputs, and every output tensor (`anatomy.inputs.outputs_of`)
is compared. The weights are those that are stored. The networks compute in float64 if the architecture can,
and in float32 otherwise. Networks above `FLOAT64_LIMIT` parameters also compute in float32, because a float64
copy might not fit in memory. Both networks run in their own dtype too, where a result that is not finite is a
failure.

How the tolerance is chosen. A correct growth differs from its source by rounding only. A wrong one (a
misplaced head, a forgotten factor) differs by a good part of the spread of the logits, 1e-2 and more. Many
networks compute norms and rotary tables in float32 whatever their dtype, which leaves about 1e-7. A tolerance
of 1e-5 of the largest logit is two orders of magnitude from either. In pure float32, rounding accumulates
with depth, and the tolerance is 1e-4.

Weights in half precision are rounded when they are stored. A growth whose factors are not powers of two
rounds them once more. The effect of one such rounding is measured on the small network itself: each of its
weights moves at random by at most half a digit of the stored dtype. `ROUNDINGS` times the resulting change of
the logits is allowed on top (`rounding_allowance`). A growth is then also proved without any rounding, from
the same weights in float32 (`unrounded_relative_error`).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.finite import check_finite
from meristem.anatomy.precision import in_precision
from meristem.anatomy.streamed import run_together
from meristem.errors import MeristemError, first_line

FLOAT64_LIMIT = 500_000_000
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
HUGE = 1e30  # of entries that mean "never": they have to be the same, and do not set the scale
OUTLYING = 1e3  # times the median: entries such as a mask's -1e4 or -1e9, which are judged by their own size alone
Outputs = dict[str, Tensor]
ROUNDINGS = 2  # the largest of many errors varies from draw to draw, and a list of methods rounds more than once


@dataclass(frozen=True)
class Certificate:
    """The measurement of two networks. `holds` compares `relative_error` with `tolerance`.

    Attributes:
        absolute_error: max |difference| of the output that differs most, with the stored weights, computed in
            `dtype`.
        relative_error: max |difference| / max |value| of that output.
        kl_divergence: KL(small || big) of the logits in nats, a mean over positions. None for networks
            without logits.
        top1_agreement: the share of positions with the same argmax. None for networks without logits.
        dtype: the dtype in which both networks computed.
        tolerance: the bound for `relative_error`: that of `dtype`, plus `rounding_allowance`.
        inputs: which inputs were used, and whether they were given or random.
        device: the device on which both ran.
        stored_dtype: the dtype of the weights.
        rounding_allowance: the error that rounding weights to a half-precision `stored_dtype` may cause. 0
            for other dtypes, and if the stored weights agree without it.
        own_dtype_relative_error: the relative error with both networks computing in `stored_dtype`. None if
            that cannot run.
        unrounded_relative_error: the relative error of the same growth with weights that are not rounded,
            judged by `unrounded_tolerance`. None if the stored weights agree already, or if only the two
            stored networks are known.
        unrounded_tolerance: the bound for `unrounded_relative_error`.
        blocks: None if both networks ran whole. Otherwise the blocks of the small network that ran, by the
            path of their list, with the blocks of the large one that are made from them. Every tensor was
            then checked by itself (`growth.sampled`).
    """

    absolute_error: float
    relative_error: float
    kl_divergence: float | None
    top1_agreement: float | None
    dtype: str
    tolerance: float
    inputs: str
    device: str
    stored_dtype: str
    rounding_allowance: float = 0.0
    own_dtype_relative_error: float | None = None
    unrounded_relative_error: float | None = None
    unrounded_tolerance: float | None = None
    blocks: Mapping[str, list[int]] | None = None

    @property
    def holds(self) -> bool:
        """Whether the networks agree as far as their dtype allows, and give finite results in it."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        return (
            self.relative_error <= self.tolerance
            and (own is None or math.isfinite(own))
            and (unrounded is None or self.unrounded_tolerance is None or unrounded <= self.unrounded_tolerance)
        )

    @property
    def holds_as_stored(self) -> bool:
        """Whether the stored weights agree without an allowance for rounding. Nothing is then left to prove
        without rounding.
        """
        return self.relative_error <= self.tolerance - self.rounding_allowance

    @property
    def holds_unrounded(self) -> bool:
        """Whether the growth agrees before its weights are rounded to the stored dtype, if that was
        measured.
        """
        error, tolerance = self.unrounded_relative_error, self.unrounded_tolerance
        return error is not None and tolerance is not None and error <= tolerance

    def summary(self) -> str:
        """One line for people."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        stored = f", weights in {self.stored_dtype}" if self.rounding_allowance else ""
        what = "output" if self.kl_divergence is None else "logit"
        line = f"relative {what} error {self.relative_error:.1e} (tolerance {self.tolerance:.0e}, {self.dtype}{stored})"
        if self.kl_divergence is not None:
            line += f", KL {self.kl_divergence:.1e}, top-1 agreement {self.top1_agreement:.1%}"
        if unrounded is not None:
            line += f"; before rounding, {unrounded:.1e} (tolerance {self.unrounded_tolerance:.0e})"
        if self.blocks is not None:
            some = "; ".join(f"{', '.join(map(str, blocks))} of {path}" for path, blocks in self.blocks.items())
            line += f"; of blocks {some}, and every tensor by algebra"
        if own is not None and not math.isfinite(own):
            line += f"; run in {self.stored_dtype}, a network gives results that are not finite"
        return line

    def as_dict(self) -> dict[str, Any]:
        """All fields and the verdict, for JSON."""
        return {"holds": self.holds, **asdict(self)}


Expected = Callable[
    [Outputs, Outputs], Outputs
]  # (the small network's outputs, the large one's): what the latter should be


def verify(
    small: nn.Module,
    big: nn.Module,
    inputs: Mapping[str, Any] | None = None,
    *,
    expected: Expected | None = None,
) -> Certificate:
    """Run both networks on the same inputs, in evaluation mode, and compare all their outputs.

        certificate = ms.verify(small, big)
        assert certificate.holds, certificate.summary()

    If `big` has a larger vocabulary, logits are compared for the tokens that both networks have.

    Args:
        small: the first network. It does not change.
        big: the second network, with the same inputs and outputs. It does not change.
        inputs: keyword arguments of forward. Random ones by default.
        expected: a function that computes what the output of `big` should be. By default the output of
            `small`.

    Returns:
        The certificate. Its `holds` says whether the networks agree; a difference raises no error.

    Raises:
        MeristemError: if the inputs cannot be guessed, if `big` does not take them, if the outputs have
            different names or shapes, or if the outputs of `small` are NaN or only infinite.
    """
    from meristem.anatomy.inputs import check_named, device_of, example_inputs

    for network in (small, big):
        if not isinstance(network, nn.Module):
            raise MeristemError(f"verify compares two networks, got a {type(network).__name__}; pass its .model")
    if inputs is not None:
        check_named(small, inputs)
    described = "given" if inputs is not None else "random"
    inputs = dict(inputs) if inputs is not None else example_inputs(small)
    described += ": " + ", ".join(
        f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else name for name, value in inputs.items()
    )
    stored = stored_dtype(big)
    passes = _Passes(small, big, inputs, expected)
    ours, theirs, dtype = passes.in_high_precision(also_in=stored)
    error, allowance = _relative(ours, theirs), 0.0
    if stored.itemsize < 4 and not error <= TOLERANCE[dtype]:
        allowance = ROUNDINGS * _change_by_rounding(small, inputs, dtype, stored)
    return Certificate(
        absolute_error=max(float((ours[name] - theirs[name]).abs().nan_to_num(torch.inf).max()) for name in ours),
        relative_error=error,
        **_as_distributions(ours, theirs),
        dtype=_name(dtype),
        tolerance=TOLERANCE[dtype] + allowance,
        inputs=described,
        device=str(device_of(big)),
        stored_dtype=_name(stored),
        rounding_allowance=allowance,
        own_dtype_relative_error=error if stored == dtype else passes.in_own_dtype(theirs),
    )


def _as_distributions(ours: Outputs, theirs: Outputs) -> dict[str, Any]:
    """The divergence and the agreement of the logits, if the networks have logits."""
    if "logits" not in ours or not ours["logits"].dim():
        return {"kl_divergence": None, "top1_agreement": None}
    a, b = ours["logits"], theirs["logits"]
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    divergence = (log_a.exp() * (log_a - log_b)).nan_to_num(0.0 if bool((a == b).all()) else torch.nan).sum(-1).mean()
    agreement = (a.argmax(-1) == b.argmax(-1)).double().mean()
    return {"kl_divergence": float(divergence), "top1_agreement": float(agreement)}


def error_in_high_precision(
    small: nn.Module,
    big: nn.Module,
    inputs: Mapping[str, Any] | None = None,
    *,
    expected: Expected | None = None,
) -> tuple[float, float]:
    """(relative error, tolerance) of two networks, in the highest precision in which they can run. Nothing
    else is measured.
    """
    from meristem.anatomy.inputs import example_inputs

    inputs = dict(inputs) if inputs is not None else example_inputs(small)
    ours, theirs, dtype = _Passes(small, big, inputs, expected).in_high_precision()
    return _relative(ours, theirs), TOLERANCE[dtype]


def relative_error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |a| in float64.

    Entries that are infinite or huge are left out if they are equal. The result is NaN if any entry is, and
    infinite if only one of the two entries is infinite. Entries far larger than all others, as masks write
    them, do not set the scale, because they would hide the errors of the others.
    """
    a, b = a.double().cpu(), b.double().cpu()
    largest = [float(values.abs().max()) if values.numel() else 0.0 for values in (a, b)]  # NaN if any entry is
    if any(map(math.isnan, largest)):
        return math.nan
    if not (largest[0] < HUGE and math.isfinite(largest[1])):
        ordinary = a.isfinite() & b.isfinite() & (a.abs() < HUGE)
        if bool(((a != b) & ~ordinary).any()):
            return math.inf
        a, b = a[ordinary], b[ordinary]
    if not a.numel():
        return 0.0
    sizes, errors = a.abs(), (a - b).abs()
    outlying = _outlying(sizes)
    if outlying is None:
        error, scale, own = float(errors.max()), float(sizes.max()), 0.0
    else:
        own = float((errors[outlying] / sizes[outlying]).max())
        error, scale = float(errors[~outlying].max()), float(sizes[~outlying].max())
    return max(own, error / scale if scale else error)


def _outlying(sizes: Tensor) -> Tensor | None:
    """Which entries are more than `OUTLYING` times as large as the median of those that are not zero. None if
    no entry is.
    """
    nonzero, near = int((sizes > 0).sum()), int((sizes > sizes.max() / OUTLYING).sum())
    if 2 * near > nonzero:  # more than half of them are, so the median is, and costs more to find
        return None
    outlying = sizes > OUTLYING * sizes[sizes > 0].median()
    return outlying if bool(outlying.any()) else None


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point weights. If there are several, the one with the fewest
    bytes.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)


def _relative(ours: Outputs, theirs: Outputs) -> float:
    """The largest error of all outputs. NaN if one is NaN."""
    errors = [relative_error(ours[name], theirs[name]) for name in ours]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Passes:
    """Two networks run on the same inputs, in high precision and as they are stored. All passes of streamed
    networks run side by side, so that each weight is computed once.
    """

    def __init__(self, small: nn.Module, big: nn.Module, inputs: dict[str, Any], expected: Expected | None) -> None:
        self._small, self._big, self._inputs, self._expected = small, big, inputs, expected
        self._own: list[Any] | None = None  # the outputs of both as they are stored, or the errors

    def in_high_precision(self, also_in: torch.dtype | None = None) -> tuple[Outputs, Outputs, torch.dtype]:
        """The expected output of `big` and its output, as float64 on the CPU, and the dtype in which both
        were computed.

        Args:
            also_in: the stored dtype, if both have to run in it as well.
        """
        count = sum(parameter.numel() for parameter in self._big.parameters())
        for dtype in (torch.float64, torch.float32) if count <= FLOAT64_LIMIT else (torch.float32,):
            ours, theirs, *own = self._run(dtype, also_in not in (None, dtype) and self._own is None)
            self._own = own or self._own
            error = next((found for found in (ours, theirs) if isinstance(found, Exception)), None)
            if isinstance(
                error, UNRUNNABLE
            ):  # an operator (grouped_mm) or a device (MPS) without float64; or parts that do not fit
                if dtype == torch.float32:
                    raise _unrunnable(self._small, self._big, self._inputs, error, ours is error) from error
                continue
            if error is not None:
                raise error
            check_finite(self._small, ours)
            return *_comparable(ours, theirs, self._expected), dtype
        raise AssertionError

    def in_own_dtype(self, precise: Outputs) -> float | None:
        """The relative error of both networks as they are stored, after `in_high_precision(also_in=)`.
        Infinite if `big` overflows and `precise`, its output in high precision, does not. None if an
        operator has no kernel for the dtype.
        """
        own = self._own if self._own is not None else self._run(None, True)
        error = next((found for found in own if isinstance(found, Exception)), None)
        if isinstance(error, RuntimeError):
            return None
        if error is not None:
            raise error
        ours, theirs = _comparable(own[0], own[1], self._expected)
        overflows = (~theirs[name].isfinite() & (precise[name].abs() < HUGE) for name in theirs if name in precise)
        return math.inf if any(bool(places.any()) for places in overflows) else _relative(ours, theirs)

    def _run(self, dtype: torch.dtype | None, own: bool) -> list[Any]:
        """The outputs of both in `dtype` and, with `own`, in their own dtype; or the errors."""
        networks = (self._small, self._big)
        calls = [functools.partial(outputs_in, n, self._inputs, dtype) for n in networks if dtype is not None]
        calls += [functools.partial(_plain_outputs, n, self._inputs) for n in networks if own]
        return run_together(networks, calls)


UNRUNNABLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


def _unrunnable(
    small: nn.Module, big: nn.Module, inputs: dict[str, Any], error: Exception, first: bool
) -> MeristemError:
    """The error message if one of two networks does not run: the small one, or only the large one."""
    if "multiple of 16 bytes" in str(error):
        return MeristemError(
            f"{type(big).__name__} does not run: grouped products of experts need units of whole 16 bytes, so multiples of 4 in float32 and "
            "of 8 in half precision. Pad them first (zero_padding with another intermediate_size), take another granularity, or open the "
            "network with experts_implementation='eager'"
        )
    which = "the first" if first else "the second one alone"
    said = ", ".join(f"{name} {_seen(value)}" if isinstance(value, Tensor) else name for name, value in inputs.items())
    return MeristemError(
        f"{type(small).__name__} and {type(big).__name__} cannot be compared: {which} does not run on these inputs ({said}): "
        f"{first_line(error)}"
    )


def _seen(value: Tensor) -> str:
    """Shape and dtype of an input, and the range of whole numbers, since tokens beyond the vocabulary also
    stop a network.
    """
    span = "" if value.is_floating_point() or not value.numel() else f" from {int(value.min())} to {int(value.max())}"
    return f"{tuple(value.shape)} {_name(value.dtype)}{span}"


def _comparable(ours: Outputs, theirs: Outputs, expected: Expected | None) -> tuple[Outputs, Outputs]:
    """The expected and the actual outputs, with the same names and shapes."""
    missing = [name for name in ours if name not in theirs]
    if missing:
        raise MeristemError(f"the outputs cannot be compared: only one network returns {', '.join(missing)}")
    if expected:
        ours = expected(ours, theirs)
    else:  # of two networks of other widths only the outputs can be compared that have one shape in both
        theirs = {name: _of_old_tokens(name, ours.get(name), output) for name, output in theirs.items()}
        same = {name: output for name, output in ours.items() if output.shape == theirs[name].shape}
        ours = same if same and "logits" not in set(ours) - set(same) else ours
    for name, output in ours.items():
        if output.shape != theirs[name].shape:
            shapes = f"shapes {tuple(output.shape)} and {tuple(theirs[name].shape)}"
            raise MeristemError(f"the outputs cannot be compared: {name} has {shapes}")
    return ours, theirs


def _of_old_tokens(name: str, ours: Tensor | None, theirs: Tensor) -> Tensor:
    """The logits of a larger vocabulary for the tokens that both networks have. New tokens follow them."""
    if name != "logits" or ours is None or not ours.dim() or ours.shape[:-1] != theirs.shape[:-1]:
        return theirs
    return theirs[..., : ours.shape[-1]]


def _change_by_rounding(model: nn.Module, inputs: dict[str, Any], dtype: torch.dtype, stored: torch.dtype) -> float:
    """The relative change of the outputs if every weight moves at random by at most half a digit of
    `stored`.
    """
    from meristem.anatomy.streamed import with_weights

    def moved(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device, dtype)
        return tensor.to(dtype) * (1 + (2 * share - 1) * (torch.finfo(stored).eps / 2))

    shaken = with_weights(in_precision(model, dtype), moved)
    return _relative(outputs_in(model, inputs, dtype), outputs_in(shaken, inputs, dtype))


def outputs_in(model: nn.Module, inputs: Mapping[str, Any], dtype: torch.dtype) -> Outputs:
    """The outputs of the model computed in `dtype`, as float64 on the CPU. A copy computes them, or the model
    itself if it has that dtype.
    """
    if {parameter.dtype for parameter in model.parameters()} != {dtype}:
        model = in_precision(model, dtype)
    return _plain_outputs(model, inputs)


def _plain_outputs(model: nn.Module, inputs: Mapping[str, Any]) -> Outputs:
    from meristem.anatomy.attention import plain_attention
    from meristem.anatomy.inputs import outputs_of
    from meristem.anatomy.modes import evaluating

    with plain_attention(model), evaluating(model):
        return {name: output.cpu().double() for name, output in outputs_of(model, inputs).items()}
