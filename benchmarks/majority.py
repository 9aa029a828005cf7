"""Majority Kernels against a plain network and what could explain a gain: same size deployed, every rate tuned alike, paired tests.

    python benchmarks/majority.py --small    # one CPU core, about an hour and a half
    python benchmarks/majority.py --large    # one GPU: more data, larger networks

Parts (`--parts`): `digits` (scikit-learn's) and `fashion_mnist`, MLPs; `cifar10`, a residual network (both of ../shared/data; skipped where
that is not); `text`, a small transformer on Python's own sources; `cost`, step time and memory with three kernels. Writes
results/majority.json and .png.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import shared_data
from trained import ROOT, llama, total_curve

import meristem as ms

KERNELS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "digits": {"train": 1_100, "valid": 300, "steps": 500, "batch_size": 64, "width": 32, "seeds": 10},
        "fashion_mnist": {"train": 10_000, "valid": 2_000, "steps": 1_000, "batch_size": 128, "width": 64, "seeds": 10},
        "cifar10": {"train": 10_000, "valid": 2_000, "steps": 500, "batch_size": 64, "width": 16, "seeds": 5},
        "text": {"model": (96, 4, 4), "tokens": 300_000, "batch_size": 8, "rates": (5e-4, 1e-3, 2e-3), "seeds": 5, "trainer": {}},
        "cost": {"hidden_size": 256, "layers": 4, "heads": 8, "tokens": (512, 4096), "repeats": 30, "device": "cpu"},
    },
    "large": {
        "digits": {"train": 1_100, "valid": 300, "steps": 2_000, "batch_size": 64, "width": 128, "seeds": 10},
        "fashion_mnist": {"train": 50_000, "valid": 5_000, "steps": 20_000, "batch_size": 128, "width": 256, "seeds": 10},
        "cifar10": {"train": 45_000, "valid": 5_000, "steps": 20_000, "batch_size": 128, "width": 64, "seeds": 5},
        "text": {"model": (768, 12, 12), "tokens": 50_000_000, "batch_size": 64, "rates": (3e-4, 6e-4, 1.2e-3), "seeds": 5,
                 "trainer": {"bf16": True}},
        "cost": {"hidden_size": 1024, "layers": 12, "heads": 16, "tokens": (4096, 32768), "repeats": 30, "device": "cuda"},
    },
}  # fmt: skip
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
Images = tuple[Tensor, Tensor]


def mlp(inputs: int, width: int, dropout: float) -> nn.Module:
    layers: list[nn.Module] = []
    for before in (inputs, width):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class ResNet(nn.Module):
    """transformers' own residual network with batch norms, of three stages; x -> logits."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        sizes = [width, 2 * width, 4 * width]
        config = ResNetConfig(embedding_size=width, hidden_sizes=sizes, depths=[1, 1, 1], layer_type="basic")
        self.body, self.dropout, self.head = ResNetModel(config), nn.Dropout(dropout), nn.Linear(sizes[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x).pooler_output.flatten(1)))


NETWORKS: dict[str, Callable[[int, float], nn.Module]] = {
    "digits": lambda width, dropout: mlp(64, width, dropout),
    "fashion_mnist": lambda width, dropout: mlp(784, width, dropout),
    "cifar10": ResNet,
}


