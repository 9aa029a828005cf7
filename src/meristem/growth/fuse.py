"""`ms.fuse`: several networks become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.finite import check_weights
from meristem.anatomy.streamed import weights_of
from meristem.certificates import Certificate, verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.fusion.experts import expert_plans, mixture_of_parents
from meristem.growth.fusion.fusion import Fusion
from meristem.growth.fusion.mean import MeanOfParents, certify
from meristem.growth.fusion.weights import norm_over_all, same_as, side_by_side
from meristem.growth.growth import Growth, known
from meristem.growth.methods.deep_fusion import SELF_FUSION_NOISE, DeepFusion
from meristem.growth.methods.rebasin import Rebasin, rebasin
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.proofs.checks import check_inputs, check_number, check_same, listed
from meristem.growth.settle import settle
from meristem.growth.structure.changed import check_instances
from meristem.growth.structure.differences import differences


def fuse(
    models: Sequence[nn.Module | Growth],
    method: DeepFusion | Rebasin | None = None,
    *,
    anatomies: Sequence[Anatomy] | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Make one network from several. The parents do not change.

        wide = ms.fuse([a, b])
        exact = ms.fuse([a, b], ms.DeepFusion(norm="grouped"))
        same_size = ms.fuse([a, b], ms.Rebasin(), inputs=batch)

    With `DeepFusion` (arXiv:2306.11903) the result is as wide as all parents together, and computes the
    weighted mean of their logits. This is exact if no norm runs over the units of several parents. Otherwise
    there is a gap, which the certificate states. With `Rebasin` (arXiv:2209.04836) the result has the size of
    the first parent, and its weights are the mean of the aligned weights. With `DeepFusion(experts=True)` the
    parents become the experts of a mixture (Branch-Train-MiX, arXiv:2403.07816).

    Args:
        models: at least two networks of one type, depth, head size and vocabulary, or growths that made such
            networks. Their widths may differ. The same network several times is a self-fusion.
        method: a `DeepFusion` or a `Rebasin` with its options. `DeepFusion()` by default.
        anatomies: one result of `Anatomy.infer` for each network. Networks outside transformers need them.
        verify: measure the logits of the result against the mean of the parents' logits. Raise an error if
            they differ although the fusion promises that mean.
        inputs: keyword arguments of forward for that measurement, for `norm="equalised"` and for `Rebasin`.
            Random ones by default.

    Returns:
        The fused network. `ms.fuse_with_certificate` also returns the certificate.

    Raises:
        MeristemError: if the networks do not fit together. The message names what differs.
        PreservationError: if a fusion that promises the mean of its parents (see `Fusion`) is not that mean.
    """
    return fuse_with_certificate(models, method, anatomies=anatomies, verify=verify, inputs=inputs).model


def fuse_with_certificate(
    models: Sequence[nn.Module | Growth],
    method: DeepFusion | Rebasin | None = None,
    *,
    anatomies: Sequence[Anatomy] | None = None,
    verify: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
) -> Fusion:
    """Fuse as `ms.fuse` does, and keep the plans and the certificate.

    Args:
        models: as for `ms.fuse`.
        method: as for `ms.fuse`.
        anatomies: as for `ms.fuse`.
        verify: as for `ms.fuse`. If False, there is no certificate.
        inputs: as for `ms.fuse`.

    Raises:
        MeristemError: if the networks do not fit together.
        PreservationError: if a fusion that promises the mean of its parents is not that mean.
    """
    from meristem.anatomy.inputs import example_inputs

    method = method or DeepFusion()
    pairs = _checked(models, anatomies, inputs, verify)
    if not isinstance(method, DeepFusion | Rebasin):
        raise MeristemError(
            f"fuse takes a DeepFusion or a Rebasin, as in ms.fuse([a, b], ms.Rebasin()); got {method!r:.60}"
        )
    parents = [parent for parent, _ in pairs]
    if isinstance(method, Rebasin):
        return _averaged(parents, method, inputs if inputs is not None else example_inputs(parents[0]), verify)
    understood = [_understood(parent, anatomy, inputs, verify) for parent, anatomy in pairs]
    weights = method.convex(len(parents))
    if inputs is None and (verify or method.norm == "equalised"):
        inputs = example_inputs(parents[0])
    make = _as_experts if method.experts else _side_by_side
    return make(parents, understood, method, weights, verify, inputs)


