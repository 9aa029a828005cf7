"""What to say when a growth that should keep the function does not: the first cause that can be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from meristem.anatomy import Anatomy
from meristem.anatomy.axis_ref import divisor_of, is_part, whole_of
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.finite import LARGE, largest_weight
from meristem.certificates import Certificate
from meristem.errors import MeristemError
from meristem.growth.methods.method import Method
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.proofs.trial import Parting
from meristem.growth.structure.changed import changed_since
from meristem.growth.widths.causes import known_cause


def why_not_kept(
    model: nn.Module,
    methods: Sequence[Method],
    anatomy: Anatomy,
    plans: tuple[GrowthPlan, ...],
    certificate: Certificate,
    parting: Parting | None,
    proof_of: Callable[[Sequence[Method]], Certificate],
) -> str:
    """One sentence or two.

    Args:
        parting: where the network and its clone part, if they do.
        proof_of: measures the growth of the same network by other methods.
    """
    cause = known_cause(model, plans)
    if cause:
        return f"this growth does not keep the function ({certificate.summary()}): {cause}"
    if certificate.holds_unrounded:
        return (
            f"this growth keeps the function, but {certificate.stored_dtype} cannot hold its weights well enough: "
            f"{certificate.summary()}. Grow a copy in float32 (model.float()), or pass verify=False (--no-verify)"
        )
    said = f"this growth should keep the function and does not: {certificate.summary()}. "
    changed = changed_since(model)
    if changed:
        return (
            f"{said}The network differs from what its class builds from its config, and only that can grow: {changed}"
        )
    quiet = [replace(m, noise=0.0) if _noise(m) else m for m in methods]  # pyright: ignore[reportCallIssue]
    if quiet != list(methods) and _holds(proof_of, quiet):
        noise = max(map(_noise, methods))
        return (
            f"{said}Without its noise it would: noise={noise:g} is so large, compared with the weights, that rounding keeps it from "
            "cancelling; use less (0.1 is usual)"
        )
    value, name = largest_weight(model)
    own = certificate.own_dtype_relative_error
    overflows = certificate.relative_error <= certificate.tolerance and own is not None and not math.isfinite(own)
    if overflows or value > LARGE:
        return (
            f"{said}Its weights are too large to compute with in {certificate.stored_dtype} (the largest is {value:.1e}, in {name}); use an "
            "earlier checkpoint, or pass verify=False (--no-verify)"
        )
    where = f"; cloned, {parting}" if parting else ""
    return (
        f"{said}The anatomy of this {anatomy.builder.model_type} is not understood{where}{_said_of_parts(anatomy)}. {shown_by(anatomy)} "
        "shows what was inferred"
    )


def shown_by(anatomy: Anatomy) -> str:
    """What shows a user an anatomy."""
    return "print(anatomy)" if isinstance(anatomy.builder, FunctionBuilder) else "`meristem inspect`"


def _noise(method: Any) -> float:
    return getattr(method, "noise", None) or 0.0


def _holds(proof_of: Callable[[Sequence[Method]], Certificate], methods: Sequence[Method]) -> bool:
    try:
        return proof_of(methods).holds
    except MeristemError:
        return False


def _said_of_parts(anatomy: Anatomy) -> str:
    """What to write where a function outside transformers cuts an axis into a fixed number of parts, which
    then grow: heads.
    """
    parts = {whole_of(axis): divisor_of(axis) for axis in anatomy.axes if is_part(axis)}
    if not isinstance(anatomy.builder, FunctionBuilder) or not parts:
        return ""
    whole, number = next(iter(parts.items()))
    return (
        f"; its forward cuts {whole} into {number} parts, whose size grows with it. If these are heads, let their number be an argument of "
        f"the function that grows along, Anatomy.infer(build, {{{whole!r}: {anatomy.sizes[whole]}, 'heads': ...}}); a table that "
        f"forward computes from {whole} (sinusoids) needs a size of its own, which stays"
    )
