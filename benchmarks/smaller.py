"""Networks made smaller: two of one architecture averaged (Rebasin), one cut by data (Prune), and what little training heals of it.

    OMP_NUM_THREADS=1 python benchmarks/smaller.py                 # one CPU core, about two hours
    OMP_NUM_THREADS=1 python benchmarks/smaller.py --parts pairs
    python benchmarks/smaller.py --report                          # of what is measured, without running anything

Parts: `pairs` averages two networks that were trained from other seeds, `cuts` halves trained image networks and trains them on, with and
without the large network's answers, beside one that starts from random numbers. Digits are scikit-learn's; CIFAR-10 is that of
../shared/data at 16 x 16 pixels. `language` does the same with a published story model (stories260K) by a recipe.
The test images decide nothing: rates of healing are searched on a network of a seed of its own, judged on 10 % of the training images.
Resumable: every measurement is a line of results/smaller.jsonl, every trained network a file in runs/smaller.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from own_architectures import CifarResNet
from support import shared_data

import meristem as ms
from meristem.growth.pruning.batch_statistics import new_statistics
from meristem.recipes.modifiers.distillation import soft_loss

ROOT = Path(__file__).parent.parent
RUNS, ROWS, SUMMARY = ROOT / "runs" / "smaller", ROOT / "results" / "smaller.jsonl", ROOT / "results" / "smaller.json"
BATCH, WATCHED, TEMPERATURE, SOFT = 64, 512, 2.0, 0.5
TUNING_SEED, RATES = 100, (1e-3, 3e-3, 9e-3)
SELECTIONS = ("uniform", "first", "magnitude")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Images with their classes: to train on, to tune rates on, and to report."""

    train: Batch
    tune: Batch
    test: Batch

    @property
    def watched(self) -> Tensor:
        """Training images that `Prune`, `Rebasin` and batch statistics look at."""
        return self.train[0][:WATCHED]


@dataclass(frozen=True)
class Kind:
    """A kind of network: how it is built by its width, and how it is trained."""

    build: Callable[[int], nn.Module]
    width: int
    data: Callable[[], Data]
    steps: int
    seeds: tuple[int, ...]
    argument: str = "x"


def perceptron(width: int) -> nn.Module:
    sizes = (64, width, width, width)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


@cache
def digits() -> Data:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images, classes = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    return parts(images, classes, 1260, 140)


