"""One proposal of the weak learner: a block trained beside a fixed ensemble, its output weights then re-fitted exactly."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from meristem.adaptive.adanet.complexity import rademacher_bound
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import Block, Units
from meristem.adaptive.adanet.refit import Problem, refit
from meristem.adaptive.stopping import Stopping


@dataclass(frozen=True)
class Options:
    """The paper's settings (AdaNet, sections 5 and 6), and how a candidate is trained.

    Args:
        width: B. adanet_lambda, adanet_beta: of the price Gamma = adanet_lambda r + adanet_beta. max_norm, p: Lambda and the norm, of r and of the projection.
        project: hold each unit's p-norm at most at `max_norm` while training.
        shrinkage: the share of its re-fitted output weights with which a block joins, in (0, 1] (1 in the paper; Friedman 2001, section 5,
            for boosting in general). The objective is convex: it still falls, more slowly.
        variant: "base"; "R": the price also while training; "P": read the previous block only; "D": dropout on the connections
            to earlier blocks; "SD": r is the deviation of the units' activities.
        max_steps, batch_size, learning_rate, optimizer: of the training; a set of at most `batch_size` rows is taken whole.
        check_every, patience, min_gain: a candidate stops when its objective fell by less than the relative `min_gain` in
            `patience` checks; where rows are held out, their loss is what is checked, and its lowest point what is kept.
    """

    width: int = 64
    adanet_lambda: float = 1e-3
    adanet_beta: float = 0.0
    max_norm: float = 1.0
    p: float = 2.0
    project: bool = False
    shrinkage: float = 1.0
    variant: str = "base"
    connection_dropout: float = 0.1
    max_steps: int = 500
    batch_size: int = 512
    learning_rate: float = 1e-2
    optimizer: str = "adam"
    check_every: int = 50
    patience: int = 4
    min_gain: float = 1e-3


@dataclass(frozen=True)
class Sample:
    """The training set as a candidate sees it, in float64.

    Args:
        features: Psi (n, features). units: the ensemble's activities on it. offset: the ensemble's outputs f (n, outputs).
        targets: (n, outputs). shares: the rows' weights, of sum 1 (n,). size: m, the rows that they stand for.
    """

    features: Tensor
    units: Units
    offset: Tensor
    targets: Tensor
    shares: Tensor
    size: float

    def to_train(self, reads: list[list[int]]) -> Sample:
        """What the training of a block touches: activities that none of its layers reads are left out.

        Args:
            reads: for each layer from the second on, the numbers of the earlier blocks whose layer below it reads.
        """
        depth = max((len(block) for block in self.units), default=0)
        wanted = [*map(set, reads), *(set() for _ in range(depth))]
        units = [
            [layer if number in wanted[below] else layer[:, :0] for below, layer in enumerate(block)]
            for number, block in enumerate(self.units)
        ]
        return replace(self, units=units)

    def rows(self, index: Tensor) -> Sample:
        """Some rows."""
        shares = self.shares[index]
        return Sample(
            self.features[index],
            [[layer[index] for layer in block] for block in self.units],
            self.offset[index],
            self.targets[index],
            shares / shares.sum().clamp(min=1e-300),
            self.size,
        )


@dataclass(frozen=True)
class Candidate:
    """A trained block, its re-fitted output weights and what they cost."""

    block: Block
    weights: Tensor
    complexity: float
    penalty: float
    objective: float
    steps: int
    seconds: float
    violation: float


def complexity_of(block_widths: list[int], sample: Sample, activities: Tensor | None, options: Options) -> float:
    """r of a block: Lemma 2 with the widths of the layers that its last one stands on; for "SD" the deviation of its units."""
    if options.variant == "SD":
        assert activities is not None
        mean = sample.shares @ activities
        return float(((sample.shares @ (activities - mean).square()).mean()).sqrt())
    largest = float(sample.features[sample.shares > 0].abs().max())
    return rademacher_bound(block_widths, sample.size, largest, options.max_norm, options.p)


def propose(
    sample: Sample,
    depth: int,
    earlier: list[tuple[int, int]],
    options: Options,
    loss: Loss,
    seed: int,
    held_out: Sample | None = None,
) -> Candidate:
    """Train a block of `depth` on the loss of f + w h with f fixed (eq. 6), then re-fit w (eq. 5).

    Args:
        earlier: width and depth of each block of the ensemble. seed: of the block's first weights and its batches.
        held_out: rows that stop the training early; w is re-fitted to `sample` all the same.
    """
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    known = range(len(earlier) - 1, len(earlier)) if options.variant == "P" and earlier else range(len(earlier))
    reads = [[b for b in known if earlier[b][1] >= layer] for layer in range(1, depth)]
    dropout = options.connection_dropout if options.variant == "D" else 0.0
    outputs = sample.targets.shape[1]
    weights = nn.Parameter(
        torch.randn(options.width, outputs, generator=generator, dtype=torch.float64) / options.width
    )
    widths = [sample.features.shape[1], *(options.width + sum(earlier[b][0] for b in r) for r in reads)]
    price = 0.0
    if options.variant == "R":
        price = options.adanet_lambda * complexity_of(widths, sample, None, options) + options.adanet_beta
    with torch.random.fork_rng(devices=[]):  # of the block's first weights, and its dropout
        torch.manual_seed(seed)
        block = Block(sample.features.shape[1], options.width, reads, [w for w, _ in earlier], dropout).double()
        judged = held_out.to_train(reads) if held_out else None
        steps = _train(block, weights, sample.to_train(reads), judged, options, loss, price, generator)
    block.eval()
    with torch.no_grad():
        activities = block(sample.features, sample.units)[-1]
        r = complexity_of(widths, sample, activities, options)
        gamma = options.adanet_lambda * r + options.adanet_beta
        problem = Problem(loss, sample.offset, activities, sample.targets, sample.shares, gamma)
        best = refit(problem) if outputs == 1 else refit(problem, tolerance=1e-6, rounds=2, newton_steps=2)
        violation, joining = problem.violation(best), options.shrinkage * best
        penalty, objective = gamma * float(joining.abs().sum()), float(problem.value(joining))
    return Candidate(block, joining, r, penalty, objective, steps, time.perf_counter() - began, violation)


def _train(
    block: Block,
    weights: nn.Parameter,
    sample: Sample,
    judged: Sample | None,
    options: Options,
    loss: Loss,
    price: float,
    generator: torch.Generator,
) -> int:
    """Train in place; the number of steps made, or, where rows are held out, those up to their lowest loss."""
    parameters = [*block.parameters(), weights]
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(parameters, lr=options.learning_rate, fused=True)
    rows, whole = len(sample.shares), len(sample.shares) <= options.batch_size
    stopping = Stopping(parameters if judged else (), options.patience, options.min_gain)
    total, step = 0.0, 0
    for step in range(1, options.max_steps + 1):
        batch = sample
        if not whole:
            batch = sample.rows(torch.randint(rows, (options.batch_size,), generator=generator))
        activities = block(batch.features, batch.units)
        objective = batch.shares @ loss.value(batch.offset + activities[-1] @ weights, batch.targets)
        objective = objective + price * weights.abs().sum()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        if options.project:
            block.project(options.max_norm, options.p)
        total += float(objective.detach())
        if step % options.check_every == 0:
            seen, total = total / options.check_every, 0.0
            if judged:
                block.eval()
                seen = held_out_loss(block, weights, judged, loss)
                block.train()
            if stopping.over(seen, step):
                break
    stopping.restore()
    return (stopping.lowest_at or step) if judged else step


@torch.no_grad()
def held_out_loss(block: Block, weights: Tensor, judged: Sample, loss: Loss) -> float:
    """The loss of f + w h on rows that are held out."""
    outputs = judged.offset + block(judged.features, judged.units)[-1] @ weights
    return float(judged.shares @ loss.value(outputs, judged.targets))
