"""`ms.fuse`: several networks become one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meristem.algebra import AxisMap
from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.finite import check_weights
from meristem.anatomy.streamed import Weights, weights_of
from meristem.certificates import Certificate, error_in_high_precision, stored_dtype, verify
from meristem.errors import MeristemError, PreservationError
from meristem.growth.fuse_experts import expert_plans, mixture_of_parents, state_of_mixture
from meristem.growth.growth import Growth, known
from meristem.growth.methods.deep_fusion import SELF_FUSION_NOISE, DeepFusion
from meristem.growth.methods.rebasin import Rebasin, rebasin
from meristem.growth.optimizers.block_steps import MISSED
from meristem.growth.optimizers.optimizer import (
    State,
    grow_state,
    load_named_state,
    named_state,
    own_steps,
    unwrapped,
    without_state,
)
from meristem.growth.optimizers.optimizer_families import Entry, Family, family_by_entries, family_of
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.upcycle_plan import UpcyclePlan
from meristem.growth.proofs.checks import check_inputs, check_number, check_same, listed
from meristem.growth.provenance import Provenance
from meristem.growth.settle import settle
from meristem.growth.structure.changed import check_instances
from meristem.growth.structure.differences import differences
from meristem.growth.tensors.apply import grow_tensor, null_noise
from meristem.growth.tensors.build import filled, grown_dtypes, in_float32, with_flags
from meristem.growth.tensors.rounding import is_half, round_shares


@dataclass(frozen=True)
class Fusion:
    """A fused network and everything that is known about it. `ms.fuse_with_certificate` makes it.

    Attributes:
        model: the fused network.
        plans: one plan for each parent. Empty for `Rebasin`.
        weights: the weight of each parent in the mean.
        certificate: how far the logits of `model` are from the weighted mean of the parents' logits, or None
            if that was not measured.
        exact: whether the fusion promises to be that mean. It does if the parents are one network. It also
            does if their configs compute the same, no norm runs over the units of several parents, and the
            logits are not capped.
        methods: the method and its options, as recorded in `meristem.json`.
        same_as: for each parent, the number of the first parent that has the same weights.
    """

    model: nn.Module
    plans: tuple[GrowthPlan, ...]
    weights: tuple[float, ...]
    certificate: Certificate | None
    exact: bool
    methods: tuple[dict[str, Any], ...]
    same_as: tuple[int, ...] = ()

    @property
    def as_experts(self) -> bool:
        """Whether the parents are the experts of a mixture."""
        return any(plan.reached is not None for plan in self.plans)

    @property
    def provenance(self) -> Provenance:
        """Which entries are old (those of one parent), copied (a second copy, or a mixture of several
        parents) or fresh.
        """
        if not self.plans:
            return Provenance.of_mean(self.model)
        return Provenance.of_parents(self.plans, self.same_as, self.as_experts)


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
    if len(models) < 2:
        raise MeristemError(f"fuse takes at least two networks, got {len(models)}")
    check_number(anatomies, models)
    found = list(anatomies) if anatomies is not None else [None] * len(models)
    pairs = [known(model, anatomy) for model, anatomy in zip(models, found, strict=True)]
    parents = [parent for parent, _ in pairs]
    for parent in parents:
        check_inputs(inputs, parent)
        if verify:
            check_weights(parent)
    if isinstance(method, Rebasin):
        return _averaged(parents, method, inputs if inputs is not None else example_inputs(parents[0]), verify)
    anatomies = [(anatomy or Anatomy.of(parent)).watched(inputs) for parent, anatomy in pairs]
    for parent, anatomy in zip(parents, anatomies, strict=True):
        check_same(parent, anatomy)
    if verify:
        anatomies = [_settled(anatomy, parent, inputs) for anatomy, parent in zip(anatomies, parents, strict=True)]
    weights = method.convex(len(parents))
    if inputs is None and (verify or method.norm == "equalised"):
        inputs = example_inputs(parents[0])
    if method.experts:
        return _as_experts(parents, anatomies, method, weights, verify, inputs)
    plans = method.plans(anatomies, parents, inputs or {})
    differ = any(differences(anatomies[0], other) for other in anatomies[1:])
    same_as = _same_as(parents)
    alike = not any(same_as) and not differ
    noise = method.noise if method.noise is not None else SELF_FUSION_NOISE
    noise = noise if alike else 0.0
    fused = _build(plans, parents, noise, method.seed)
    capped = anatomies[0].builder.fact("final_logit_softcapping")  # the mean of capped logits is no capped mean
    exact = alike or not (differ or capped or _norm_over_all(anatomies[0], grouped=method.norm == "grouped"))
    certificate = None
    if verify:
        certificate = _certify(
            plans, parents, weights, fused, inputs, lambda exact: _build(plans, exact, noise, method.seed)
        )
    if certificate and not certificate.holds and not method.allow_differences:
        check_instances(parents, certificate)
    if certificate and exact and not certificate.holds:
        if alike or not _fuses_with_itself(method, anatomies[0], parents[0], inputs):
            raise PreservationError(
                f"the fused network should compute its parents' mean and does not: {certificate.summary()}; "
                "the printed anatomy (print(anatomy), `meristem inspect`) shows what was inferred"
            )
        exact = False
        warnings.warn(_said_of_the_waist(anatomies[0], plans[0], parents, certificate), stacklevel=3)
    options = {"method": method.name, **asdict(method), "weights": list(weights), "parents": len(parents)}
    return Fusion(fused, tuple(plans), weights, certificate, exact, (options,), same_as)


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
    fused = _build(plans, twice, 0.0, method.seed)
    return _certify(plans, twice, shares, fused, inputs, lambda exact: _build(plans, exact, 0.0, method.seed)).holds


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
    verify: bool,
    inputs: Mapping[str, Tensor] | None,
) -> Fusion:
    """The parents as experts of a mixture (see `fuse_experts`). If they are one network, it is upcycled,
    which keeps its function.
    """
    same_as = _same_as(parents)
    alike = not any(same_as)
    plans = expert_plans(method, anatomies, parents, alike)
    fused = mixture_of_parents(plans, parents, weights)
    exact = plans[0].preserves_function and alike
    certificate = None
    if verify:
        again = lambda exact: mixture_of_parents(plans, exact, weights)  # noqa: E731
        certificate = _certify(plans, parents, weights, fused, inputs, again)
    if certificate and not certificate.holds and not method.allow_differences:
        check_instances(parents, certificate)
    if certificate and exact and not certificate.holds:
        raise PreservationError(
            f"one network as several experts should keep its function and does not: {certificate.summary()}"
        )
    options = {"method": method.name, **asdict(method), "weights": list(weights), "parents": len(parents)}
    return Fusion(fused, tuple(plans), weights, certificate, exact, (options,), same_as)


class MeanOfParents(nn.Module):
    """The weighted mean of the logits of several networks, as one network. A fusion is measured against it.

    Networks without logits are averaged in every output. A mean of log-probabilities is normalised again, as
    the output of a fused network is.
    """

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.models, self.shares = nn.ModuleList(models), tuple(weights)

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        from meristem.anatomy.inputs import outputs_of

        found = [outputs_of(model, inputs) for model in self.models]
        names = ["logits"] if all("logits" in outputs for outputs in found) else list(found[0])
        return {name: self._mean([outputs[name] for outputs in found]) for name in names if _alike(name, found)}

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        mean = sum(share * output for share, output in zip(self.shares, outputs, strict=True))
        assert isinstance(mean, Tensor)
        return mean.log_softmax(-1) if all(map(_are_log_probabilities, outputs)) else mean


def _alike(name: str, found: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether the outputs of this name have one shape in all parents. Hidden states have the width of their
    network.
    """
    return len({outputs[name].shape if name in outputs else None for outputs in found}) == 1


