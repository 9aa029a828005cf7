"""The convex fit of the output weights of new units under an l1 price, to the last digit (AdaNet, eq. 5).

It minimises G(w) = sum_i s_i loss(f_i + h_i w, y_i) + gamma |w|_1, where s are the shares of the rows, whose
sum is 1. With one output or few weights, proximal Newton steps on the whole Hessian (Lee, Sun & Saunders
2014) come close in a few passes through the rows. Accelerated proximal steps (FISTA with restarts, Beck &
Teboulle 2009) find the support. Newton steps on the support, by conjugate gradients, find the digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn import config_context
from sklearn.linear_model import enet_path
from torch import Tensor

from meristem.adaptive.adanet.losses import Loss

SHORTEST = 1e-12  # a step that is not shortened further, because the error is rounding
PATH_TOLERANCE = 1e-6  # of the optimality conditions on a path of prices
DENSE = 512  # units, at most, for which the Hessian is computed


@dataclass(frozen=True)
class Problem:
    """One convex problem: `features` h (n, units), `offset` f and targets y (n, outputs), shares s (n,).

    `gamma` is one price, or one for each weight (units, 1).
    """

    loss: Loss
    offset: Tensor
    features: Tensor
    targets: Tensor
    shares: Tensor
    gamma: float | Tensor

    def start(self) -> Tensor:
        """Weights of zero (units, outputs)."""
        return self.features.new_zeros(self.features.shape[1], self.offset.shape[1])

    def applied(self, w: Tensor) -> Tensor:
        """The linear map from the weights to what they add to the outputs (n, outputs)."""
        return self.features @ w

    def adjoint(self, slope: Tensor) -> Tensor:
        """The transpose of `applied`, from (n, outputs) to the shape of the weights."""
        return self.features.T @ slope

    def outputs(self, w: Tensor) -> Tensor:
        """The offset plus `applied`. It is most of the work, so the other methods take known outputs."""
        return self.offset + self.applied(w)

    def smooth(self, outputs: Tensor) -> Tensor:
        """The loss without the penalty, one number."""
        return self.shares @ self.loss.value(outputs, self.targets)

    def paid(self, w: Tensor) -> Tensor:
        """gamma |w|_1."""
        return (self.gamma * w.abs()).sum()

    def value(self, w: Tensor) -> Tensor:
        """G(w)."""
        return self.smooth(self.outputs(w)) + self.paid(w)

    def gradient(self, outputs: Tensor) -> Tensor:
        """The derivative of the loss with respect to the weights at these outputs (units, outputs)."""
        return self.adjoint(self.shares[:, None] * self.loss.slope(outputs, self.targets))

    def curved(self, outputs: Tensor, direction: Tensor) -> Tensor:
        """The second derivative of the loss at these outputs, applied to a direction (units, outputs)."""
        bent = self.loss.curvature(outputs, self.targets, self.applied(direction))
        return self.adjoint(self.shares[:, None] * bent)

    @property
    def is_dense(self) -> bool:
        """Whether `hessian` is small enough to be computed: one output and few units."""
        one_output = self.offset.shape[1] == 1 and self.features.dim() == 2
        return one_output and isinstance(self.gamma, float | int) and self.features.shape[1] <= DENSE

    def hessian(self, outputs: Tensor) -> Tensor:
        """The second derivative of the loss for one output (units, units)."""
        bent = self.shares[:, None] * self.loss.curvature(outputs, self.targets, torch.ones_like(outputs))
        return self.features.T @ (self.features * bent)

    def violation(self, w: Tensor) -> float:
        """The largest violation of the optimality (KKT) conditions. It is 0 at the minimum."""
        gradient = self.gradient(self.outputs(w))
        at_zero = (gradient.abs() - self.gamma).clamp(min=0)
        elsewhere = (gradient + self.gamma * w.sign()).abs()
        return float(torch.where(w == 0, at_zero, elsewhere).max()) if w.numel() else 0.0


def refit(problem: Problem, tolerance: float = 1e-12, rounds: int = 12, newton_steps: int = 12) -> Tensor:
    """The minimiser w (units, outputs), with exact zeros.

    With one output, float64 inputs reach a violation of about 1e-12. With several outputs, softmax is flat
    along shifts of all classes. With gamma 0 and classes that a plane separates, no minimum exists. The
    result is then the best point of the steps made, and `Problem.violation` measures its quality.
    """
    w = problem.start()
    if not w.numel():
        return w
    if problem.is_dense:
        w = _proximal_newton(problem, w, tolerance)
        if problem.violation(w) <= tolerance:
            return w
    step, best = 1.0, float("inf")
    for _ in range(rounds):
        w, step = _proximal(problem, w, step)
        w = _newton(problem, w, tolerance / 10, newton_steps)
        violation = problem.violation(w)
        if violation <= tolerance or (violation < 100 * tolerance and violation >= best):
            break
        best = min(best, violation)
    return w


def _proximal_newton(problem: Problem, w: Tensor, tolerance: float, steps: int = 30) -> Tensor:
    """Steps to the minimum of the loss's second-order model plus the penalty. A step is shortened until the
    objective falls.
    """
    outputs = problem.outputs(w)
    value = float(problem.smooth(outputs) + problem.paid(w))
    for _ in range(steps):
        gradient = problem.gradient(outputs)
        hessian = problem.hessian(outputs)
        hessian.diagonal().add_(1e-10 * float(hessian.diagonal().mean()) + 1e-14)
        direction = _quadratic(hessian, gradient - hessian @ w, problem.gamma, w) - w
        length = 1.0
        while length > 1e-6:
            new = w + length * direction
            outputs_new = problem.outputs(new)
            reached = float(problem.smooth(outputs_new) + problem.paid(new))
            if reached <= value:
                break
            length /= 2
        else:
            break
        fell, w, outputs, value = value - reached, new, outputs_new, reached
        if problem.violation(w) <= tolerance or fell <= 0:
            break
    return w


def _quadratic(hessian: Tensor, linear: Tensor, gamma: float | Tensor, start: Tensor) -> Tensor:
    """The minimum of w H w / 2 + w linear + gamma |w|_1 (units, 1). A lasso finds the support, and a linear
    system the digits.
    """
    if isinstance(gamma, Tensor):
        return _on_support(hessian, linear, gamma, _by_coordinates(hessian, linear, gamma, start))
    root = torch.linalg.cholesky(hessian)  # H = L L', so that it is |L' w + L^-1 linear|^2 / 2 and a constant
    wanted = -torch.linalg.solve_triangular(root, linear, upper=False)
    if not gamma:
        return torch.linalg.solve_triangular(root.T, wanted, upper=True)
    rows, targets, begin = (t.cpu().numpy() for t in (root.T, wanted[:, 0], start[:, 0]))
    with warnings.catch_warnings(), config_context(skip_parameter_validation=True):  # it takes longer than the fit
        warnings.simplefilter("ignore")  # above its tolerance it is close enough, since another step follows
        _, path, _ = enet_path(
            np.asfortranarray(rows),
            targets,
            l1_ratio=1.0,
            alphas=[gamma / len(rows)],  # pyright: ignore[reportArgumentType]
            precompute=False,  # pyright: ignore[reportArgumentType]
            coef_init=begin,
            check_input=False,
            tol=1e-9,
            max_iter=500,
        )
    w = hessian.new_tensor(path)
    return _on_support(hessian, linear, torch.full_like(w, gamma), w)


def _on_support(hessian: Tensor, linear: Tensor, gamma: Tensor, w: Tensor) -> Tensor:
    """A minimum whose zeros and signs are known, to the last digit."""
    support = w[:, 0] != 0
    pulled = linear[support] + gamma[support] * w[support].sign()
    exact = torch.linalg.solve(hessian[support][:, support], -pulled)
    if bool((exact.sign() == w[support].sign()).all()):
        w[support] = exact
    return w


def _by_coordinates(hessian: Tensor, linear: Tensor, gamma: Tensor, start: Tensor, sweeps: int = 300) -> Tensor:
    """The same minimum for few units with a price each (units, 1), by coordinate descent (Friedman, Hastie &
    Tibshirani 2010).
    """
    h, pull, price, w = (t.cpu().numpy() for t in (hessian, linear[:, 0], gamma[:, 0], start[:, 0].clone()))
    for _ in range(sweeps):
        before = w.copy()
        for unit, curvature in enumerate(h.diagonal()):
            slope = pull[unit] + h[unit] @ w - curvature * w[unit]
            w[unit] = -np.sign(slope) * max(abs(slope) - price[unit], 0.0) / curvature
        if np.abs(w - before).max() <= 1e-12 * max(1.0, np.abs(w).max()):
            break
    return hessian.new_tensor(w)[:, None]


def path(problem: Problem, gammas: Sequence[float], count: int = 60, newton_steps: int = 3) -> Iterator[Tensor]:
    """Minimisers for falling prices, each started from the one before (Friedman, Hastie & Tibshirani 2010).
    They are close enough to choose a price.

    Args:
        gammas: the prices, which replace the problem's own.
        count: the number of steps for each price.
        newton_steps: their number for each price, in float64 and where `refit` begins with them, too.
    """
    step, w = 1.0, problem.start()
    for gamma in gammas:
        now = replace(problem, gamma=gamma)
        if now.is_dense and w.dtype == torch.float64:
            w = _proximal_newton(now, w, PATH_TOLERANCE, newton_steps)
        else:
            w, step = _proximal(now, w, step, count)
        yield w


def _proximal(problem: Problem, w: Tensor, step: float, count: int = 200) -> tuple[Tensor, float]:
    """FISTA with backtracking. It restarts where the value rises, and ends early when the weights no longer
    change.
    """
    rounding = max(1e-12, 4 * torch.finfo(w.dtype).eps)
    outputs = problem.outputs(w)
    ahead, outputs_ahead, momentum = w, outputs, 1.0
    value = float(problem.smooth(outputs) + problem.paid(w))
    for _ in range(count):
        gradient, smooth = problem.gradient(outputs_ahead), float(problem.smooth(outputs_ahead))
        while True:
            moved = ahead - step * gradient
            new = moved.sign() * (moved.abs() - step * problem.gamma).clamp(min=0)
            change, outputs_new = new - ahead, problem.outputs(new)
            bound = smooth + float((gradient * change).sum() + change.square().sum() / (2 * step))
            reached = float(problem.smooth(outputs_new))
            if reached <= bound + rounding * abs(smooth) or step < SHORTEST:
                break
            step /= 2
        now = reached + float(problem.paid(new))
        if now > value and momentum > 1:
            ahead, outputs_ahead, momentum = w, outputs, 1.0
            continue
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        further = (momentum - 1) / following
        ahead, outputs_ahead = new + further * (new - w), outputs_new + further * (outputs_new - outputs)
        still = float((new - w).abs().max()) <= 1e-9 * max(1.0, float(new.abs().max()))
        w, outputs, value, momentum = new, outputs_new, min(now, value), following
        if still:
            break
    return w, step * 2


def _newton(problem: Problem, w: Tensor, tolerance: float, steps: int) -> Tensor:
    """Newton steps on the support of w with fixed signs. A unit that would cross zero stops at zero."""
    outputs = problem.outputs(w)
    for _ in range(steps):
        support = (w != 0).to(w.dtype)
        residual = (problem.gradient(outputs) + problem.gamma * w.sign()) * support
        if float(residual.abs().max()) <= tolerance:
            break
        direction = _conjugate(problem, outputs, residual, support, tolerance)
        value, length = float(problem.smooth(outputs) + problem.paid(w)), 1.0
        while length > 1e-10:
            new = w + length * direction
            new = torch.where(new.sign() * w.sign() < 0, torch.zeros_like(new), new)
            outputs_new = problem.outputs(new)
            if float(problem.smooth(outputs_new) + problem.paid(new)) <= value:
                break
            length /= 2
        else:
            break
        w, outputs = new, outputs_new
    return w


def _conjugate(problem: Problem, outputs: Tensor, residual: Tensor, support: Tensor, tolerance: float) -> Tensor:
    """-H^-1 residual on the support, by conjugate gradients."""
    solution, r = torch.zeros_like(residual), -residual
    p, norm = r.clone(), float(r.square().sum())
    target = max(norm * 1e-28, tolerance**2 / 100)
    for _ in range(min(2 * int(support.sum()) + 10, 300)):
        bent = problem.curved(outputs, p) * support
        along = float((p * bent).sum())
        if (
            along <= 1e-12 * norm or norm <= target
        ):  # flat (softmax does not change with a shift of all classes), or finished
            break
        solution, r = solution + norm / along * p, r - norm / along * bent
        new = float(r.square().sum())
        p, norm = r + new / norm * p, new
    return solution