class Sides:
    """How each side trains a network of the same deployed size. A side is a function (rate, seed) -> network."""

    def __init__(self, name: str, setting: dict[str, Any], train: Images) -> None:
        self.name, self.setting, self.images = name, setting, train

    def new(self, seed: int, width: int = 0, dropout: float = 0.0) -> Any:
        torch.manual_seed(seed)
        return NETWORKS[self.name](width or self.setting["width"], dropout)

    @property
    def batches(self) -> list[Tensor]:
        """Inputs on which batch norms take their statistics anew."""
        return list(self.images[0][:2_000].split(200))

    def fit(
        self,
        model: nn.Module,
        rate: float,
        seed: int,
        loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        before: Callable[[int], None] = lambda step: None,
        after: Callable[[int], None] = lambda step: None,
        sharpness: float = 0.0,
    ) -> nn.Module:
        """AdamW under a cosine; the same batches for every side of a seed. `sharpness` is SAM's rho."""
        loss = loss or (lambda m, x, y: F.cross_entropy(m(x), y))
        x, y = self.images
        rng = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        steps = self.setting["steps"]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        model.train()
        for step in range(steps):
            picked = torch.randint(len(x), (self.setting["batch_size"],), generator=rng)
            before(step)
            optimizer.zero_grad()
            loss(model, x[picked], y[picked]).backward()
            if sharpness:
                parameters = [p for p in model.parameters() if p.grad is not None]
                norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
                shifts = [sharpness * p.grad / (norm + 1e-12) for p in parameters if p.grad is not None]
                for p, shift in zip(parameters, shifts, strict=True):
                    p.data += shift
                optimizer.zero_grad()
                loss(model, x[picked], y[picked]).backward()
                for p, shift in zip(parameters, shifts, strict=True):
                    p.data -= shift
            optimizer.step()
            schedule.step()
            after(step)
        return model.eval()

    def plain(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed), rate, seed)

    def kernels(self, rate: float, seed: int, **options: Any) -> nn.Module:
        many = ms.majority(self.new(seed), kernels=KERNELS, seed=seed, **options)
        self.fit(many, rate, seed, before=lambda step: ms.mix_kernels(many, step, self.setting["steps"]))
        return ms.deploy(many, self.batches).eval()

    def layer_kernels(self, rate: float, seed: int) -> nn.Module:
        return self.kernels(rate, seed, granularity="layer")

    def mean_only(self, rate: float, seed: int) -> nn.Module:
        """Three kernels that are never mixed at random: their mean throughout, at the deployed network's scale."""
        return self.kernels(rate, seed, epsilon=0.0, gain="deployed")

    def larger_init(self, rate: float, seed: int) -> nn.Module:
        """Plain, starting at the scale that kernels with gain "deployed" have while they are single."""
        model = self.new(seed)
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.data *= KERNELS**0.5
        return self.fit(model, rate, seed)

    def ema(self, rate: float, seed: int) -> nn.Module:
        model = self.new(seed)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        self.fit(model, rate, seed, after=lambda step: average.update_parameters(model))
        torch.optim.swa_utils.update_bn(self.batches, average.module)
        return average.module.eval()

    def sam(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed), rate, seed, sharpness=0.05)

    def dropout(self, rate: float, seed: int) -> nn.Module:
        return self.fit(self.new(seed, dropout=0.1), rate, seed)

    def weight_noise(self, rate: float, seed: int) -> nn.Module:
        """Normal noise of the variance that mixing three independent kernels has at the start, annealed alike."""
        model, steps = self.new(seed), self.setting["steps"]
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        share = ((KERNELS - 1) / (KERNELS * (KERNELS + 1))) ** 0.5  # of a kernel's standard deviation, alpha = 1
        scales = [share * float(p.detach().std()) for p in matrices]
        rng, noise = torch.Generator().manual_seed(seed), []

        def before(step: int) -> None:
            level = min(1.0, (steps - step) / (0.2 * steps))
            noise[:] = [level * s * torch.randn(p.shape, generator=rng) for p, s in zip(matrices, scales, strict=True)]
            for p, n in zip(matrices, noise, strict=True):
                p.data += n

        # the noise is taken away after the gradient, before the step
        def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = F.cross_entropy(m(x), y)
            value.backward()
            for p, n in zip(matrices, noise, strict=True):
                p.data -= n
            return torch.zeros((), requires_grad=True) * 0

        return self.fit(model, rate, seed, loss=loss, before=before)

    def distilled_ensemble(self, rate: float, seed: int) -> nn.Module:
        """Three plain networks teach one: half the loss is cross-entropy, half divergence from their mean at temperature 2."""
        teachers = [self.fit(self.new(1000 * (i + 1) + seed), rate, 1000 * (i + 1) + seed) for i in range(KERNELS)]

        def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                taught = torch.stack([F.softmax(t(x) / 2, 1) for t in teachers]).mean(0)
            out = m(x)
            return 0.5 * F.cross_entropy(out, y) + 0.5 * 4 * F.kl_div(
                F.log_softmax(out / 2, 1), taught, reduction="batchmean"
            )

        return self.fit(self.new(seed), rate, seed, loss=loss)

    def submodular(self, rate: float, seed: int) -> nn.Module:
        """Three times the width for half the steps, then each layer's units by greedy facility location, then the other half; of MLPs."""
        half = Sides(self.name, {**self.setting, "steps": self.setting["steps"] // 2}, self.images)
        wide = half.fit(self.new(seed, KERNELS * self.setting["width"]), rate, seed)
        linears = [layer for layer in wide if isinstance(layer, nn.Linear)]
        small = self.new(seed)
        kept: Tensor | None = None
        for source, target in zip(linears, [la for la in small if isinstance(la, nn.Linear)], strict=True):
            weight = source.weight.detach() if kept is None else source.weight.detach() @ kept
            if target is not small[-1]:
                chosen, nearest = facility_location(weight, self.setting["width"])
                target.weight.data, target.bias.data = weight[chosen].clone(), source.bias.detach()[chosen].clone()
                kept = F.one_hot(
                    nearest, self.setting["width"]
                ).float()  # outgoing weights merge into the representative
            else:
                target.weight.data, target.bias.data = weight.clone(), source.bias.detach().clone()
        return half.fit(small, rate, seed + 500)


def facility_location(units: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedy maximisation of sum_i max_{j in S} cos(unit_i, unit_j): (chosen, for each unit its representative in `chosen`)."""
    similarity = F.normalize(units, dim=1) @ F.normalize(units, dim=1).T
    best = torch.full((len(units),), -1.0)
    chosen: list[int] = []
    for _ in range(count):
        gains = (similarity - best[:, None]).clamp(min=0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        best = torch.maximum(best, similarity[:, chosen[-1]])
    picked = torch.tensor(chosen)
    return picked, similarity[:, picked].argmax(1)


VISION = ("plain", "kernels", "layer_kernels", "mean_only", "larger_init", "ema", "sam", "dropout", "weight_noise",
          "distilled_ensemble", "submodular")  # fmt: skip


def accuracy(model: nn.Module, data: Images) -> float:
    with torch.no_grad():
        said = torch.cat([model.eval()(part).argmax(1) for part in data[0].split(1_000)])
    return float((said == data[1]).float().mean())


def images(name: str, setting: dict[str, Any]) -> tuple[Images, Images, Images] | None:
    """Training, validation and test images, normalised, flat for MLPs; None where ../shared/data is not and is wanted."""
    loader = shared_data.loader()
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
        held = torch.arange(len(x)) % 5 == 4
        x, y, tx, ty = x[~held], y[~held], x[held], y[held]
    elif loader is None:
        return None
    elif name == "cifar10":
        (x, y), (tx, ty) = (map(torch.as_tensor, loader.jpegs("cifar10_jpeg", split)) for split in ("train", "test"))
        x, tx = x.permute(0, 3, 1, 2), tx.permute(0, 3, 1, 2)
    else:
        x, y, tx, ty = (torch.as_tensor(a) for a in loader.mnist(name))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, last = setting["train"], setting["train"] + setting["valid"]
    seen = x[order[:first]].float()
    centre, spread = seen.mean(), seen.std()

    def ready(pictures: Tensor) -> Tensor:
        normal = (pictures.float() - centre) / spread
        return normal if name == "cifar10" else normal.reshape(len(normal), -1)

    pick = lambda ids: (ready(x[ids]), y[ids].long())  # noqa: E731
    return pick(order[:first]), pick(order[first:last]), (ready(tx), ty.long())


def vision(name: str, setting: dict[str, Any], out: Path) -> dict[str, Any]:
    """Each side: its rate by validation accuracy on two seeds, a grid that goes on upwards while its largest rate is the best; then test
    accuracy over all seeds. A file in `out` keeps what is done."""
    from meristem.checkpoints.write import write_json

    data = images(name, setting)
    if data is None:
        return {"skipped": "no ../shared/data"}
    train, valid, test = data
    out.mkdir(parents=True, exist_ok=True)
    sides, file = Sides(name, setting, train), out / f"{name}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known: dict[str, dict[str, float]] = kept["known"] if kept.get("setting") == setting else {}
    found = {}

    def score(side: str, rate: float, seed: int, on: str, images: Images) -> float:
        key = f"{rate:g}, seed {seed}, {on}"
        own = known.setdefault(side, {})
        if key not in own:
            own[key] = accuracy(getattr(sides, side)(rate, seed), images)
            write_json(file, {"setting": setting, "known": known})
        return own[key]

    for side in VISION:
        if name == "cifar10" and side == "submodular":
            continue  # written for MLPs
        scores: dict[float, float] = {}
        for rate in itertools.chain(RATES, (RATES[-1] * 2**i for i in itertools.count(1))):
            if rate > RATES[-1] and max(scores, key=scores.__getitem__) < max(scores):
                break
            scores[rate] = mean(score(side, rate, seed, "validation", valid) for seed in (101, 102))
        rate = max(scores, key=scores.__getitem__)
        values = [score(side, rate, seed, "test", test) for seed in range(setting["seeds"])]
        found[side] = {"learning_rate": rate, "search": {f"{r:g}": s for r, s in scores.items()}, "values": values}
        print(name, side, rate, f"{mean(values):.4f}", flush=True)
    return with_tests(found, higher=True)


def text(setting: dict[str, Any], out: Path) -> dict[str, Any]:
    """Evaluation loss of a small transformer on Python's sources, plain and with kernels."""
    from meristem.recipes import run
    from meristem.recipes.schema import parse_recipe

    options = {"plain": {}, "kernels": {"majority": {"kernels": KERNELS}},
               "layer_kernels": {"majority": {"kernels": KERNELS, "granularity": "layer"}},
               "mean_only": {"majority": {"kernels": KERNELS, "epsilon": 0.0, "gain": "deployed"}}}  # fmt: skip

    def curve(side: str, rate: float, seed: int) -> list[dict[str, float]]:
        train = {"model": llama(*setting["model"]), "tokens": setting["tokens"], "batch_size": setting["batch_size"],
                 "learning_rate": rate, "evaluations": 6, "trainer": setting["trainer"], **options[side]}  # fmt: skip
        data = {"source": "python-stdlib", "sequence_length": 128, "eval_sequences": 96}
        return total_curve(
            run(parse_recipe({"data": data, "seeds": [seed], "nodes": {"trained": {"train": train}}}), out)[seed]
        )

    found = {}
    for side in options:
        scores = {rate: curve(side, rate, 100)[-1]["eval_loss"] for rate in setting["rates"]}
        rate = min(scores, key=scores.__getitem__)
        values = [curve(side, rate, seed)[-1]["eval_loss"] for seed in range(setting["seeds"])]
        found[side] = {"learning_rate": rate, "search": {f"{r:g}": s for r, s in scores.items()}, "values": values}
    return with_tests(found, higher=False)


def with_tests(found: dict[str, Any], higher: bool) -> dict[str, Any]:
    """Mean, spread, and each side against plain, seed by seed, by the exact sign-flip test (two-sided)."""
    plain = found["plain"]["values"]
    for entry in found.values():
        differences = [a - b for a, b in zip(entry["values"], plain, strict=True)]
        entry |= {"mean": mean(entry["values"]), "std": stdev(entry["values"]), "difference": mean(differences),
                  "p_value": sign_flip(differences), "better": (mean(differences) > 0) == higher}  # fmt: skip
    return found


def sign_flip(differences: list[float]) -> float:
    """The share of all sign patterns whose mean is at least as far from zero."""
    seen = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return mean(s >= seen - 1e-12 for s in sums)


def keep_memory() -> None:
    """Let glibc keep the large blocks that are freed, which it returns by default: a large tensor is new pages then, every time."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h's names
    c_library = ctypes.CDLL("libc.so.6")
    c_library.mallopt(mmap_threshold, 2**30)
    c_library.mallopt(trim_threshold, 2**31 - 1)


def cost(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Step time with three kernels over a plain step beside it, and bytes of weights, gradients and moments.

    A second plain network, a copy of the first, is timed like the kernels: what its ratio lacks to 1 is the measurement's own. The three
    take turns in an order that rotates; ratios are medians of the rounds' ratios.
    """
    from meristem.recipes.tasks.language import causal_language_model

    device, rows = torch.device(setting["device"]), []
    on_cpu = device.type == "cpu"
    plain = (
        causal_language_model(llama(setting["hidden_size"], setting["layers"], setting["heads"]), 256, 128, 0)
        .to(device)
        .train()
    )
    many = ms.majority(plain, kernels=KERNELS).to(device).train()
    models = [plain, copy.deepcopy(plain), many]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for m in models]
    for kept, count in itertools.product((False, True) if on_cpu else (True,), setting["tokens"]):
        if kept and on_cpu:
            keep_memory()
        tokens = torch.randint(0, 256, (count // 128, 128), device=device)

        def step(which: int, number: int, tokens: Tensor = tokens) -> float:
            began = time.perf_counter()
            model = models[which]
            if model is many:
                ms.mix_kernels(model, number)
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizers[which].step()
            optimizers[which].zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began

        rounds: list[dict[int, float]] = []
        for number in range(-1, setting["repeats"]):
            order = [(number + place) % 3 for place in range(3)]
            rounds.append({which: step(which, max(number, 0)) for which in order})
        ratios = [median(r[which] / r[0] for r in rounds[1:]) for which in (1, 2)]  # the first round warms up
        state = [sum(t.numel() * 4 for s in optimizer.state.values() for t in s.values() if t.dim())
                 + 8 * sum(p.numel() for p in m.parameters()) for m, optimizer in zip(models, optimizers, strict=True)]  # fmt: skip
        chosen = sum(p.numel() for n, p in many.named_parameters() if "parametrizations" in n) / KERNELS
        total = sum(p.numel() for p in plain.parameters())
        rows.append({"tokens_per_step": count, "memory_kept": kept, "time_ratio": ratios[1], "time_ratio_of_a_copy": ratios[0],
                     "bytes_ratio": state[2] / state[0],
                     "bytes_ratio_predicted": (total + (KERNELS - 1) * chosen) / total})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def draw(content: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(part, content[part]) for part in (*NETWORKS, "text") if "plain" in content.get(part, {})]
    figure, axes = plt.subplots(
        1, max(1, len(shown)), figsize=(5.5 * max(1, len(shown)), 4), layout="constrained", squeeze=False
    )
    for panel, (part, found) in zip(axes[0], shown, strict=False):
        names = list(found)
        panel.errorbar(
            [found[n]["mean"] for n in names], range(len(names)), xerr=[found[n]["std"] for n in names], fmt="o"
        )
        panel.axvline(found["plain"]["mean"], color="grey", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.set(xlabel="evaluation loss" if part == "text" else "test accuracy", title=part)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parts = ["cost", *NETWORKS, "text"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "majority")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.commands import machine

    setting, file = copy.deepcopy(SETTINGS[arguments.size]), ROOT / "results" / "majority.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"machine": machine(), "size": arguments.size, "kernels": KERNELS}
    for part in arguments.parts:
        own = setting[part]
        content[part] = (
            cost(own)
            if part == "cost"
            else text(own, arguments.out)
            if part == "text"
            else vision(part, own, arguments.out)
        )
        write_json(file, content)
    draw(content, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