def _are_log_probabilities(output: Tensor) -> bool:
    if not output.dim() or output.shape[-1] < 2 or bool((output > 0).any()):
        return False
    total = output.double().logsumexp(-1)
    return bool((total.abs() < 1e-4).all())


def fuse_optimizer(fusion: Fusion, optimizers: Sequence[Optimizer], parents: Sequence[nn.Module]) -> Optimizer:
    """Make an optimizer for a fused network from those of its parents.

        fusion = ms.fuse_with_certificate([a, b])
        optimizer = ms.fuse_optimizer(fusion, [optimizer_a, optimizer_b], [a, b])

    The states are combined by `fuse_state`, and the hyperparameters are those of the first optimizer. If a
    run resumes from its saved state, call `ms.count_blocks_apart(optimizer)` after `load_state_dict`. Recipes
    do so themselves.

    Args:
        fusion: the result of `ms.fuse_with_certificate`.
        optimizers: the optimizers that trained `parents`. They are of one kind, and their state consists of
            moments (Adam, AdamW, SGD with momentum).
        parents: the networks that were fused, in the order of `ms.fuse_with_certificate`.

    Raises:
        MeristemError: if an optimizer is not that of its parent, if its state cannot be fused, or if
            `Rebasin` made the fusion.
    """
    optimizers = [unwrapped(optimizer) for optimizer in optimizers]
    states = [named_state(optimizer, parent) for optimizer, parent in zip(optimizers, parents, strict=True)]
    fused = without_state(optimizers[0], parents[0], fusion.model, fusion.plans[:1], scale_learning_rate=False)
    load_named_state(fused, fusion.model, fuse_state(fusion, states, family_of(optimizers[0])))
    return fused