@cache
def cifar() -> Data:
    loader = shared_data.loader()
    if loader is None:
        raise SystemExit(
            "smaller.py: the CIFAR-10 of ../shared/data is not here; --parts with --networks mlp resnet8 works"
        )
    (a, b), (c, d) = loader.jpegs("cifar10_jpeg", "train"), loader.jpegs("cifar10_jpeg", "test")
    images, classes = (
        torch.cat([torch.tensor(a), torch.tensor(c)]),
        torch.cat([torch.tensor(b), torch.tensor(d)]).long(),
    )
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([order[:20_000], len(a) + torch.arange(len(c))])
    small = functional.avg_pool2d((images[chosen].permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.25, 2)
    return Data(*(pair(small, classes[chosen], s) for s in (slice(18_000), slice(18_000, 20_000), slice(20_000, None))))


def pair(images: Tensor, classes: Tensor, which: slice | Tensor) -> Batch:
    return images[which], classes[which]


def parts(images: Tensor, classes: Tensor, train: int, tune: int) -> Data:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    cuts = (order[:train], order[train : train + tune], order[train + tune :])
    return Data(*(pair(images, classes, which) for which in cuts))


KINDS = {
    "mlp": Kind(perceptron, 128, digits, 500, (0, 1, 2, 3, 4, 5), "input"),
    "resnet8": Kind(partial(CifarResNet, num_blocks=1, in_channels=1), 16, digits, 500, (0, 1, 2, 3, 4, 5)),
    "resnet8_wide": Kind(partial(CifarResNet, num_blocks=1, in_channels=1), 32, digits, 500, (0, 1, 2, 3, 4, 5)),
    "resnet20": Kind(partial(CifarResNet, num_blocks=3), 16, cifar, 1000, (0, 1)),
}
CUT = ("resnet8", "resnet20")  # of these `cuts` makes halves
HEALING = {"resnet8": 60, "resnet20": 100}  # steps, a tenth of the training


def accuracy(net: nn.Module, batch: Batch) -> float:
    """In percent, in evaluation mode."""
    net.eval()
    with torch.no_grad():
        guessed = torch.cat([net(images).argmax(1) for images in batch[0].split(256)])
    return 100 * float(guessed.eq(batch[1]).float().mean())


def fit(net: nn.Module, data: Data, steps: int, rate: float, seed: int, teacher: nn.Module | None = None) -> nn.Module:
    """AdamW on one cycle of the rate; colour images are mirrored. With a teacher half of the loss is the distance from its answers."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    images, classes = data.train
    for _ in range(steps):
        net.train()
        chosen = torch.randint(len(images), (BATCH,), generator=draw)
        batch = images[chosen]
        if batch.shape[1] == 3 and torch.rand((), generator=draw) < 0.5:
            batch = batch.flip(3)
        answers = net(batch)
        loss = functional.cross_entropy(answers, classes[chosen])
        if teacher is not None:
            with torch.no_grad():
                told = teacher(batch)
            loss = (1 - SOFT) * loss + SOFT * soft_loss(answers, told, TEMPERATURE) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def fresh(kind: Kind, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind.build(width)


def trained(name: str, seed: int) -> nn.Module:
    """The network of this kind and seed, trained once."""
    kind, file = KINDS[name], RUNS / f"{name}-{seed}.safetensors"
    net = fresh(kind, kind.width, seed)
    if file.is_file():
        net.load_state_dict(load_file(file))
        return net.eval()
    fit(net, kind.data(), kind.steps, 3e-3, seed)
    RUNS.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), file)
    return net.eval()


def ensemble(nets: list[nn.Module], batch: Batch) -> float:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([net(x) for net in nets]).mean(0)

    return accuracy(Mean(), batch)


def averaged(name: str, seeds: tuple[int, int]) -> dict[str, Any]:
    """Two networks of other seeds become one of their size."""
    kind = KINDS[name]
    data, nets = kind.data(), [trained(name, seed) for seed in seeds]
    watched = {kind.argument: data.watched}
    tensors = [net.state_dict() for net in nets]
    plain = kind.build(kind.width)
    plain.load_state_dict({k: (v + tensors[1][k]) / 2 if v.is_floating_point() else v for k, v in tensors[0].items()})
    found: dict[str, Any] = {
        "parents": [accuracy(net, data.test) for net in nets],
        "ensemble": ensemble(nets, data.test),
    }
    found["mean"] = accuracy(plain, data.test)
    new_statistics(plain, [watched])
    found["mean, new statistics"] = accuracy(plain, data.test)
    for by in ("weights", "activations"):
        one = ms.fuse(nets, ms.Rebasin(by=by), inputs=watched)
        found[f"Rebasin by {by}"] = accuracy(one, data.test)
    return found


def halves(name: str, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """A trained network at half its width, by each way of making it so; the last one is fresh."""
    kind = KINDS[name]
    net, watched, half = trained(name, seed), {kind.argument: kind.data().watched}, kind.width // 2
    anatomy = ms.Anatomy.infer(kind.build, {"width": kind.width})
    for selection in SELECTIONS:
        method = ms.WeightSelection(sizes={"width": half}, selection=selection)
        small = ms.shrink(net, method, anatomy=anatomy, inputs=watched)
        new_statistics(small, [watched])
        yield f"weight selection, {selection}", small
    yield "Prune", ms.shrink(net, ms.Prune(sizes={"width": half}), anatomy=anatomy, inputs=watched)
    yield "scratch", fresh(kind, half, 1000 + seed)


def healed(name: str, seed: int, way: str, taught: bool, rate: float) -> nn.Module:
    small = dict(halves(name, seed))[way]
    return fit(small, KINDS[name].data(), HEALING[name], rate, seed, trained(name, seed) if taught else None)


class Rows:
    """Measurements by their keys, one a line, each made once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.known = {json.dumps(row["key"]): row["value"] for row in map(json.loads, lines)}

    def measure(self, key: list[Any], call: Callable[[], Any]) -> Any:
        name = json.dumps(key)
        if name not in self.known:
            self.known[name] = call()
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": self.known[name]}) + "\n")
            print(*key, self.known[name], flush=True)
        return self.known[name]


def pairs(rows: Rows, names: list[str]) -> None:
    for name in names:
        seeds = KINDS[name].seeds
        for two in zip(seeds[::2], seeds[1::2], strict=True):
            rows.measure(["pair", name, *two], partial(averaged, name, two))


def cuts(rows: Rows, names: list[str]) -> None:
    """Each way at once, then healed at the rate that was best on the tuning seed."""
    for name in [n for n in CUT if n in names]:
        cut_network(rows, name, KINDS[name].data().test)


def cut_network(rows: Rows, name: str, test: Batch) -> None:
    seeds = KINDS[name].seeds
    for seed in seeds:
        rows.measure(["whole", name, seed], lambda s=seed: accuracy(trained(name, s), test))
        for way, small in halves(name, seed):
            rows.measure(["cut", name, seed, way], lambda net=small: accuracy(net, test))
    for way in (f"weight selection, {best_selection(rows, name)}", "Prune", "scratch"):
        for taught in (False, True):
            rate = best_rate(rows, name, way, taught)
            for seed in seeds:
                options = (name, seed, way, taught, rate)
                rows.measure(["healed", *options], lambda o=options: accuracy(healed(*o), test))


def best_selection(rows: Rows, name: str) -> str:
    """By the accuracy right after the cut, on the tuning seed and images."""
    data = KINDS[name].data()
    small = dict(halves(name, TUNING_SEED))
    found = {
        s: rows.measure(["tune", name, s], lambda s=s: accuracy(small[f"weight selection, {s}"], data.tune))
        for s in SELECTIONS
    }
    return max(found, key=lambda s: found[s])


def best_rate(rows: Rows, name: str, way: str, taught: bool) -> float:
    """The grid goes on by factors of three while its best stands at an end."""
    data, rates = KINDS[name].data(), list(RATES)
    while True:
        found = {
            rate: rows.measure(
                ["tune", name, way, taught, rate],
                lambda r=rate: accuracy(healed(name, TUNING_SEED, way, taught, r), data.tune),
            )
            for rate in rates
        }
        best = max(found, key=lambda r: found[r])
        if best not in (min(rates), max(rates)) or len(rates) > 5:
            return best
        rates.append(best * 3 if best == max(rates) else best / 3)


def language(rows: Rows) -> None:
    """stories260K with half of its feed-forward units, cut and healed by a recipe: held-out loss per token."""
    from meristem.recipes.run import run
    from meristem.recipes.specs.schema import parse_recipe

    source = str(shared_data.FOLDER / "checkpoints" / "stories260K-llama")
    budget = {"tokens": "256k", "schedule": "cosine", "evaluations": 2}
    tune = {"tune": {"learning_rate": [1e-3, 2e-3, 4e-3], "on": {"seeds": [TUNING_SEED]}}}
    nodes: dict[str, Any] = {"big": {"checkpoint": {"source": source}}}
    nodes["pruned"] = {"grow": {"from": "big", "method": "prune", "intermediate_size": 86}}
    nodes["selected"] = {"grow": {"from": "big", "method": "weight_selection", "intermediate_size": 86}}
    for start in ("pruned", "selected"):
        for suffix, extra in (("plain", {}), ("taught", {"distill": {"teacher": "big"}})):
            nodes[f"{start}_{suffix}"] = {"train": {"from": start, **budget, **tune, **extra}}
    data = {"source": shared_data.text("tinystories_sample_2MiB"), "tokenizer": source, "sequence_length": 128}
    recipe = parse_recipe({"seeds": [0, 1, 2], "data": data, "nodes": nodes})
    for seed, results in run(recipe, RUNS / "language").items():
        for name, result in results.items():
            if result.curve:
                value = {"eval_loss": result.metrics["eval_loss"], "before": result.curve[0]["eval_loss"]}
                rows.measure(["language", name, seed], lambda v=value: v)


def report(rows: Rows) -> None:
    """Means over seeds of every table's cell."""
    gathered: dict[str, list[Any]] = {}
    for name, value in rows.known.items():
        kind, *rest = json.loads(name)
        if kind == "pair":
            for side, own in value.items():
                gathered.setdefault(f"pair | {rest[0]} | {side}", []).append(
                    mean(own) if isinstance(own, list) else own
                )
        elif kind in ("whole", "cut", "healed"):
            gathered.setdefault(" | ".join(map(str, [kind, rest[0], *rest[2:]])), []).append(value)
        elif kind == "language":
            gathered.setdefault(f"language | {rest[0]}", []).append(value["eval_loss"])
            gathered.setdefault(f"language | {rest[0]} | before", []).append(value["before"])
    content = {key: {"mean": round(mean(values), 4), "values": values} for key, values in gathered.items()}
    SUMMARY.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for key, entry in content.items():
        print(f"{key:60} {entry['mean']:8.3f}  of {len(entry['values'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description="networks made smaller: averaged, cut and healed")
    parser.add_argument(
        "--parts", nargs="+", choices=("pairs", "cuts", "language"), default=["pairs", "cuts", "language"]
    )
    parser.add_argument("--networks", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--report", action="store_true", help="of what is measured, without running anything")
    options = parser.parse_args()
    rows = Rows(ROWS)
    if not options.report:
        if "pairs" in options.parts:
            pairs(rows, options.networks)
        if "cuts" in options.parts:
            cuts(rows, options.networks)
        if "language" in options.parts:
            language(rows)
    report(rows)


if __name__ == "__main__":
    main()
