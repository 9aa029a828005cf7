"""Gradient fields, their derivatives along each other, and the loss that gradient descent follows to second
order.

Gradient descent with steps h on E follows, up to O(h^2), the flow of E + (h / 4) |grad E|^2 (implicit
gradient regularisation: Barrett, Dherin, ICLR 2021, arXiv:2009.11162). Steps on E_g and then on E_f follow
both such terms and (1/2) t_g t_f [g, f], the Lie bracket of the two fields g = -grad E_g and f = -grad E_f
(Dherin 2023, arXiv:2311.00235). In general it is not a gradient, so no loss contains it. Signs and
coefficients are derived in `docs/theory.md`. The tests check them by the order of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]  # parameters by name -> a scalar, differentiable twice


def gradient(loss: Loss, parameters: Parameters) -> dict[str, Tensor]:
    """grad E at `parameters`, by name. Zero for parameters that the loss does not use."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    return _gradient(loss(leaves), leaves, create_graph=False)


def hessian_product(loss: Loss, parameters: Parameters, direction: Parameters) -> dict[str, Tensor]:
    """H v, the derivative of grad E along `direction` v, by two backward passes."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    first = _gradient(loss(leaves), leaves, create_graph=True)
    along = torch.stack([(first[name] * direction[name].detach()).sum() for name in leaves]).sum()
    if not along.requires_grad:  # a loss that is linear in its parameters
        return {name: torch.zeros_like(tensor) for name, tensor in leaves.items()}
    return _gradient(along, leaves, create_graph=False)


def lie_bracket(before: Loss, after: Loss, parameters: Parameters) -> dict[str, Tensor]:
    """[g, f] = f'g - g'f = H_f grad E_g - H_g grad E_f at `parameters`, for g = -grad `before` and f = -grad
    `after` (Dherin 2023, arXiv:2311.00235).

    theta(g then f) - theta(f then g) is t_g t_f [g, f] to leading order. It measures how much the order of
    two trainings matters.

    Args:
        before: the loss E_g that is trained first, as a function of the parameters.
        after: the loss E_f that is trained then.
        parameters: where to evaluate it: {name: tensor}.

    Returns:
        {name: tensor} with the shapes of `parameters`.
    """
    return bracket_of(before, after, parameters, gradient(before, parameters), gradient(after, parameters))


def bracket_of(
    before: Loss, after: Loss, parameters: Parameters, gradient_before: Parameters, gradient_after: Parameters
) -> dict[str, Tensor]:
    """`lie_bracket`, if both gradients are known."""
    of_after = hessian_product(after, parameters, gradient_before)
    of_before = hessian_product(before, parameters, gradient_after)
    return {name: of_after[name] - of_before[name] for name in parameters}


def modified_loss(loss: Loss, parameters: Parameters, learning_rate: float) -> tuple[float, float]:
    """(E, (h / 4) |grad E|^2): the loss, and the flatness term that steps of size h add to it (Barrett,
    Dherin, arXiv:2009.11162).

    Args:
        loss: the loss E, as a function of the parameters.
        parameters: where to evaluate it: {name: tensor}.
        learning_rate: the step size h.
    """
    with torch.no_grad():
        value = float(loss(parameters))
    return value, learning_rate / 4 * norm(gradient(loss, parameters)) ** 2


def norm(field: Parameters) -> float:
    """The Euclidean norm over all parameters."""
    return float(torch.stack([tensor.double().square().sum() for tensor in field.values()]).sum().sqrt())


def dot(a: Parameters, b: Parameters) -> float:
    """The inner product over all parameters."""
    return float(torch.stack([(a[name].double() * b[name].double()).sum() for name in a]).sum())


def _gradient(value: Tensor, leaves: Mapping[str, Tensor], create_graph: bool) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))