POWERS: Mapping[Entry, int] = {  # of the gradient, in each kind of entry
    "gradient": 1,
    "second_moment": 2,
    "magnitude": 1,
    "row": 2,
    "column": 2,
    "direction": 0,
    "displacement": 0,
    "weights": 0,
}


def fuse_state(fusion: Fusion, states: Sequence[State], family: Family | None = None) -> dict[str, dict[str, Tensor]]:
    """Combine the optimizer states of the parents into one.

    Moments follow the dual maps, with the weights that the parents have in the mean. They are zero in cross
    blocks. The step count is the largest of the parents' counts. Other blocks have missed some of these steps
    (see `block_steps`). The gradient of the mean's loss at a parent's own block is the parent's gradient
    times its weight, as far as the outputs of the parents agree. For parents that became experts, see
    `fuse_experts.state_of_mixture`.

    Args:
        fusion: the result of `ms.fuse_with_certificate`.
        states: one state for each parent, by the name of the parameter.
        family: the row of the table `optimizer_families`. By default the first row that has all entries of
            the state.

    Raises:
        MeristemError: if `Rebasin` made the fusion, because units are then permuted.
    """
    if not fusion.plans:
        raise MeristemError(
            "the optimizers of aligned networks cannot be carried over, because units were permuted; start a new one"
        )
    family = family or family_by_entries({key for s in states for entries in s.values() for key in entries} - {MISSED})
    if fusion.as_experts:
        return state_of_mixture([p for p in fusion.plans if isinstance(p, UpcyclePlan)], fusion.weights, states, family)
    total: dict[str, dict[str, Tensor]] = {}
    counts: dict[str, list[Tensor]] = {}
    for plan, weight, state in zip(fusion.plans, fusion.weights, states, strict=True):
        for name, entries in grow_state(plan, state, family).items():
            fused = total.setdefault(name, {})
            for key in entries:
                if key == "step":
                    counts.setdefault(name, []).append(own_steps(plan, name, state))
                elif family.entries.get(key) == "scalar":
                    fused.setdefault(key, entries[key])
                elif key != MISSED:
                    value, power = entries[key], POWERS[family.entries[key]]
                    shared = not any(plan.tensors[name].maps)  # all parents' gradients are this tensor's: their mean
                    share = weight ** (power + 1 if shared else power)
                    fused[key] = fused[key] + share * value if key in fused else share * value
    for name, own in counts.items():
        shared = not any(fusion.plans[0].tensors[name].maps)
        steps = torch.stack(own).amin(0) if shared else torch.stack(own).sum(0)  # each entry is one parent's, or none's
        total[name]["step"] = steps.max()
        if (steps < steps.max()).any():
            total[name][MISSED] = steps.max() - steps
    return total


