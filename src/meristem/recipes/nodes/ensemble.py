"""An ensemble node: AdaNet over networks that other nodes have trained, on any machine and at any time.

The candidates of a round are the networks that are not members yet. The one that lowers the convex objective
most joins, and all mixture weights are fitted again (Weill et al. 2019, arXiv:1905.00080; see
`adaptive.EnsembleSearch`). Candidates are trained on their own loss, so that all of them can be trained at
the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import default_data_collator

from meristem.adaptive.adanet import Ensemble, EnsembleSearch, Subnetwork
from meristem.anatomy.flops import forward_flops
from meristem.checkpoints import open_model
from meristem.checkpoints.write import write_json
from meristem.data import Ordered
from meristem.errors import MeristemError
from meristem.recipes.node import Job, ancestors_of
from meristem.recipes.specs.nodes import EnsembleSpec
from meristem.recipes.tasks import Task
from meristem.recipes.tasks.task import Split
from meristem.subnetworks.blocks import lists_of_blocks

BATCH = 16
MOST_LOGITS = 2**25  # of all networks, to which the mixture is fitted; the fit holds several float64 copies (0.3 GB)


def ensemble(job: Job, spec: EnsembleSpec, task: Task) -> dict[str, Any]:
    """Choose and mix the parents, and write `ensemble.json`. The choice uses training examples after all
    those that the parents have read, in the order of the recipe's seed. A parent with a seed of its own may
    have read some of them.

    Returns:
        The fields flops, examples, metrics (on the held-out examples), parameters and details of a
        `NodeResult`.
    """
    places = {directory.name: directory / "model" for directory in job.parent_directories}
    networks = {name: open_model(str(place)).float().eval().to(fastest_device()) for name, place in places.items()}
    read = sum(result.examples for result in ancestors_of(job).values())
    examples = task.training_set(spec.examples, job.streams.seed("order"), read)
    complexities = dict(zip(networks, spec.complexities or map(_complexity, networks.values()), strict=True))
    weights, rounds = _mixture(job, spec, task, networks, examples, complexities)
    alone = {name: {name: torch.tensor(1.0)} for name in networks}
    mixed, *own = judge(networks, [weights, *alone.values()], task, job.split)
    content = {
        "mixture": spec.mixture,
        "members": {name: {"model": str(places[name]), "weights": w.tolist()} for name, w in weights.items()},
        "candidates": {
            name: {**metrics, "complexity": complexities[name]} for name, metrics in zip(alone, own, strict=True)
        },
        "rounds": rounds,
    }
    write_json(job.directory / "ensemble.json", content)
    forward = sum(forward_flops(network, task.example()) for network in networks.values())
    return {
        "flops": forward * len(examples),
        "examples": len(examples),
        "tokens": len(examples) * task.tokens_per_example,
        "metrics": mixed,
        "parameters": sum(p.numel() for name in weights for p in networks[name].parameters()),
        "details": content,
    }


def _mixture(
    job: Job,
    spec: EnsembleSpec,
    task: Task,
    networks: Mapping[str, nn.Module],
    examples: Ordered,
    complexities: Mapping[str, float],
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """AdaNet's search over networks that stay as they are: each member's mixture weights, and a record of
    every round.
    """
    logits, targets = _answers(networks, examples, task, job.streams.seed("rows"))

    def propose(round_number: int, ensemble: Ensemble) -> list[Subnetwork]:
        members = {sub.name for sub in ensemble.subnetworks}
        return [Subnetwork(n, _Known(logits[n]), complexities[n]) for n in networks if n not in members]

    search = EnsembleSearch(
        propose,
        [(torch.arange(len(targets)), targets)],
        num_outputs=next(iter(logits.values())).shape[1],
        mixture=spec.mixture,
        rounds=len(networks),
        steps=0,
        adanet_lambda=spec.adanet_lambda,
        adanet_beta=spec.adanet_beta,
        seed=job.streams.seed("search"),
    )
    found = search.run()
    weights = {sub.name: w.float() for sub, w in zip(found.subnetworks, found.mixture_weights, strict=True)}
    return weights, search.history


def fastest_device() -> torch.device:
    """The device on which the networks of an ensemble run: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Known(nn.Module):
    """A network whose outputs are already known: row numbers -> its logits for these rows."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows]


def _complexity(network: nn.Module) -> float:
    """The root of the depth, as the paper's experiments price a network."""
    return sum(len(blocks.modules) for blocks in lists_of_blocks(network)) ** 0.5


def _said(
    networks: Mapping[str, nn.Module], examples: Ordered, task: Task
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The logits of every network and the targets, batch by batch, for all positions that the loss uses."""
    device = next(next(iter(networks.values())).parameters()).device
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            rows = range(start, min(start + BATCH, len(examples)))
            batch = default_data_collator([examples[row] for row in rows])
            placed: dict[str, Any] = {name: tensor.to(device) for name, tensor in batch.items()}
            if "position_ids" in placed:  # with a cache, positions do not tell documents apart
                placed["use_cache"] = False
            said = {name: task.answers(net(**placed).logits.cpu(), batch["labels"]) for name, net in networks.items()}
            yield {name: logits for name, (logits, _) in said.items()}, next(iter(said.values()))[1]


def _answers(
    networks: Mapping[str, nn.Module], examples: Ordered, task: Task, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The logits (rows, outputs) of every network, and the right classes (rows,). If all rows were more than
    `MOST_LOGITS` numbers, they are a random choice of rows in each batch. With the vocabulary of a language
    model, each position has tens of thousands of numbers.

    Raises:
        MeristemError: if the networks have different numbers of logits.
    """
    parts, generator = [], torch.Generator().manual_seed(seed)
    for number, (said, targets) in enumerate(_said(networks, examples, task)):
        shapes = {name: logits.shape[1] for name, logits in said.items()}
        if len(set(shapes.values())) > 1:
            raise MeristemError(f"networks of one ensemble must give the same number of logits; these give {shapes}")
        of_one = sum(logits.numel() for logits in said.values()) / min(BATCH, len(examples) - number * BATCH)
        share = min(1.0, MOST_LOGITS / max(1.0, of_one * len(examples)))
        rows = torch.randperm(len(targets), generator=generator)[: max(1, int(share * len(targets)))].sort().values
        parts.append(({name: logits[rows] for name, logits in said.items()}, targets[rows]))
    logits = {name: torch.cat([said[name] for said, _ in parts]) for name in networks}
    return logits, torch.cat([targets for _, targets in parts])


def judge(
    networks: Mapping[str, nn.Module], mixtures: Sequence[Mapping[str, Tensor]], task: Task, split: Split
) -> list[dict[str, float]]:
    """The loss and the accuracy of each mixture on the held-out examples, averaged over all positions that
    the loss uses. Every network runs once.
    """
    rows, loss, right = 0, [0.0] * len(mixtures), [0] * len(mixtures)
    for said, targets in _said(networks, task.evaluation_set(split), task):
        rows += len(targets)
        for number, weights in enumerate(mixtures):
            logits = torch.stack([w * said[name] for name, w in weights.items()]).sum(0)
            loss[number] += float(cross_entropy(logits, targets, reduction="sum"))
            right[number] += int((logits.argmax(-1) == targets).sum())
    return [{"eval_loss": e / rows, "eval_accuracy": r / rows} for e, r in zip(loss, right, strict=True)]
