"""Two networks run on the same inputs, in several precisions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.finite import check_finite
from meristem.anatomy.precision import in_precision
from meristem.anatomy.streamed import run_together
from meristem.certificates.distance import HUGE, Outputs, largest_error
from meristem.errors import MeristemError, first_line

FLOAT64_LIMIT = 500_000_000  # parameters
UNRUNNABLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
Expected = Callable[
    [Outputs, Outputs], Outputs
]  # (the small network's outputs, the large one's): what the latter should be


class Passes:
    """Two networks run on the same inputs, in high precision and as they are stored. All passes of streamed
    networks run side by side, so that each weight is computed once.
    """

    def __init__(self, small: nn.Module, big: nn.Module, inputs: dict[str, Any], expected: Expected | None) -> None:
        self._small, self._big, self._inputs, self._expected = small, big, inputs, expected
        self._own: list[Any] | None = None  # the outputs of both as they are stored, or the errors
        self._logits: tuple[Tensor | None, Tensor | None] = (None, None)  # of both, as each returns them

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
            self._logits = ours.get("logits"), theirs.get("logits")
            return *_comparable(ours, theirs, self._expected), dtype
        raise AssertionError

    def logits(self, ours: Outputs, theirs: Outputs) -> tuple[Tensor | None, Tensor | None]:
        """The logits of both for all their tokens, after `in_high_precision`.

        Args:
            ours, theirs: what that returned. The logits are these, unless the large network has new tokens:
                then `ours` has none of them, or has them from `theirs`.
        """
        (a, b), expected = self._logits, ours.get("logits")
        if a is None or b is None or expected is None or a.shape[:-1] != b.shape[:-1]:
            return expected, theirs.get("logits")
        old = a.shape[-1]
        is_appended = torch.equal(expected[..., :old], a) and torch.equal(
            expected[..., old:], b[..., old : expected.shape[-1]]
        )
        return (a, b) if old < b.shape[-1] and is_appended else (expected, theirs["logits"])

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
        return math.inf if any(bool(places.any()) for places in overflows) else largest_error(ours, theirs)

    def _run(self, dtype: torch.dtype | None, own: bool) -> list[Any]:
        """The outputs of both in `dtype` and, with `own`, in their own dtype; or the errors."""
        networks = (self._small, self._big)
        calls = [functools.partial(outputs_in, n, self._inputs, dtype) for n in networks if dtype is not None]
        calls += [functools.partial(_plain_outputs, n, self._inputs) for n in networks if own]
        return run_together(networks, calls)


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
    one, other = type(small).__name__, type(big).__name__
    said = ", ".join(f"{name} {_seen(value)}" if isinstance(value, Tensor) else name for name, value in inputs.items())
    if first:
        return MeristemError(f"{one} does not run on these inputs ({said}): {first_line(error)}")
    second = f"the second {other}" if one == other else other
    return MeristemError(
        f"{one} and {other} cannot be compared: {second} does not run on inputs of the first ({said}): {first_line(error)}. Their "
        "vocabularies or kinds may differ; of a growth, a field of the config may hold a width that has not grown with the others"
    )


def _seen(value: Tensor) -> str:
    """Shape and dtype of an input, and the range of whole numbers, since tokens beyond the vocabulary also
    stop a network.
    """
    span = "" if value.is_floating_point() or not value.numel() else f" from {int(value.min())} to {int(value.max())}"
    return f"{tuple(value.shape)} {name_of(value.dtype)}{span}"


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


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