def _same_as(models: Sequence[nn.Module]) -> tuple[int, ...]:
    """For each network, the number of the first one that has the same weights."""
    states, weights = [model.state_dict() for model in models], [weights_of(model) for model in models]

    def alike(one: int, other: int) -> bool:
        return states[one].keys() == states[other].keys() and all(
            tensor.shape == states[one][name].shape and torch.equal(weights[one][name], weights[other][name])
            for name, tensor in states[other].items()
        )

    return tuple(next(i for i in range(n + 1) if models[i] is models[n] or alike(i, n)) for n in range(len(models)))


def _norm_over_all(anatomy: Anatomy, grouped: bool) -> bool:
    """Whether a norm that measures its inputs runs over the units of all parents, or whether the parents
    share a tensor inside the blocks in which they differ (norms of single heads). A batch norm does not
    count, because its statistics are stored. Grouped norms over the residual stream do not count either.
    """
    return bool(anatomy.measured) or any(
        d.role == "gain"
        and f"{t.name.rpartition('.')[0]}.running_var" not in anatomy.tensors
        and not (grouped and str(d.layout) == "hidden")
        for t in anatomy.tensors.values()
        for d in t.dimensions
    )


def _build(plans: Sequence[GrowthPlan], models: Sequence[nn.Module], noise: float, seed: int) -> nn.Module:
    parents = [weights_of(model) for model in models]
    anatomy = plans[0].source
    copied = replace(plans[0], maps={axis: AxisMap.tile(anatomy.sizes[axis], len(models)) for axis in plans[0].maps})

    def fused(name: str) -> Tensor:
        plan = plans[0].tensors[name]
        source = anatomy.tensors[plan.terms[0].source]
        parts = [_part(p, name, weights) for p, weights in zip(plans, parents, strict=True)]
        if not parts[0].is_floating_point():
            return parts[0]
        dtype = parts[0].dtype
        total = torch.stack([part.float() if is_half(dtype) else part for part in parts]).sum(0)
        readers = [i for i, d in enumerate(source.dimensions) if d.role == "read" and plan.maps[i] is not None]
        if not noise or not readers:
            return total.to(dtype)
        layout = source.dimensions[readers[-1]].layout
        units = layout.expand({axis: copied.axis_map(axis) for axis in layout.axes()})
        total = total + null_noise(plan, total, units, readers[-1], noise, seed)
        return round_shares(total, dtype, units.heard, readers[-1]) if is_half(dtype) else total

    weights = Weights(grown_dtypes(plans[0], models[0]), lambda name: fused(plans[0].own_names[name]))
    return with_flags(filled(plans[0].target, weights, like=models[0]), plans, models)


def _part(plan: GrowthPlan, name: str, state: Mapping[str, Tensor]) -> Tensor:
    """The part of one parent in a fused tensor. It is zero at the units of others, also where a gain is
    stored as gain - 1.
    """
    tensor_plan = plan.tensors[name]
    if not any(tensor_plan.maps):  # shared by all: scaled as stored
        tensor = state[tensor_plan.terms[0].source]
        return tensor * tensor_plan.scale if tensor.is_floating_point() else tensor
    grown = grow_tensor(tensor_plan, state.__getitem__)
    if (tensor_plan.offset or "variance" in tensor_plan.roles) and tensor_plan.maps[0] is not None:
        grown = torch.where(tensor_plan.maps[0].write.sourceless().to(grown.device), 0, grown)
    return grown


def _certify(
    plans: Sequence[GrowthPlan],
    models: Sequence[nn.Module],
    weights: Sequence[float],
    fused: nn.Module,
    inputs: Mapping[str, Tensor] | None,
    fuse_again: Callable[[Sequence[nn.Module]], nn.Module],
) -> Certificate:
    """As `growth.certify`: measure the stored weights and, if they are in half precision, the same fusion
    without rounding.
    """
    certificate = verify(MeanOfParents(models, weights), fused, inputs)
    if not is_half(stored_dtype(fused)) or certificate.holds_as_stored:
        return certificate
    unrounded = {id(model): in_float32(plan.source, model) for plan, model in zip(plans, models, strict=True)}
    exact = [unrounded[id(model)] for model in models]
    error, tolerance = error_in_high_precision(MeanOfParents(exact, weights), fuse_again(exact), inputs)
    return replace(certificate, unrounded_relative_error=error, unrounded_tolerance=tolerance)
