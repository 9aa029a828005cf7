"""AdaNet's own search (Fig. 3 of the paper, with its misprints corrected): blocks as deep as the network, and
one layer deeper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from meristem.adaptive.adanet.candidates import Candidate, held_out_loss, propose
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import AdaNetModule
from meristem.adaptive.adanet.rounds import Judged, Rounds
from meristem.adaptive.adanet.sample import Sample
from meristem.adaptive.adanet.training import Options
from meristem.adaptive.tensors import PIECE, seed_of

MOST_REFITTED = 50_000  # rows: the exact re-fit of more would take longer than everything else
MOST_TRAINED = 100_000  # rows from which a round's candidates draw their batches, chosen again in each round


@dataclass
class Search:
    """A search for a network in rounds.

    Output weights are fitted to at most 50,000 rows, on which objectives are computed too. A round trains on
    at most 100,000 rows. Memory therefore grows with the number of rows only by their inputs and outputs.

    Args:
        module: the present network, without blocks at the start.
        x: the inputs (n, features).
        targets: the targets (n, outputs).
        weight: the weights of the rows (n,).
        samples: m, the number of rows that the weights represent.
        min_improvement: the share of the objective by which a round has to lower it to be accepted (0 in the
            paper).
        seed: the seed from which, with the number of the round, all randomness follows, so that a search can
            be repeated.
        n_jobs: the number of fits at the same time.
        subsample: the share of the rows on which a round trains its blocks, drawn again in each round. Output
            weights are fitted to all rows.
        rows_held_out: rows that stop the training of each candidate and judge it in place of the training
            objective (AdaNet.HoldOut, without guarantees).
        checkpoint, log_dir: as in `Rounds`.
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
    subsample: float = 1.0
    rows_held_out: Tensor | None = None
    checkpoint: str | None = None
    log_dir: str | None = None
    report: Callable[[str], None] = lambda line: None
    history: list[dict[str, Any]] = field(default_factory=list)

    measure = "objective"

    def run(self) -> None:
        """Run rounds until one is refused or `max_rounds` are made. `module` and `history` hold the
        result.
        """
        held = torch.zeros(len(self.x), dtype=torch.bool, device="cpu")
        if self.rows_held_out is not None:
            held[self.rows_held_out] = True
        self._train, self._held = torch.nonzero(~held)[:, 0], torch.nonzero(held)[:, 0]
        self._held = self._drawn(self._held, MOST_REFITTED, -1)
        self._refit = self._drawn(self._train, MOST_REFITTED, 0)
        Rounds(
            self,
            self.max_rounds,
            self.min_improvement,
            checkpoint=self.checkpoint,
            fingerprint=self._fingerprint,
            log_dir=self.log_dir,
            report=self.report,
            history=self.history,
        ).run()

    def _drawn(self, rows: Tensor, most: int, which: int) -> Tensor:
        """The rows, or `most` of them if there are more."""
        if len(rows) <= most:
            return rows
        generator = torch.Generator().manual_seed(seed_of(self.seed, which, 0))
        return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:most].sort().values]

    @torch.no_grad()
    def _sample(self, rows: Tensor) -> Sample:
        """Some rows with the present activities and outputs of the network."""
        pieces = []
        for index in rows.split(PIECE):
            x = self.x[index]
            units = self.module.units(x)
            offset = self.module.mixed(units, x)
            pieces.append((self.module.features(x), offset, units))
        features, offsets, units = zip(*pieces, strict=True)
        joined = [[torch.cat(layers) for layers in zip(*blocks, strict=True)] for blocks in zip(*units, strict=True)]
        weight = self.weight[rows]
        share = float(weight.sum() / self.weight.sum())
        return Sample(
            torch.cat(features),
            joined,
            torch.cat(offsets),
            self.targets[rows],
            weight / weight.sum(),
            self.samples * share,
        )

    def start(self) -> dict[str, Any]:
        """The objective of the empty network."""
        rows = self._held if len(self._held) else self._refit
        weight, targets = self.weight[rows], self.targets[rows]
        value = float(weight / weight.sum() @ self.loss.value(torch.zeros_like(targets), targets))
        return {"objective": value, "penalty": 0.0}

    def judged(self, number: int) -> list[Judged[Candidate]]:
        """The blocks of the round, judged by the training objective, or by the loss on held-out rows."""
        module = self.module
        depths = [d for d in (module.depth, module.depth + 1) if 1 <= d <= self.max_depth]
        earlier = [(block.width, block.depth) for block in module._blocks()]
        some = self._drawn(self._train, min(MOST_TRAINED, max(1, round(self.subsample * len(self._train)))), number)
        train = self._sample(some)
        refit = train if len(some) == len(self._refit) == len(self._train) else self._sample(self._refit)
        held = self._sample(self._held) if len(self._held) else None
        seeds = [seed_of(self.seed, number, depth) for depth in depths]
        found = propose(train, depths, earlier, self.options, self.loss, seeds, held, refit, self.n_jobs)
        paid = self.history[-1]["penalty"]
        scores = [held_out_loss(c.block, c.weights, held, self.loss) if held else c.objective + paid for c in found]
        return [
            Judged(f"depth {depth}", candidate, score, usable=bool((candidate.weights != 0).any()))
            for depth, candidate, score in zip(depths, found, scores, strict=True)
        ]

    def record(
        self, found: Sequence[Judged[Candidate]], chosen: Judged[Candidate] | None, last: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The result of each candidate, and the cost of the one that joins."""
        paid = last["penalty"]
        candidates = [
            {
                "depth": judged.what.block.depth,
                "objective": judged.score,
                "complexity": judged.what.complexity,
                "units_used": int((judged.what.weights != 0).any(1).sum()),
                "steps": judged.what.steps,
                "seconds": judged.what.seconds,
                "violation": judged.what.violation,
            }
            for judged in found
        ]
        if chosen is None:
            return {"penalty": paid, "candidates": candidates}
        joining = {"depth": chosen.what.block.depth, "complexity": chosen.what.complexity}
        return {"penalty": paid + chosen.what.penalty, "candidates": candidates, **joining}

    def join(self, chosen: Judged[Candidate]) -> None:
        """Append the block."""
        self.module.append(chosen.what.block, chosen.what.weights, chosen.what.complexity)

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """The weights and the shape of the network."""
        return self.module.state_dict(), self.module.layout()

    def restore(self, tensors: dict[str, Tensor], note: Any, history: Sequence[Mapping[str, Any]]) -> None:
        """Restore the network of a finished round."""
        restored = AdaNetModule.of_layout(note, self.x.shape[1], self.module.num_outputs, self.module.num_bins)
        restored.load_state_dict(tensors)
        self.module = restored.to(self.x.device)

    def _fingerprint(self) -> str:
        said = repr((asdict(self.options), type(self.loss).__name__, self.max_depth, self.min_improvement, self.seed))
        said += f" {self.subsample} of the rows" if self.subsample < 1 else ""
        said += f" {self.module.num_bins} bins" if self.module.num_bins else ""
        digest = hashlib.sha256(said.encode())
        if self.rows_held_out is not None:
            digest.update(self.rows_held_out.cpu().numpy().tobytes())
        for tensor in (self.x, self.targets, self.weight):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()
