"""Majority Kernels against a plain network and what could explain a gain: same size deployed, every rate tuned alike, paired tests.

    python benchmarks/majority.py --small    # one CPU core, about three hours
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
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from support import shared_data
from support.kernel_sides import KERNELS, Examples, Problem, Sides
from support.picture import picture
from support.statistics import sign_flip
from support.trained import ROOT, llama

import meristem as ms

SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "digits": {"train": 1_100, "valid": 300, "steps": 500, "batch_size": 64, "width": 32, "seeds": 10},
        "fashion_mnist": {"train": 10_000, "valid": 2_000, "steps": 1_000, "batch_size": 128, "width": 64, "seeds": 10},
        "cifar10": {"train": 10_000, "valid": 2_000, "steps": 500, "batch_size": 64, "width": 16, "seeds": 5},
        "text": {"train": 16_000, "valid": 96, "test": 192, "steps": 300, "warmup_steps": 15, "batch_size": 8, "width": 96, "layers": 4,
                 "heads": 4, "seeds": 5},
        "cost": {"hidden_size": 256, "layers": 4, "heads": 8, "tokens": (512, 4096), "repeats": 30, "device": "cpu"},
    },
    "large": {
        "digits": {"train": 1_100, "valid": 300, "steps": 2_000, "batch_size": 64, "width": 128, "seeds": 10},
        "fashion_mnist": {"train": 50_000, "valid": 5_000, "steps": 20_000, "batch_size": 128, "width": 256, "seeds": 10},
        "cifar10": {"train": 45_000, "valid": 5_000, "steps": 20_000, "batch_size": 128, "width": 64, "seeds": 5},
        "text": {"train": 90_000, "valid": 500, "test": 2_000, "steps": 6_000, "warmup_steps": 300, "batch_size": 64, "width": 768,
                 "layers": 12, "heads": 12, "seeds": 5},
        "cost": {"hidden_size": 1024, "layers": 12, "heads": 16, "tokens": (4096, 32768), "repeats": 30, "device": "cuda"},
    },
}  # fmt: skip
COMPARED = ("digits", "fashion_mnist", "cifar10", "text")
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SEQUENCE_LENGTH = 128  # bytes


def mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
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


def language_model(setting: dict[str, Any], seed: int, dropout: float = 0.0, wider: int = 1) -> Any:
    """A llama over bytes, freshly initialised; dropout stands, as in GPT-2, behind the embedding and before each residual sum; its
    feed-forward layers are `wider` times as wide as is usual."""
    from meristem.recipes.tasks.language import causal_language_model

    entries = llama(setting["width"], setting["layers"], setting["heads"])
    entries["intermediate_size"] *= wider
    model: Any = causal_language_model(entries, 256, SEQUENCE_LENGTH, seed)
    if dropout:
        places = [(model.model, "embed_tokens")]
        for layer in model.model.layers:
            places += [(layer.self_attn, "o_proj"), (layer.mlp, "down_proj")]
        for parent, name in places:
            setattr(parent, name, nn.Sequential(getattr(parent, name), nn.Dropout(dropout)))
    return model


def problem(name: str, setting: dict[str, Any]) -> Problem:
    width = setting["width"]
    if name == "text":
        return Problem(
            lambda seed, dropout: language_model(setting, seed, dropout),
            lambda model, x: model(input_ids=x, use_cache=False).logits.transpose(1, 2),
            lambda seed, factor: language_model(setting, seed, wider=factor),
            lambda model: [([la.mlp.gate_proj, la.mlp.up_proj], la.mlp.down_proj) for la in model.model.layers],
        )
    if name == "cifar10":
        return Problem(lambda seed, dropout: ResNet(width, dropout), lambda model, x: model(x))
    inputs = {"digits": 64, "fashion_mnist": 784}[name]
    return Problem(
        lambda seed, dropout: mlp(inputs, width, dropout),
        lambda model, x: model(x),
        lambda seed, factor: mlp(inputs, factor * width, 0.0),
        lambda model: [([model[at]], model[at + 3]) for at in (0, 3)],
    )


SIDES = ("plain", "kernels", "layer_kernels", "mean_only", "larger_init", "ema", "sam", "dropout", "weight_noise",
         "distilled_ensemble", "submodular")  # fmt: skip


@torch.no_grad()
def score(name: str, asked: Problem, model: nn.Module, data: Examples) -> float:
    """Accuracy, or for text the loss in nats per byte."""
    rows = 32 if name == "text" else 1_000
    logits = torch.cat([asked.answers(model.eval(), part) for part in data[0].split(rows)])
    return float(F.cross_entropy(logits, data[1]) if name == "text" else (logits.argmax(1) == data[1]).float().mean())


def sequences(setting: dict[str, Any]) -> tuple[Examples, Examples, Examples]:
    """Training, validation and test sequences of Python's sources, each beside what follows its every byte."""
    from meristem.data.corpus import open_corpus

    corpus = open_corpus("python-stdlib")

    def drawn(tokens: Any) -> Tensor:
        rows = (
            torch.as_tensor(tokens[: len(tokens) // SEQUENCE_LENGTH * SEQUENCE_LENGTH])
            .long()
            .reshape(-1, SEQUENCE_LENGTH)
        )
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]

    held, last = drawn(corpus.eval), setting["valid"] + setting["test"]
    parts = drawn(corpus.train)[: setting["train"]], held[: setting["valid"]], held[setting["valid"] : last]
    train, valid, test = ((part[:, :-1], part[:, 1:]) for part in parts)
    return train, valid, test


def images(name: str, setting: dict[str, Any]) -> tuple[Examples, Examples, Examples] | None:
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


def compare(name: str, setting: dict[str, Any], out: Path) -> dict[str, Any]:
    """Each side: its rate by validation score on two seeds, a grid that goes on upwards while its largest rate is the best; then test
    scores over all seeds. A file in `out` keeps what is done."""
    from meristem.checkpoints.write import write_json

    data = sequences(setting) if name == "text" else images(name, setting)
    if data is None:
        return {"skipped": "no ../shared/data"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, valid, test = ((x.to(device), y.to(device)) for x, y in data)
    out.mkdir(parents=True, exist_ok=True)
    asked, file, sign = problem(name, setting), out / f"{name}.json", -1 if name == "text" else 1
    sides = Sides(asked, setting, train)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known: dict[str, dict[str, float]] = kept["known"] if kept.get("setting") == setting else {}
    found = {}

    def result(side: str, rate: float, seed: int, on: str, examples: Examples) -> float:
        key = f"{rate:g}, seed {seed}, {on}"
        own = known.setdefault(side, {})
        if key not in own:
            own[key] = score(name, asked, getattr(sides, side)(rate, seed), examples)
            write_json(file, {"setting": setting, "known": known})
        return own[key]

    for side in SIDES:
        if side == "submodular" and asked.wider is None:
            continue
        scores: dict[float, float] = {}
        for rate in itertools.chain(RATES, (RATES[-1] * 2**i for i in itertools.count(1))):
            if rate > RATES[-1] and max(scores, key=scores.__getitem__) < max(scores):
                break
            scores[rate] = sign * mean(result(side, rate, seed, "validation", valid) for seed in (101, 102))
        rate = max(scores, key=scores.__getitem__)
        values = [result(side, rate, seed, "test", test) for seed in range(setting["seeds"])]
        found[side] = {
            "learning_rate": rate,
            "search": {f"{r:g}": sign * s for r, s in scores.items()},
            "values": values,
        }
        print(name, side, rate, f"{mean(values):.4f}", flush=True)
    return with_tests(found, higher=sign > 0)


def with_tests(found: dict[str, Any], higher: bool) -> dict[str, Any]:
    """Mean, spread, and each side against plain, seed by seed, by the exact sign-flip test (two-sided)."""
    plain = found["plain"]["values"]
    for entry in found.values():
        differences = [a - b for a, b in zip(entry["values"], plain, strict=True)]
        entry |= {"mean": mean(entry["values"]), "std": stdev(entry["values"]), "difference": mean(differences),
                  "p_value": sign_flip(differences), "better": (mean(differences) > 0) == higher}  # fmt: skip
    return found


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
    shown = [(part, content[part]) for part in COMPARED if "plain" in content.get(part, {})]
    with picture(file, 1, max(1, len(shown)), figsize=(5.5 * max(1, len(shown)), 4), squeeze=False) as axes:
        for panel, (part, found) in zip(axes[0], shown, strict=False):
            names = list(found)
            panel.errorbar(
                [found[n]["mean"] for n in names], range(len(names)), xerr=[found[n]["std"] for n in names], fmt="o"
            )
            panel.axvline(found["plain"]["mean"], color="grey", linewidth=1)
            panel.set_yticks(range(len(names)), names)
            panel.set(xlabel="evaluation loss" if part == "text" else "test accuracy", title=part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parts = ["cost", *COMPARED]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "majority")
    arguments = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    setting, file = copy.deepcopy(SETTINGS[arguments.size]), ROOT / "results" / "majority.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"machine": machine(), "size": arguments.size, "kernels": KERNELS}
    for part in arguments.parts:
        own = setting[part]
        content[part] = cost(own) if part == "cost" else compare(part, own, arguments.out)
        write_json(file, content)
    draw(content, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
