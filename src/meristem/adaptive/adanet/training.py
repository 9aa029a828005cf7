"""The training of a round's blocks, next to a fixed ensemble (AdaNet, eq. 6)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meristem.adaptive.adanet.complexity import rademacher_bound
from meristem.adaptive.adanet.losses import Loss
from meristem.adaptive.adanet.network import Block
from meristem.adaptive.adanet.sample import Rows, Sample
from meristem.adaptive.adanet.stacked import Adam, Stack
from meristem.adaptive.stopping import Stopping

LOOKED_AT = 4096  # rows, at most, on which a training without held-out rows is judged


@dataclass(frozen=True)
class Options:
    """The paper's settings (AdaNet, sections 5 and 6), and how a candidate is trained.

    Args:
        width: the units in each layer of a block (B).
        adanet_lambda, adanet_beta: the terms of the price Gamma = adanet_lambda r + adanet_beta.
        max_norm: Lambda, the largest norm of a unit's weights, in r and in the projection.
        p: the exponent of that norm.
        project: keep each unit's p-norm at most at `max_norm` while training.
        shrinkage: the share of its fitted output weights with which a block joins, in (0, 1]. It is 1 in the
            paper. Friedman 2001, section 5, introduced it for boosting. The objective is convex, so it still
            falls, more slowly.
        variant: "base"; "R" adds the price to the training objective; "P" reads only the previous block; "D"
            applies dropout to the connections to earlier blocks; "SD" takes the standard deviation of the
            units' activities as r.
        connection_dropout: the share of connections that "D" drops.
        max_steps, batch_size, learning_rate, optimizer: how a block is trained. At most `batch_size` rows are
            used together in float64. More rows are used in batches in float32.
        check_every, patience, min_gain: a candidate stops when its objective fell by less than the relative
            `min_gain` in `patience` checks. If rows are held out, their loss is checked, and the state of the
            lowest loss is kept.
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
    max_steps: int = 150
    batch_size: int = 512
    learning_rate: float = 1e-2
    optimizer: str = "adam"
    check_every: int = 50
    patience: int = 4
    min_gain: float = 1e-3


def complexity_of(block_widths: list[int], sample: Sample, activities: Tensor | None, options: Options) -> float:
    """The complexity r of a block: Lemma 2 with the widths of the layers below its last one, or for "SD" the
    standard deviation of its units.
    """
    if options.variant == "SD":
        assert activities is not None
        mean = sample.shares @ activities
        return float(((sample.shares @ (activities - mean).square()).mean()).sqrt())
    largest = float(sample.features[sample.shares > 0].abs().max())
    return rademacher_bound(block_widths, sample.size, largest, options.max_norm, options.p)


@dataclass(frozen=True)
class Trained:
    """A trained block, the widths n_0, n_1, ... that its layers read, its training steps and its share of the
    seconds.
    """

    block: Block
    widths: list[int]
    steps: int
    seconds: float


def trained(
    sample: Sample,
    depths: Sequence[int],
    earlier: list[tuple[int, int]],
    options: Options,
    loss: Loss,
    seeds: Sequence[int],
    held_out: Sample | None = None,
) -> list[Trained]:
    """The blocks of `propose` before their output weights are fitted."""
    began = time.perf_counter()
    order = sorted(range(len(depths)), key=lambda place: -depths[place])
    deepest = max(depths)
    known = range(len(earlier) - 1, len(earlier)) if options.variant == "P" and earlier else range(len(earlier))
    reads = [[b for b in known if earlier[b][1] >= layer] for layer in range(1, deepest)]
    inputs = [sample.features.shape[1], *(options.width + sum(earlier[b][0] for b in r) for r in reads)]
    dtype = torch.float64 if len(sample.shares) <= options.batch_size else torch.float32
    stack = Stack(
        [depths[place] for place in order],
        inputs[0],
        options.width,
        [n - options.width for n in inputs[1:]],
        sample.targets.shape[1],
        [seeds[place] for place in order],
        dtype,
        sample.features.device,
    )
    prices = [0.0] * len(order)
    if options.variant == "R":
        costs = [complexity_of(inputs[: depths[place]], sample, None, options) for place in order]
        prices = [options.adanet_lambda * r + options.adanet_beta for r in costs]
    judge = Rows.of(held_out, reads, dtype) if held_out else None
    steps = _train(stack, Rows.of(sample, reads, dtype), judge, options, loss, prices, seeds[0])
    found: dict[int, Trained] = {}
    seconds = (time.perf_counter() - began) / len(order)
    for number, place in enumerate(order):
        block = _block(stack, number, reads[: depths[place] - 1], [w for w, _ in earlier], options)
        found[place] = Trained(block, inputs[: depths[place]], steps[number], seconds)
    return [found[place] for place in range(len(depths))]