def _checked(
    models: Sequence[nn.Module | Growth],
    anatomies: Sequence[Anatomy] | None,
    inputs: Mapping[str, Tensor] | None,
    measured: bool,
) -> list[tuple[nn.Module, Anatomy | None]]:
    """The parents, with their anatomies as far as they are known."""
    if isinstance(models, nn.Module | Growth):
        raise MeristemError(f"fuse takes a list of networks, as in ms.fuse([a, b]); got a {type(models).__name__}")
    if len(models) < 2:
        raise MeristemError(f"fuse takes at least two networks, got {len(models)}")
    check_number(anatomies, models)
    found = list(anatomies) if anatomies is not None else [None] * len(models)
    pairs = [known(model, anatomy) for model, anatomy in zip(models, found, strict=True)]
    for parent, _ in pairs:
        check_inputs(inputs, parent)
        if measured:
            check_weights(parent)
    return pairs


def _understood(
    parent: nn.Module, anatomy: Anatomy | None, inputs: Mapping[str, Tensor] | None, measured: bool
) -> Anatomy:
    """The anatomy of a parent, checked against its weights."""
    anatomy = (anatomy or Anatomy.of(parent)).watched(inputs)
    check_same(parent, anatomy)
    return _settled(anatomy, parent, inputs) if measured else anatomy


def _side_by_side(
    parents: Sequence[nn.Module],
    anatomies: Sequence[Anatomy],
    method: DeepFusion,
    weights: tuple[float, ...],
    measured: bool,
    inputs: Mapping[str, Tensor] | None,
) -> Fusion:
    """The parents next to each other in a network as wide as all of them together."""
    plans = method.plans(anatomies, parents, inputs or {})
    differ = any(differences(anatomies[0], other) for other in anatomies[1:])
    same = same_as(parents)
    alike = not any(same) and not differ
    noise = (method.noise if method.noise is not None else SELF_FUSION_NOISE) if alike else 0.0
    make = lambda networks: side_by_side(plans, networks, noise, method.seed)  # noqa: E731
    fused = make(parents)
    capped = anatomies[0].builder.fact("final_logit_softcapping")  # the mean of capped logits is no capped mean
    exact = alike or not (differ or capped or norm_over_all(anatomies[0], grouped=method.norm == "grouped"))
    certificate = _certificate(method, plans, parents, weights, fused, inputs, make) if measured else None
    if certificate and exact and not certificate.holds:
        if alike or not _fuses_with_itself(method, anatomies[0], parents[0], inputs):
            raise PreservationError(
                f"the fused network should compute its parents' mean and does not: {certificate.summary()}; "
                "the printed anatomy (print(anatomy), `meristem inspect`) shows what was inferred"
            )
        exact = False
        warnings.warn(_said_of_the_waist(anatomies[0], plans[0], parents, certificate), stacklevel=4)
    return Fusion(fused, tuple(plans), weights, certificate, exact, (_options(method, weights),), same)


def _certificate(
    method: DeepFusion,
    plans: Sequence[GrowthPlan],
    parents: Sequence[nn.Module],
    weights: Sequence[float],
    fused: nn.Module,
    inputs: Mapping[str, Tensor] | None,
    make: Callable[[Sequence[nn.Module]], nn.Module],
) -> Certificate:
    """How far the fused network is from its parents' mean. `make` fuses them again, in another precision."""
    certificate = certify(plans, parents, weights, fused, inputs, make)
    if not certificate.holds and not method.allow_differences:
        check_instances(parents, certificate)
    return certificate


