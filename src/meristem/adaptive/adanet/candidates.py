"""The proposals of one round: blocks are trained next to a fixed ensemble, and then their output weights are
fitted again exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from joblib import Parallel, delayed
from torch import Tensor

from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import Block
from meristem.adaptive.adanet.refit import Problem, refit
from meristem.adaptive.adanet.sample import Sample
from meristem.adaptive.adanet.training import Options, Trained, complexity_of, trained


@dataclass(frozen=True)
class Candidate:
    """A trained block, its fitted output weights and their cost."""

    block: Block
    weights: Tensor
    complexity: float
    penalty: float
    objective: float
    steps: int
    seconds: float
    violation: float


def propose(
    sample: Sample,
    depths: Sequence[int],
    earlier: list[tuple[int, int]],
    options: Options,
    loss: Loss,
    seeds: Sequence[int],
    held_out: Sample | None = None,
    judged_on: Sample | None = None,
    n_jobs: int | None = None,
) -> list[Candidate]:
    """Train a block of each depth, all at once, on the loss of f + w h with f fixed (eq. 6). Then fit each w
    again (eq. 5).

    Args:
        earlier: the width and the depth of each block of the ensemble.
        seeds: the seed of each block's first weights. The batches follow from the first seed.
        held_out: rows on which training stops early.
        judged_on: rows in float64 on which w is fitted. `sample` by default.
        n_jobs: how many fits run at the same time.
    """
    judged_on = judged_on or sample
    blocks = trained(sample, depths, earlier, options, loss, seeds, held_out)
    jobs = (delayed(refitted)(block, judged_on, options, loss) for block in blocks)
    return cast(list[Candidate], Parallel(n_jobs=n_jobs, prefer="threads")(jobs))


@torch.no_grad()
def refitted(found: Trained, sample: Sample, options: Options, loss: Loss) -> Candidate:
    """A trained block with the output weights that are optimal on a sample in float64 (eq. 5)."""
    began, block, widths = time.perf_counter(), found.block, found.widths
    activities = block(sample.features, sample.units)[-1]
    r = complexity_of(widths, sample, activities, options)
    gamma = options.adanet_lambda * r + options.adanet_beta
    problem = Problem(loss, sample.offset, activities, sample.targets, sample.shares, gamma)
    one = sample.targets.shape[1] == 1
    best = refit(problem) if one else refit(problem, tolerance=1e-6, rounds=2, newton_steps=2)
    violation, joining = problem.violation(best), options.shrinkage * best
    penalty, objective = gamma * float(joining.abs().sum()), float(problem.value(joining))
    seconds = found.seconds + time.perf_counter() - began
    return Candidate(block, joining, r, penalty, objective, found.steps, seconds, violation)


@torch.no_grad()
def held_out_loss(block: Block, weights: Tensor, judged: Sample, loss: Loss) -> float:
    """The loss of f + w h on held-out rows."""
    outputs = judged.offset + block(judged.features, judged.units)[-1] @ weights
    return float(judged.shares @ loss.value(outputs, judged.targets))
