"""The discriminative infinite RBM: a label among the visible units, with p(label | v) trained together with
p(v, label).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.rbm.infinite import InfiniteRBM
from meristem.adaptive.rbm.machine import Gradients, Machine
from meristem.adaptive.rbm.training import Learner, Options
from meristem.adaptive.rbm.visible import LabelledVisible, Visible
from meristem.adaptive.targets import ClassLabels


def label_free_energies(machine: Machine, v: Tensor, num_labels: int) -> Tensor:
    """F(v, y) for every label y, up to a term that depends only on v (n, num_labels). p(y | v) is the softmax
    of its negative.
    """
    inputs, labels = machine.weights[:, :-num_labels], machine.weights[:, -num_labels:]
    assert isinstance(machine.visible, LabelledVisible)
    from_inputs = machine.visible.inputs.scaled(v) @ inputs.T + machine.hidden_bias
    x = from_inputs[:, None, :] + labels.T
    return -machine.order.log_sum(x, machine.hidden_bias) - machine.visible_bias[-num_labels:]


@dataclass(eq=False, repr=False)
class InfiniteRBMClassifier(ClassLabels, ClassifierMixin, InfiniteRBM):
    """An infinite RBM over data and one-hot labels, trained on -ln p(y | v) - generative_weight ln p(v, y)
    (the hybrid objective of arXiv:1502.02476, section 6, after Larochelle & Bengio 2008).

    Args:
        generative_weight: the weight of the generative term. The other options are those of `InfiniteRBM`.

    Attributes:
        classes_: the labels.
        components_: W of data and labels (n_components_, n_features_in_ + classes).
    """

    _: KW_ONLY
    generative_weight: float = 0.005

    def _visible_kind(self) -> Visible:
        return LabelledVisible(super()._visible_kind(), len(self.classes_))

    def _options(self) -> Options:
        return replace(super()._options(), generative_weight=self.generative_weight)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to X (n_samples, n_features) and labels y (n_samples,).

        Raises:
            MeristemError: as in `InfiniteRBM.fit`.
            ValueError: if y does not hold classes, or only one class.
        """
        self.check_options()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        numbers = self._read_labels(y)
        self._fit(self._labelled(X, numbers))
        return self

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None) -> Self:
        """Make one pass through X (n_samples, n_features) and y (n_samples,) that continues from what is
        learned.

        Args:
            classes: all labels that will occur. The first call needs them.

        Raises:
            MeristemError: as in `fit`.
            ValueError: if the first call has no classes, or if a label is not among them.
        """
        self.check_options()
        first = not hasattr(self, "components_")
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], reset=first)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs all classes: partial_fit(X, y, classes=...)")
            self._read_labels(np.asarray(classes))
        strange = np.setdiff1d(y, self.classes_)
        if len(strange):
            raise ValueError(f"{strange[0]!r} is not one of the classes {self.classes_.tolist()}")
        self._go_on(self._labelled(X, torch.as_tensor(np.searchsorted(self.classes_, y))))
        return self

    def _labelled(self, X: np.ndarray, numbers: Tensor) -> Tensor:
        """Inputs and one-hot labels, joined along the columns."""
        inputs = self._inputs(X)
        labels = F.one_hot(numbers, len(self.classes_)).to(self.device)
        return torch.cat([inputs, labels.to(inputs.dtype)], 1)

    def _initial_visible_bias(self, data: Tensor) -> Tensor:
        bias = super()._initial_visible_bias(data)
        bias[-len(self.classes_) :] = 0
        return bias

    def _update(self, learner: Learner, data: Tensor, index: Tensor) -> None:
        batch = data[index]
        learner.update(batch, self._discriminative(learner.machine, batch))

    def _discriminative(self, machine: Machine, batch: Tensor) -> Gradients:
        """The gradient of -mean ln p(y | v)."""
        count = len(self.classes_)
        leaves = [t.clone().requires_grad_() for t in (machine.weights, machine.hidden_bias, machine.visible_bias)]
        weights, hidden_bias, visible_bias = leaves
        traced = Machine(weights, hidden_bias, visible_bias, machine.order, machine.visible)
        free = label_free_energies(traced, batch[:, :-count], count)
        loss = F.cross_entropy(-free, batch[:, -count:])
        return Gradients(*torch.autograd.grad(loss, leaves))

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(y | v) (n_samples, classes), exactly."""
        machine, v = self._at(X)
        return torch.softmax(-label_free_energies(machine, v, len(self.classes_)), -1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label (n_samples,)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The accuracy on X (n_samples, n_features) and y (n_samples,)."""
        return ClassifierMixin.score(self, X, y, sample_weight)

    def _over_labels(self, X: Any, of: Callable[[Machine, Tensor], Tensor]) -> np.ndarray:
        """The mean over p(y | v) of the result of `of` for (v, y)."""
        machine, v = self._at(X)
        count = len(self.classes_)
        weight = torch.softmax(-label_free_energies(machine, v, count), -1)
        labels = torch.eye(count, device=v.device, dtype=v.dtype)
        each = [of(machine, torch.cat([v, label.expand(len(v), -1)], 1)) for label in labels]
        return torch.einsum("nc,cnl->nl", weight, torch.stack(each)).cpu().numpy()

    def transform(self, X: Any) -> np.ndarray:
        """p(h_i = 1 | v), summed over the labels (n_samples, n_components_)."""
        return self._over_labels(X, Machine.hidden_mean)

    def posterior(self, X: Any) -> np.ndarray:
        """p(z | v), summed over the labels (n_samples, n_components_)."""
        return self._over_labels(X, Machine.posterior)

    def free_energy(self, X: Any) -> np.ndarray:
        """-ln of the sum over labels of exp(-F(v, y)) (n_samples,)."""
        machine, v = self._at(X)
        assert isinstance(machine.visible, LabelledVisible)
        count = len(self.classes_)
        of_inputs = machine.visible.inputs.energy(v, machine.visible_bias[:-count])
        return (of_inputs - torch.logsumexp(-label_free_energies(machine, v, count), -1)).cpu().numpy()