def _options(method: DeepFusion, weights: Sequence[float]) -> dict[str, Any]:
    """The method, as `meristem.json` records it."""
    return {"method": method.name, **asdict(method), "weights": list(weights), "parents": len(weights)}


def _settled(anatomy: Anatomy, model: nn.Module, inputs: Mapping[str, Tensor] | None) -> Anatomy:
    """The anatomy of a network outside transformers, with what a clone shows (see `settle`). A fusion does
    not show it.
    """
    if inputs is None or not isinstance(anatomy.builder, FunctionBuilder):
        return anatomy
    try:
        return settle(anatomy, model, inputs)[0]
    except MeristemError:  # it cannot be cloned
        return anatomy


def _fuses_with_itself(
    method: DeepFusion, anatomy: Anatomy, parent: nn.Module, inputs: Mapping[str, Tensor] | None
) -> bool:
    """Whether a network outside transformers, fused with itself, keeps its function. Its anatomy is then
    understood. If a fusion of different networks is not their mean, the cause is something of fixed size
    that all units pass through.
    """
    if not isinstance(anatomy.builder, FunctionBuilder):
        return False
    twice, shares = [parent, parent], method.convex(2)
    plans = method.plans([anatomy, anatomy], twice, inputs or {})
    make = lambda networks: side_by_side(plans, networks, 0.0, method.seed)  # noqa: E731
    return certify(plans, twice, shares, make(twice), inputs, make).holds


def _said_of_the_waist(
    anatomy: Anatomy, plan: GrowthPlan, parents: Sequence[nn.Module], certificate: Certificate
) -> str:
    """Why a fusion is not the mean: the tensors of fixed size in which the parents differ, or a nonlinear
    output.
    """
    states = [weights_of(parent) for parent in parents]
    shared = [
        name
        for name, tensor in anatomy.tensors.items()
        if tensor.tied_to is None
        and not any(plan.tensors[name].maps)
        and any(not torch.equal(states[0][name].cpu(), state[name].cpu()) for state in states[1:])
    ]
    named = f" (shared by all parents: {listed(shared)})" if shared else ""
    return (
        f"deep_fusion: this fusion is not its parents' mean: {certificate.summary()}. Fused with itself the network is kept, so its "
        f"units are understood; different ones meet in tensors of fixed size{named} or in a nonlinear output"
    )


def _averaged(parents: Sequence[nn.Module], method: Rebasin, inputs: Mapping[str, Any], measured: bool) -> Fusion:
    """The mean of aligned networks, of the size of the first. Its distance from the mean of their logits is
    measured, not promised.
    """
    fused, weights = rebasin(parents, method, inputs), method.convex(len(parents))
    certificate = verify(MeanOfParents(parents, weights), fused, inputs) if measured else None
    options = {
        "method": method.name,
        "by": method.by,
        "seed": method.seed,
        "weights": list(weights),
        "parents": len(parents),
    }
    return Fusion(fused, (), weights, certificate, False, (options,))


def _as_experts(
    parents: Sequence[nn.Module],
    anatomies: Sequence[Anatomy],
    method: DeepFusion,
    weights: tuple[float, ...],
    measured: bool,
    inputs: Mapping[str, Tensor] | None,
) -> Fusion:
    """The parents as experts of a mixture (see `fusion.experts`). If they are one network, it is upcycled,
    which keeps its function.
    """
    same = same_as(parents)
    alike = not any(same)
    plans = expert_plans(method, anatomies, parents, alike)
    make = lambda networks: mixture_of_parents(plans, networks, weights)  # noqa: E731
    fused = make(parents)
    exact = plans[0].preserves_function and alike
    certificate = _certificate(method, plans, parents, weights, fused, inputs, make) if measured else None
    if certificate and exact and not certificate.holds:
        raise PreservationError(
            f"one network as several experts should keep its function and does not: {certificate.summary()}"
        )
    return Fusion(fused, tuple(plans), weights, certificate, exact, (_options(method, weights),), same)
