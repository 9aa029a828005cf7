"""The rounds of AdaNet (Fig. 3 of the paper, its misprints repaired): propose, re-fit, accept or stop; resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from joblib import Parallel, delayed
from torch import Tensor

from meristem.adaptive.adanet.candidates import Candidate, Options, Sample, held_out_loss, propose
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.state import keep_state, read_state
from meristem.adaptive.tensorboard import Scalars
from meristem.adaptive.tensors import seed_of


@dataclass
class Search:
    """A search for a network, round by round.

    Args:
        module: the network so far (no blocks at the start). x: inputs (n, features), targets: (n, outputs), weight: (n,). samples: m, the rows that the weights stand for.
        rows_held_out: rows that stop each candidate's training, and judge candidates instead of the training objective
            (AdaNet.HoldOut, without guarantees).
        min_improvement: a round is accepted if it lowers the objective by more than this share of it (the paper: 0).
        seed: all randomness follows from it and the round's number, so that a search can be replayed.
        checkpoint: a file in which each finished round is kept, and from which a killed search goes on.
        log_dir: a folder for TensorBoard, with every round's record.
    """

    module: AdaNetModule
    x: Tensor
    targets: Tensor
    weight: Tensor
    samples: float
    loss: Loss
    options: Options
    max_rounds: int = 10
    max_depth: int = 3
    min_improvement: float = 0.0
    seed: int = 0
    n_jobs: int | None = None
    rows_held_out: Tensor | None = None
    checkpoint: str | None = None
    log_dir: str | None = None
    report: Callable[[str], None] = lambda line: None
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Rounds until one is refused or `max_rounds` are made; `module` and `history` hold the result."""
        held = torch.zeros(len(self.x), dtype=torch.bool)
        if self.rows_held_out is not None:
            held[self.rows_held_out] = True
        self._restore()
        with Scalars(self.log_dir, first=len(self.history)) as scalars:
            if not self.history:
                start = self._start(held if held.any() else ~held)
                self.history.append({"round": 0, "objective": start, "penalty": 0.0})
                scalars.write(self.history[0], 0)
            while len(self.history) <= self.max_rounds and not self.history[-1].get("refused"):
                self._round(self._sample(~held), self._sample(held) if held.any() else None)
                scalars.write(self.history[-1], self.history[-1]["round"])
                self._save()

    def _sample(self, rows: Tensor) -> Sample:
        x, weight = self.x[rows], self.weight[rows]
        with torch.no_grad():
            units = self.module.units(x)
            return Sample(
                self.module.features(x),
                units,
                self.module.mixed(units, x),
                self.targets[rows],
                weight / weight.sum(),
                self.samples * float(weight.sum() / self.weight.sum()),
            )

    def _start(self, rows: Tensor) -> float:
        """The objective of the empty network."""
        weight, targets = self.weight[rows], self.targets[rows]
        return float(weight / weight.sum() @ self.loss.value(torch.zeros_like(targets), targets))

    def _round(self, train: Sample, held_out: Sample | None) -> None:
        number, module = len(self.history), self.module
        depths = [d for d in (module.depth, module.depth + 1) if 1 <= d <= self.max_depth]
        earlier = [(block.width, block.depth) for block in module._blocks()]
        jobs = (
            delayed(propose)(
                train, depth, earlier, self.options, self.loss, seed_of(self.seed, number, depth), held_out
            )
            for depth in depths
        )
        found = cast(list[Candidate], Parallel(n_jobs=self.n_jobs)(jobs))
        paid = self.history[-1]["penalty"]
        scores = [
            held_out_loss(c.block, c.weights, held_out, self.loss) if held_out else c.objective + paid for c in found
        ]
        best = min(range(len(found)), key=scores.__getitem__)
        chosen, before = found[best], self.history[-1]["objective"]
        accepted = scores[best] < before - self.min_improvement * abs(before) and bool((chosen.weights != 0).any())
        record: dict[str, Any] = {
            "round": number,
            "objective": scores[best] if accepted else before,
            "penalty": (paid + chosen.penalty) if accepted else paid,
            "candidates": [
                {
                    "depth": depth,
                    "objective": score,
                    "complexity": candidate.complexity,
                    "units_used": int((candidate.weights != 0).any(1).sum()),
                    "steps": candidate.steps,
                    "seconds": candidate.seconds,
                    "violation": candidate.violation,
                }
                for depth, candidate, score in zip(depths, found, scores, strict=True)
            ],
        }
        if accepted:
            module.append(chosen.block, chosen.weights, chosen.complexity)
            record |= {"depth": chosen.block.depth, "complexity": chosen.complexity}
            self.report(f"round {number}: depth {chosen.block.depth}, objective {before:.5f} -> {scores[best]:.5f}")
        else:
            record["refused"] = True
            self.report(f"round {number}: no candidate lowers the objective {before:.5f} enough; the search ends")
        self.history.append(record)

    def _fingerprint(self) -> str:
        said = repr((asdict(self.options), type(self.loss).__name__, self.max_depth, self.min_improvement, self.seed))
        held = b"" if self.rows_held_out is None else self.rows_held_out.numpy().tobytes()
        data = b"".join(t.numpy().tobytes() for t in (self.x, self.targets, self.weight))
        return hashlib.sha256(said.encode() + held + data).hexdigest()

    def _save(self) -> None:
        if self.checkpoint:
            note = {"history": self.history, "layout": self.module.layout()}
            keep_state(Path(self.checkpoint), self._fingerprint(), self.module.state_dict(), note)

    def _restore(self) -> None:
        kept = read_state(Path(self.checkpoint), self._fingerprint()) if self.checkpoint else None
        if not kept:
            return
        state, note = kept
        inputs = self.module.num_features - 1
        restored = AdaNetModule.of_layout(note["layout"], inputs, self.module.num_outputs)
        restored.load_state_dict(state)
        self.module, self.history = restored, note["history"]