def _block(stack: Stack, number: int, reads: list[list[int]], widths: list[int], options: Options) -> Block:
    """One block of the stack as a module, in float64."""
    dropout = options.connection_dropout if options.variant == "D" else 0.0
    *layers, _ = stack.parts(number)
    with torch.device("meta"):  # without first weights of its own
        block = Block(len(layers[0]), stack.width, reads, widths, dropout).double()
    weights = (layer.T.to(torch.float64, copy=True).contiguous() for layer in layers)
    named = {f"layers.{place}.weight": weight for place, weight in enumerate(weights)}
    block.eval().load_state_dict(named, assign=True)  # `to_empty` loads 486 modules
    if options.project:  # to the last digit of float64
        block.project(options.max_norm, options.p)
    return block


@torch.no_grad()
def _train(
    stack: Stack,
    rows: Rows,
    judged: Rows | None,
    options: Options,
    loss: Loss,
    prices: Sequence[float],
    seed: int,
) -> list[int]:
    """Train in place. Returns the number of steps of each block. If rows are held out, it is the step of the
    lowest loss.
    """
    generator, here = torch.Generator().manual_seed(seed), stack.vector.device
    count, blocks = len(rows.shares), len(stack.depths)
    whole = count <= options.batch_size
    price = stack.vector.new_tensor(prices)[:, None, None]
    dropout = options.connection_dropout if options.variant == "D" else 0.0
    optimizer = Adam(stack.vector, options.learning_rate, momentum=options.optimizer == "adam")
    seen = judged or (
        rows if whole else rows.chosen(torch.randperm(count, generator=generator, device="cpu")[:LOOKED_AT])
    )
    stoppings = [Stopping(stack.parts(k) if judged else (), options.patience, options.min_gain) for k in range(blocks)]
    ended: dict[int, tuple[int, list[Tensor]]] = {}
    step = 0
    with torch.random.fork_rng(devices=[here] if here.type == "cuda" else []):
        torch.manual_seed(seed)  # of dropout
        for step in range(1, options.max_steps + 1):
            batch = rows if whole else rows.chosen(drawn(count, options.batch_size, generator))
            batch = batch.dropped(dropout) if dropout else batch
            stack.differentiate(batch.features, batch.earlier, batch.offset, batch.targets, batch.shares, loss, price)
            optimizer.step(stack.slopes)
            if options.project:
                stack.project(options.max_norm, options.p)
            if step % options.check_every:
                continue
            losses = _losses(stack, seen, loss, price if judged is None else 0 * price)
            for block in range(blocks):
                if block not in ended and stoppings[block].over(losses[block], step):
                    ended[block] = step, [part.clone() for part in stack.parts(block)]
            if len(ended) == blocks:
                break
    for block, (_, kept) in ended.items():
        for part, value in zip(stack.parts(block), kept, strict=True):
            part.copy_(value)
    for stopping in stoppings:
        stopping.restore()
    if judged:
        return [stopping.lowest_at or step for stopping in stoppings]
    return [ended[block][0] if block in ended else step for block in range(blocks)]


def drawn(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Row numbers drawn with replacement (size,). The generator is on the CPU, so the numbers are the same on
    every device.
    """
    return torch.randint(count, (size,), generator=generator, device="cpu")


def _losses(stack: Stack, rows: Rows, loss: Loss, price: Tensor) -> list[float]:
    outputs = stack.outputs(rows.features, rows.earlier, rows.offset)
    paid = (price * stack.weights.abs()).sum((1, 2))
    return (loss.value(outputs, rows.targets) @ rows.shares + paid).tolist()
