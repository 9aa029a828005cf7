"""The junction at which a network grows: two fields on the parameters of the large network, and their conflict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meristem.dynamics.fields import Parameters, bracket_of, dot, gradient, norm
from meristem.growth.plan import GrowthPlan

EPS = 1e-8  # Adam's
Forward = Callable[[nn.Module, Parameters], Tensor]  # (network, its parameters by name) -> the loss on some batch


@dataclass(frozen=True)
class Junction:
    """What is measured at a growth point, in the parameter space of the large network.

    Args:
        loss_before, loss_after: E_g (of the parents, weighted) and E_f (of the large network).
        gradient_before, gradient_after: |g| and |f|.
        cosine: between them.
        flatness_before, flatness_after: |grad E|^2 / 4, the implicit regularisation per unit of learning rate.
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
        """|[g, f]| / |f|: times the learning rate, the share of the first steps that goes against the training before."""
        return self.bracket / self.gradient_after if self.gradient_after else 0.0


def junction(
    plans: Sequence[GrowthPlan],
    parents: Sequence[nn.Module],
    large: nn.Module,
    forward: Forward,
    weights: Sequence[float] = (1.0,),
    second_moments: Parameters | None = None,
) -> Junction:
    """Measure a growth point: two gradients and two Hessian-vector products of each field.

    Before the growth the parents' losses are trained, E_g(theta) = sum_i w_i E_i(R_i theta), where R_i takes the large network's
    parameters back to parent i's (read^T on what is written, write^T on what is read); after it, the large network's own.

    Adam steps by -h P grad E with P = 1 / (sqrt(v) + eps). While P is what it is, that is plain gradient descent in the coordinates
    phi = P^-1/2 theta, so with `second_moments` everything is measured there, and rates are Adam's.

    Args:
        plans: how each parent flows into `large` (one for `grow`, several for `fuse`).
        parents, large: the networks, in the same dtype; put them in evaluation mode, so that nothing is random.
        forward: the loss of a network with given parameters on a probe batch.
        weights: of the parents.
        second_moments: Adam's v of the large network's parameters, corrected for its bias; not finite where nothing is known (cross
            blocks), for which the mean square of their gradient stands in.
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
    """P^1/2 of every parameter, see `junction`."""
    scales = {}
    for name, gradients in found.items():
        moment = second_moments.get(name, torch.full_like(gradients, torch.nan))
        unknown = ~moment.isfinite()
        stand_in = gradients[unknown].square().mean() if unknown.any() else 0.0
        scales[name] = (torch.where(unknown, stand_in, moment).sqrt() + EPS).rsqrt().to(gradients.dtype)
    return scales


def restricted(plan: GrowthPlan, parent: nn.Module, parameters: Parameters, fused: bool = False) -> dict[str, Tensor]:
    """R theta: the parent's parameters, read off those of the large network, which they grew into. Linear in `parameters`.

    Args:
        fused: there are other parents; what all of them share (a head's bias, the mean of theirs) is each one's.
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
    """The learning rate at the junction that keeps h |[g, f]| / |f| at `bound`; warm up from there (see `warmup_steps`).

    The bracket's term grows with the product of the last rate before the growth and the first one after it, so a small rate at the
    junction limits it, and a large one later loses nothing of the flatness term. Of plain gradient descent, or of Adam if its second
    moments were given to `junction`.
    """
    return bound / measured.conflict if measured.conflict else float("inf")


def warmup_steps(junction_rate: float, learning_rate: float) -> int:
    """Steps of a linear warm-up to `learning_rate` whose first is `junction_rate` long; 0 if that is no less."""
    return 0 if junction_rate >= learning_rate else math.ceil(learning_rate / junction_rate)
