"""AdaNet as a framework: a generator proposes any modules in each round, and they are mixed into an ensemble
(Weill et al. 2019).

In contrast to the paper's algorithm, a sub-network is trained on its own loss, and all mixture weights are
fitted again in every round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meristem.adaptive.adanet.ensemble import Ensemble, Generator, Subnetwork
from meristem.adaptive.adanet.losses import Loss, Softmax, Squared
from meristem.adaptive.adanet.members import Batches, OwnTraining
from meristem.adaptive.adanet.mixtures import Said, check_mixture, fit_mixture
from meristem.adaptive.adanet.rounds import Judged, Rounds
from meristem.adaptive.tensors import seed_of
from meristem.errors import MeristemError

Strategy = Literal["grow", "solo", "all"]


@dataclass(frozen=True)
class Mixed:
    """An ensemble that a round considers: its members, their mixture weights, and their places among the old
    members and the proposals.
    """

    members: list[Subnetwork]
    weights: list[Tensor]
    places: list[int]


@dataclass
class EnsembleSearch:
    """Grow an ensemble in rounds. The search ends when no candidate of a round is better than the ensemble.

    Args:
        generator: a callable that proposes the sub-networks of a round.
        data: batches (x, y) that can be iterated many times, and may be shuffled each time. One pass is kept
            to judge candidates. y holds classes as whole numbers (n,), or numbers (n, outputs).
        num_outputs: the number of outputs.
        mixture: the kind of mixture weights: "scalar", "vector", "matrix" or "mean".
        strategies: which ensembles a round considers: "grow" (the old members and one new), "solo" (one new
            member alone), "all" (the old and all new members).
        rounds: the number of rounds, at most.
        steps: the training steps of each proposal, at most. 0 uses the modules as they are.
        held_out: batches on which the training of a proposal stops early. The state of the lowest loss is
            kept.
        check_every: the number of steps between two checks of that loss.
        patience: the number of checks without a lower loss after which training stops.
        adanet_lambda, adanet_beta: the terms of each member's price, adanet_lambda r + adanet_beta.
        evaluator: a function of the ensemble whose result is minimised. By default it is the objective on
            `data` with these prices.
        distillation: the weight of a cross entropy towards the present ensemble in the training of each
            proposal (born-again AdaNet).
        force_grow: accept the best candidate even if it is worse than the ensemble.
        seed: the seed from which, with the number of the round, all randomness follows.
        checkpoint: a file that keeps the finished rounds, and from which an interrupted search continues.
        log_dir: a folder to which the record of every round is written for TensorBoard.
    """

    generator: Generator
    data: Batches
    num_outputs: int
    mixture: Literal["scalar", "vector", "matrix", "mean"] = "scalar"
    strategies: Sequence[Strategy] = ("grow",)
    rounds: int = 3
    steps: int = 500
    held_out: Batches | None = None
    check_every: int = 50
    patience: int = 4
    adanet_lambda: float = 0.0
    adanet_beta: float = 0.0
    evaluator: Callable[[Ensemble], float] | None = None
    distillation: float = 0.0
    force_grow: bool = False
    seed: int = 0
    checkpoint: str | None = None
    log_dir: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    measure = "score"

    def run(self) -> Ensemble:
        """Run the search and return the ensemble. `history` then holds a record of each round.

        Raises:
            MeristemError: for an unknown mixture or strategy, for names that are not unique in a round, or
                for outputs of a wrong shape.
        """
        unknown = set(self.strategies) - {"grow", "solo", "all"}
        if unknown or not self.strategies:
            raise MeristemError(
                f"strategies are some of grow, solo and all; got {', '.join(map(repr, self.strategies))}"
            )
        check_mixture(self.mixture)
        self._rows = list(self.data)
        self._loss: Loss = Squared() if self._rows[0][1].is_floating_point() else Softmax()
        self._wanted = self._targets()
        self._ensemble = Ensemble(self.mixture)
        Rounds(
            self,
            self.rounds,
            force=self.force_grow,
            checkpoint=self.checkpoint,
            fingerprint=self._fingerprint,
            log_dir=self.log_dir,
            history=self.history,
        ).run()
        return self._ensemble

    def start(self) -> None:
        """None: an empty ensemble has no score."""

    def _targets(self) -> Tensor:
        y = torch.cat([y for _, y in self._rows])
        if y.is_floating_point():
            return y.double().reshape(len(y), -1)
        return F.one_hot(y, self.num_outputs).double()

    def judged(self, number: int) -> list[Judged[Mixed]]:
        """The ensembles that the strategies form from the old members and the proposals of the round, each
        with its best mixture.
        """
        proposals = self._proposals(number, self._ensemble)
        training = OwnTraining(
            self.data,
            self.num_outputs,
            self.steps,
            self.held_out,
            self.check_every,
            self.patience,
            self.distillation,
        )
        for position, sub in enumerate(proposals):
            training.train(sub, self._ensemble, seed_of(self.seed, number, position))
        old = list(self._ensemble.subnetworks)
        pool = [*old, *proposals]
        known = {id(sub): self._said(sub) for sub in pool}
        candidates: dict[str, list[Subnetwork]] = {}
        for strategy in self.strategies:
            if strategy == "all":
                candidates["all"] = pool
            else:
                candidates |= {f"{strategy} {s.name}": [*(old if strategy == "grow" else []), s] for s in proposals}
        found = []
        for name, members in candidates.items():
            weights, objective = self._fit(members, known, self._wanted)
            places = [[sub is member for sub in pool].index(True) for member in members]
            found.append(Judged(name, Mixed(members, weights, places), self._score(members, weights, objective)))
        return found

    def record(
        self, found: Sequence[Judged[Mixed]], chosen: Judged[Mixed] | None, last: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The scores by name, and the places of the members among the old members and the proposals."""
        scores = {judged.name: judged.score for judged in found}
        if chosen is None:
            return {"candidates": scores, "members": list(range(len(self._ensemble.subnetworks)))}
        return {"candidates": scores, "chosen": chosen.name, "members": chosen.what.places}

    def join(self, chosen: Judged[Mixed]) -> None:
        """Replace the members."""
        self._ensemble.set_members(chosen.what.members, chosen.what.weights)

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The weights of the members and their mixture."""
        return self._ensemble.state_dict(), None

    def restore(self, tensors: dict[str, Tensor], note: Any, history: Sequence[Mapping[str, Any]]) -> None:
        """Restore the ensemble of the finished rounds. The generator gives the shapes of the members, and the
        file their weights.
        """
        ensemble = self._ensemble
        for record in history:
            pool = [*ensemble.subnetworks, *self._proposals(record["round"], ensemble)]
            members = [pool[place] for place in record["members"]]
            ensemble.set_members(members, [torch.zeros(()) for _ in members])
        weights = [tensors[f"mixture_weights.{k}"] for k in range(len(ensemble.subnetworks))]
        ensemble.set_members(ensemble.subnetworks, weights)
        ensemble.load_state_dict(tensors)
        ensemble.eval().requires_grad_(False)

    def _proposals(self, number: int, ensemble: Ensemble) -> list[Subnetwork]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, number, -1))
            proposals = list(self.generator(number, ensemble))
        names = [sub.name for sub in proposals]
        if not proposals or len(set(names)) < len(names):
            raise MeristemError(
                f"a generator must give at least one proposal, each with a name of its own; got {names}"
            )
        return proposals

    def _said(self, sub: Subnetwork) -> Said:
        with torch.no_grad():
            parts = [sub.say(x) for x, _ in self._rows]
        return Said(*(torch.cat(tensors).double() for tensors in zip(*parts, strict=True)))

    def _fit(self, members: list[Subnetwork], known: dict[int, Said], targets: Tensor) -> tuple[list[Tensor], float]:
        prices = [self.adanet_lambda * sub.complexity + self.adanet_beta for sub in members]
        return fit_mixture(self.mixture, [known[id(sub)] for sub in members], prices, targets, self._loss)

    def _score(self, members: list[Subnetwork], weights: list[Tensor], objective: float) -> float:
        if self.evaluator is None:
            return objective
        candidate = Ensemble(self.mixture)
        candidate.set_members(members, weights)
        with torch.no_grad():
            return float(self.evaluator(candidate))

    def _fingerprint(self) -> str:
        options = (self.mixture, tuple(self.strategies), self.steps, self.adanet_lambda, self.adanet_beta)
        stops = (self.check_every, self.patience) if self.held_out is not None else None
        more = (self.distillation, self.force_grow, self.seed, self.num_outputs, stops)
        held = rows_digest(self.held_out) if self.held_out is not None else b""
        return hashlib.sha256(repr((options, more)).encode() + rows_digest(self._rows) + held).hexdigest()


def rows_digest(batches: Batches) -> bytes:
    """A digest of all rows (x, y). It does not depend on the order of the rows or on the batches."""
    rows = []
    for x, y in batches:
        flat = (np.ascontiguousarray(part.detach().cpu().numpy()).reshape(len(part), -1) for part in (x, y))
        rows += [hashlib.sha256(a.tobytes() + b.tobytes()).digest() for a, b in zip(*flat, strict=True)]
    return hashlib.sha256(b"".join(sorted(rows))).digest()
