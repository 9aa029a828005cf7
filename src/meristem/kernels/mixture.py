"""Random convex combinations of k kernels, as a parametrization of one weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meristem.errors import MeristemError
from meristem.subnetworks.path import generator

Granularity = Literal["layer", "unit", "entry"]


@dataclass(frozen=True)
class Mixing:
    """How kernels are combined during training. At deployment it is always their mean.

    The weights are p = (1 - epsilon) / k + epsilon q with q ~ Dirichlet(alpha, ..., alpha). They are drawn at
    every optimizer step, and depend only on (seed, step, layer).

    Args:
        kernels: k, the number of kernels.
        alpha: the concentration. Large values stay near the mean, small ones near single kernels.
        granularity: one draw for a whole weight ("layer"), for each output unit ("unit") or for each entry
            ("entry").
        epsilon: 1 is fully random, and 0 is the plain mean.
        anneal: the share of the run, at its end, over which epsilon falls linearly to 0. The network in
            training then becomes the deployed network.
        seed: the seed of the draws.

    Raises:
        MeristemError: if a value is out of its range.
    """

    kernels: int = 3
    alpha: float = 1.0
    granularity: Granularity = "unit"
    epsilon: float = 1.0
    anneal: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.kernels, bool) or not isinstance(self.kernels, int) or self.kernels < 2:
            raise MeristemError(f"kernels must be a whole number of at least 2, got {self.kernels!r}")
        if self.alpha <= 0:
            raise MeristemError(f"alpha must be positive, got {self.alpha}")
        if self.granularity not in get_args(Granularity):
            raise MeristemError(f"granularity must be layer, unit or entry, got {self.granularity!r}")
        for name in ("epsilon", "anneal"):
            if not 0 <= getattr(self, name) <= 1:
                raise MeristemError(f"{name} must lie in 0..1, got {getattr(self, name)}")

    def epsilon_at(self, step: int, total_steps: int | None) -> float:
        """Epsilon at optimizer step `step` of `total_steps`. There is no annealing if that is None."""
        if total_steps is None or not self.anneal:
            return self.epsilon
        left = (total_steps - step) / (self.anneal * total_steps)
        return self.epsilon * min(1.0, max(0.0, left))

    def draw(self, shape: torch.Size, step: int, name: str, total_steps: int | None) -> Tensor:
        """(k, ...) the weights of a step. They sum to 1 over the first dimension, and broadcast to (k,
        *shape).

        Args:
            shape: the shape of one kernel, with its output units first.
            step: the optimizer step.
            name: the name of the weight.
            total_steps: the number of steps of the run, which annealing needs.
        """
        groups = {"layer": torch.Size((1,) * len(shape)), "unit": shape[:1] + (1,) * (len(shape) - 1), "entry": shape}
        size = (self.kernels, *groups[self.granularity])
        gamma = torch._standard_gamma(torch.full(size, self.alpha), generator=generator(self.seed, step, name))
        q = gamma / gamma.sum(0)
        epsilon = self.epsilon_at(step, total_steps)
        return (1 - epsilon) / self.kernels + epsilon * q


class Mixture(nn.Module):
    """The parametrization: kernels of shape (k, *shape) become the weight (*shape) with which the layer
    computes.

    In training mode the weight is the combination that was drawn last. In evaluation mode, and before the
    first draw, it is the mean. The gradient of kernel i is p_i times the gradient of the weight.

    Args:
        name: the name of the weight in the network.
        mixing: the distribution of the draws.
        spread: a function that is called once with the weight of the layer and returns its kernels.
        reduce: average the gradient of the weight over all processes, once, instead of those of its k
            kernels.
        units: the dimension of the output units.
    """

    def __init__(
        self, name: str, mixing: Mixing, spread: Callable[[Tensor], Tensor], reduce: bool = False, units: int = 0
    ) -> None:
        super().__init__()
        self.name, self.mixing, self.reduce, self.units = name, mixing, reduce, units
        self._spread = spread
        self.weights: Tensor | None = None

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self._spread(weight.detach())

    def mix(self, kernels: Tensor, step: int, total_steps: int | None) -> None:
        """Draw the combination of an optimizer step."""
        shape = kernels.shape[1:]
        first = shape[self.units : self.units + 1] + shape[: self.units] + shape[self.units + 1 :]
        drawn = self.mixing.draw(first, step, self.name, total_steps).movedim(1, 1 + self.units)
        self.weights = drawn.to(kernels.device, kernels.dtype)

    def forward(self, kernels: Tensor) -> Tensor:
        if not self.training or self.weights is None:
            return kernels.mean(0)
        weights = self.weights.to(kernels.device, kernels.dtype)  # which the network may have changed since the draw
        mixed: Tensor = _Combination.apply(kernels, weights)  # pyright: ignore[reportAssignmentType]
        if self.reduce and dist.is_initialized() and mixed.requires_grad:
            mixed.register_hook(_averaged)
        return mixed


class _Combination(torch.autograd.Function):
    """The sum of p_i K_i, and p_i G as the gradient of kernel i, each in one pass. The graph that autograd
    builds for k slices would fill k tensors of zeros, each as large as all kernels together.
    """

    @staticmethod
    def forward(ctx: Any, kernels: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        mixed = weights[0] * kernels[0]
        for p, kernel in zip(weights[1:], kernels[1:], strict=True):
            mixed.addcmul_(p, kernel)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return weights * gradients[0], None


def _averaged(gradient: Tensor) -> Tensor:
    gradient = gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()
