"""The junction at which a network grows: two fields on the parameters of the large network, and their
conflict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meristem.dynamics.fields import Parameters, bracket_of, dot, gradient, norm
from meristem.growth.plans.plan import GrowthPlan

EPS = 1e-8  # Adam's
Forward = Callable[[nn.Module, Parameters], Tensor]  # (network, its parameters by name) -> the loss on some batch


@dataclass(frozen=True)
class Junction:
    """The measurements at a growth, in the parameter space of the large network. `junction` makes it.

    Args:
        loss_before: E_g, the weighted loss of the parents.
        loss_after: E_f, the loss of the large network.
        gradient_before: |g|.
        gradient_after: |f|.
        cosine: the cosine between g and f.
        flatness_before: |grad E_g|^2 / 4, the implicit regularisation per unit of learning rate.
        flatness_after: |grad E_f|^2 / 4.
        bracket: |[g, f]|.
    """

    loss_before: float
    loss_after: float
    gradient_before: float
    gradient_after: float
    cosine: float
    flatness_before: float
    flatness_after: float
    bracket: float

    @property
    def conflict(self) -> float:
        """|[g, f]| / |f|. Times the learning rate, it is the share of the first steps that works against the
        training before.
        """
        return self.bracket / self.gradient_after if self.gradient_after else 0.0


def junction(
    plans: Sequence[GrowthPlan],
    parents: Sequence[nn.Module],
    large: nn.Module,
    forward: Forward,
    weights: Sequence[float] = (1.0,),
    second_moments: Parameters | None = None,
) -> Junction:
    """Measure a growth: two gradients, and two Hessian-vector products of each field.

    Before the growth, the losses of the parents are trained, E_g(theta) = sum_i w_i E_i(R_i theta). R_i maps
    the parameters of the large network back to those of parent i (read^T on what is written, write^T on what
    is read). After the growth, the loss of the large network is trained.

    Adam steps by -h P grad E with P = 1 / (sqrt(v) + eps). While P does not change, that is plain gradient
    descent in the coordinates phi = P^-1/2 theta. With `second_moments`, everything is measured in these
    coordinates, and rates are those of Adam.

    Args:
        plans: the plan of each parent that grows into `large` (one for `grow`, several for `fuse`).
        parents: the networks before the growth, in the dtype of `large`. Put them in evaluation mode, so that
            nothing is random.
        large: the large network, in evaluation mode too.
        forward: the loss of a network with given parameters on a probe batch.
        weights: the weights of the parents.
        second_moments: Adam's v for the parameters of the large network, corrected for bias. An entry that is
            not finite is not known (cross blocks), and the mean square of their gradient replaces it.
    """
    theta = {name: p.detach() for name, p in large.named_parameters()}
    scales: dict[str, Tensor] = {}

    def at(parameters: Parameters) -> Parameters:
        return {name: scales[name] * tensor for name, tensor in parameters.items()} if scales else parameters

    def before(parameters: Parameters) -> Tensor:
        parts = [
            w * forward(parent, restricted(plan, parent, at(parameters), fused=len(plans) > 1))
            for w, plan, parent in zip(weights, plans, parents, strict=True)
        ]
        return torch.stack(parts).sum()

    def after(parameters: Parameters) -> Tensor:
        return forward(large, at(parameters))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
        if second_moments is not None:
            scales = _scales(second_moments, gradient(after, theta))
            theta = {name: tensor / scales[name] for name, tensor in theta.items()}
        g, f = gradient(before, theta), gradient(after, theta)
        bracket = bracket_of(before, after, theta, g, f)
        with torch.no_grad():
            losses = float(before(theta)), float(after(theta))
    sizes = norm(g), norm(f)
    return Junction(
        loss_before=losses[0],
        loss_after=losses[1],
        gradient_before=sizes[0],
        gradient_after=sizes[1],
        cosine=dot(g, f) / (sizes[0] * sizes[1]) if sizes[0] and sizes[1] else 0.0,
        flatness_before=sizes[0] ** 2 / 4,
        flatness_after=sizes[1] ** 2 / 4,
        bracket=norm(bracket),
    )


def _scales(second_moments: Parameters, found: Parameters) -> dict[str, Tensor]:
    """P^1/2 of every parameter (see `junction`)."""
    scales = {}
    for name, gradients in found.items():
        moment = second_moments.get(name, torch.full_like(gradients, torch.nan))
        unknown = ~moment.isfinite()
        stand_in = gradients[unknown].square().mean() if unknown.any() else 0.0
        scales[name] = (torch.where(unknown, stand_in, moment).sqrt() + EPS).rsqrt().to(gradients.dtype)
    return scales


def restricted(plan: GrowthPlan, parent: nn.Module, parameters: Parameters, fused: bool = False) -> dict[str, Tensor]:
    """R theta: the parameters of the parent, computed from those of the large network into which they grew.
    Linear in `parameters`.

    Args:
        plan: the plan of the parent.
        parent: the parent.
        parameters: the parameters of the large network.
        fused: whether there are other parents. What all of them share (the bias of a head, which is the mean
            of theirs) then belongs to each.
    """
    found: dict[str, Tensor] = {}
    for name, tensor_plan in plan.tensors.items():
        source = tensor_plan.terms[0].source
        if name not in parameters or source in found or tensor_plan.scale == 0:
            continue
        if fused and not any(tensor_plan.maps):
            found[source] = parameters[name]
            continue
        tensor = (parameters[name] + tensor_plan.offset) / tensor_plan.scale - tensor_plan.offset
        for dimension, axis_map in enumerate(tensor_plan.maps):
            if axis_map is not None:
                back = axis_map.write if tensor_plan.roles[dimension] == "read" else axis_map.read
                tensor = back.transposed_apply(tensor, dimension)
        found[source] = tensor
    return {name: found.get(name, p.detach()) for name, p in parent.named_parameters()}


def language_loss(batch: dict[str, Tensor]) -> Forward:
    """The loss that a transformers model returns for `batch` (with labels)."""

    def forward(model: nn.Module, parameters: Parameters) -> Tensor:
        return functional_call(model, dict(parameters), args=(), kwargs=batch, tie_weights=True).loss

    return forward


def junction_learning_rate(measured: Junction, bound: float = 0.1) -> float:
    """The learning rate at the junction that keeps h |[g, f]| / |f| at `bound`. Warm up from there (see
    `warmup_steps`).

    The term of the bracket grows with the product of the last rate before the growth and the first one after
    it. So a small rate at the junction limits it, and a large rate later keeps the whole flatness term. The
    rate is that of plain gradient descent, or that of Adam if `junction` was given its second moments.

    Args:
        measured: the result of `junction`.
        bound: the largest share of the first steps that may work against the training before.

    Returns:
        The learning rate. Infinite if there is no conflict.
    """
    return bound / measured.conflict if measured.conflict else float("inf")


def warmup_steps(junction_rate: float, learning_rate: float) -> int:
    """The number of steps of a linear warm-up to `learning_rate` whose first step has the rate
    `junction_rate`. 0 if that is not smaller.
    """
    return 0 if junction_rate >= learning_rate else math.ceil(learning_rate / junction_rate)
