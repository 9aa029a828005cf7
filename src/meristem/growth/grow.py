"""`ms.grow`: the one verb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.certificates import Certificate, verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.build import build, in_float32
from meristem.growth.method import Method, Methods, as_list
from meristem.growth.plan import GrowthPlan


@dataclass(frozen=True)
class Growth:
    """A grown network, the plans that made it (one for each method), and its certificate if it was verified."""

    model: nn.Module
    plans: tuple[GrowthPlan, ...]
    certificate: Certificate | None
    methods: tuple[dict[str, Any], ...]


def grow(
    model: nn.Module,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A larger network made from `model`, which is left as it is.

    Args:
        model: a transformers model, or any nn.Module together with its `anatomy`.
        method: a growth method, or a list of them applied in turn.
        anatomy: from `Anatomy.infer`, for networks outside transformers.
        verify: prove that the function is preserved, if the methods promise it.
        inputs: keyword arguments of the model's forward for that proof; random ones by default.

    Returns:
        A module of the same class, with the same dtype; for transformers a stock model that `save_pretrained` saves.

    Raises:
        MeristemError: when the targets do not fit the network.
        PreservationError: when a growth that promises to preserve the function does not.
    """
    return grow_with_certificate(model, method, anatomy=anatomy, verify=verify, inputs=inputs).model


def shrink(model: nn.Module, method: Methods, *, anatomy: Anatomy | None = None) -> nn.Module:
    """A smaller network cut out of `model`, which is left as it is.

    Args:
        model: a transformers model, or any nn.Module together with its `anatomy`.
        method: such as `WeightSelection(hidden_size=256)`.

    Raises:
        MeristemError: when the targets do not fit the network.
    """
    return grow_with_certificate(model, method, anatomy=anatomy, verify=False).model


def grow_with_certificate(
    model: nn.Module,
    method: Methods,
    *,
    anatomy: Anatomy | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> Growth:
    """As `grow`, and keeps the plans and the certificate."""
    methods = as_list(method)
    if not methods:
        raise MeristemError("no growth method given")
    plans, grown = _apply(model, methods, anatomy)
    certificate = certify(model, grown, plans, inputs) if verify else None
    if certificate and all(plan.preserves_function for plan in plans) and not certificate.holds:
        plans, grown, certificate = _second_try(model, methods, plans[0].source, inputs)
    return Growth(grown, plans, certificate, tuple(m.options() for m in methods))


def _second_try(
    model: nn.Module, methods: list[Method], anatomy: Anatomy, inputs: Mapping[str, Tensor] | None
) -> tuple[tuple[GrowthPlan, ...], nn.Module, Certificate]:
    """Grow once more, with what a trial tells about the architecture that its names and shapes did not.

    Raises:
        PreservationError: if that does not help either.
    """
    from meristem.anatomy.inputs import example_inputs
    from meristem.growth.settle import settle

    settled, parting = settle(anatomy, model, inputs if inputs is not None else example_inputs(model))
    plans, grown = _apply(model, methods, settled)
    certificate = certify(model, grown, plans, inputs)
    if not certificate.holds:
        where = f"; cloned, {parting}" if parting else ""
        raise PreservationError(
            f"this growth should preserve the function and does not: {certificate.summary()}. The anatomy of this "
            f"{anatomy.builder.model_type} is not understood{where}. `meristem inspect` shows what was inferred"
        )
    return plans, grown, certificate


def _apply(
    model: nn.Module, methods: list[Method], anatomy: Anatomy | None
) -> tuple[tuple[GrowthPlan, ...], nn.Module]:
    plans, current = [], model
    for method in methods:
        plans.append(method.plan(anatomy or Anatomy.of(current), current))
        current = build(plans[-1], current)
        anatomy = None
    return tuple(plans), current


def certify(
    model: nn.Module, grown: nn.Module, plans: tuple[GrowthPlan, ...], inputs: Mapping[str, Tensor] | None
) -> Certificate:
    """Judge the growth on the weights themselves in high precision; what a low dtype rounds away is reported apart."""
    stored = next(model.parameters()).dtype
    if stored in (torch.float32, torch.float64):
        return verify(model, grown, inputs)
    exact = in_float32(plans[0].source, model)
    current: nn.Module = exact
    for plan in plans:
        current = build(plan, current)
    return verify(exact, current, inputs, stored=verify(model, grown, inputs))
