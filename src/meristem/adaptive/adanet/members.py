"""The training of one proposed member of an ensemble, on its own loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.adanet.ensemble import Ensemble, Subnetwork
from meristem.adaptive.stopping import Stopping
from meristem.errors import MeristemError

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class OwnTraining:
    """Train sub-networks one by one. The arguments are those of `EnsembleSearch`."""

    data: Batches
    num_outputs: int
    steps: int
    held_out: Batches | None
    check_every: int
    patience: int
    distillation: float

    def train(self, sub: Subnetwork, ensemble: Ensemble, seed: int) -> None:
        """Train in place, and freeze. The ensemble is the teacher of a distillation.

        Raises:
            MeristemError: if the logits have a wrong shape.
        """
        if self.steps:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._steps(sub, ensemble)
        sub.module.eval().requires_grad_(False)

    def _steps(self, sub: Subnetwork, ensemble: Ensemble) -> None:
        optimizer = torch.optim.Adam(sub.module.parameters(), lr=sub.learning_rate)
        sub.module.train()
        stopping = Stopping([*sub.module.parameters(), *sub.module.buffers()], self.patience)
        endless = itertools.chain.from_iterable(itertools.repeat(self.data))
        for step, (x, y) in enumerate(itertools.islice(endless, self.steps), 1):
            loss = self._loss(sub, ensemble, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            is_checked = self.held_out is not None and step % self.check_every == 0
            if is_checked and stopping.over(self._held_out_loss(sub), step):
                break
        stopping.restore()

    def _loss(self, sub: Subnetwork, ensemble: Ensemble, x: Tensor, y: Tensor) -> Tensor:
        logits = sub.say(x)[1]
        if logits.shape != (len(x), self.num_outputs):
            raise MeristemError(
                f"{sub.name} gives logits of shape {tuple(logits.shape)}; expected {(len(x), self.num_outputs)}"
            )
        loss = own_loss(logits, y)
        if not self.distillation or not ensemble.subnetworks:
            return loss
        with torch.no_grad():
            teacher = ensemble(x)
        said = own_loss(logits, teacher) if y.is_floating_point() else F.cross_entropy(logits, teacher.softmax(1))
        return loss + self.distillation * said

    @torch.no_grad()
    def _held_out_loss(self, sub: Subnetwork) -> float:
        sub.module.eval()
        pairs = [(float(own_loss(sub.say(x)[1], y)), len(x)) for x, y in self.held_out or ()]
        sub.module.train()
        return sum(loss * rows for loss, rows in pairs) / sum(rows for _, rows in pairs)


def own_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The mean squared error for numbers y (n, outputs), and the cross entropy for classes y (n,)."""
    if y.is_floating_point():
        return F.mse_loss(logits, y.reshape(logits.shape).to(logits))
    return F.cross_entropy(logits, y.long())
