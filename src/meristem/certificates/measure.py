"""Measure two networks: run both, compare their outputs, and judge the difference by what rounding allows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.precision import in_precision
from meristem.certificates.certificate import Certificate
from meristem.certificates.distance import as_distributions, largest_error
from meristem.certificates.passes import Expected, Passes, name_of, outputs_in
from meristem.errors import MeristemError

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
ROUNDINGS = 2  # the largest of many errors varies from draw to draw, and a list of methods rounds more than once


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

    If `big` has a larger vocabulary, logits are compared for the tokens that both networks have. The
    divergence counts the probability that the new ones take.

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
    passes = Passes(small, big, inputs, expected)
    ours, theirs, dtype = passes.in_high_precision(also_in=stored)
    error, allowance = largest_error(ours, theirs), 0.0
    if stored.itemsize < 4 and not error <= TOLERANCE[dtype]:
        allowance = ROUNDINGS * _change_by_rounding(small, inputs, dtype, stored)
    return Certificate(
        absolute_error=max(float((ours[name] - theirs[name]).abs().nan_to_num(torch.inf).max()) for name in ours),
        relative_error=error,
        **as_distributions(*passes.logits(ours, theirs)),
        dtype=name_of(dtype),
        tolerance=TOLERANCE[dtype] + allowance,
        inputs=described,
        device=str(device_of(big)),
        stored_dtype=name_of(stored),
        rounding_allowance=allowance,
        own_dtype_relative_error=error if stored == dtype else passes.in_own_dtype(theirs),
    )


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
    ours, theirs, dtype = Passes(small, big, inputs, expected).in_high_precision()
    return largest_error(ours, theirs), TOLERANCE[dtype]


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a network's floating-point weights. If there are several, the one with the fewest
    bytes.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return min(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)


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
    return largest_error(outputs_in(model, inputs, dtype), outputs_in(shaken, inputs, dtype))
