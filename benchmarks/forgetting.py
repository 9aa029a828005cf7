"""Fine-tuning without forgetting: what does training only what is new cost on the new text, and save on the old?

    python benchmarks/forgetting.py            # one CPU core, about an hour
    python benchmarks/forgetting.py --report   # of the sides that are done, without running anything

A published story model (stories260K of ../shared/data: Llama, 5 layers, 260,032 parameters) is tuned to tinyshakespeare. Sides: plain
fine-tuning; a low-rank update of every matrix; LLaMA-Pro (identity blocks, only these train); *Grow, Don't Overwrite* (feed-forward
units duplicated in all layers: G-Freeze trains the copies, G-Train the whole grown matrices). (Its copies differ by a little noise that
cancels; alike, they would get alike gradients for ever.) All take the same steps on the same batches; each has its learning rate found by the same search, on a seed that no result uses: three rates, then factors of three onwards
while the best stands at an end. Two gentler rates are run for the picture alone. Every run records the loss on both texts as it goes, so the picture shows what each gives for what.
Resumable: what is done is not done again; every run is a line of results/forgetting.jsonl. Writes results/forgetting.json and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from support.shared_data import FOLDER, loader

import meristem as ms

ROOT = Path(__file__).parent.parent
MODEL = FOLDER / "checkpoints/stories260K-llama"
STEPS, BATCH, LENGTH, WARMUP, EVALUATIONS = 300, 8, 128, 15, 3
RATES, FACTOR, SEARCH_SEED, SEEDS = (1e-3, 3e-3, 9e-3), 3.0, 100, (0, 1, 2)
GENTLE = (1e-4, 3e-4)  # rates below the search's, for the picture alone: what little tuning forgets
RANK = 8
NEW_LAYERS = 4  # 183 thousand new parameters; doubled feed-forward blocks are 165 thousand


class LowRank(nn.Module):
    """W + B A with B zero (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def plain(model: nn.Module) -> nn.Module:
    return model


def low_rank(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    for layer in model.model.layers:
        for module in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            torch.nn.utils.parametrize.register_parametrization(module, "weight", LowRank(module.weight))
    return model


def grown(method: Any, train: str) -> Callable[[nn.Module], nn.Module]:
    def make(model: nn.Module) -> nn.Module:
        growth = ms.Growth.of(model, method)
        ms.freeze_old(growth.model, growth, train)
        return growth.model

    return make


SIDES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain fine-tuning": plain,
    "low rank": low_rank,
    "LLaMA-Pro": grown(ms.IdentityBlocks(num_hidden_layers=5 + NEW_LAYERS), "copied"),
    "G-Freeze": grown(ms.Net2Net(intermediate_size=344, duplication="cyclic", noise=0.0), "copied"),
    "G-Train": grown(ms.Net2Net(intermediate_size=344, duplication="cyclic", noise=0.05), "grown"),
}


class Texts:
    """Tokens of both texts: shakespeare for training, its last tenth and stories for the losses."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer

        found = loader()
        if found is None:
            sys.exit(f"{FOLDER} is not there")
        text, tokenizer = found.text, AutoTokenizer.from_pretrained(MODEL)
        new = torch.tensor(tokenizer(text("tinyshakespeare"), add_special_tokens=False)["input_ids"])
        cut = len(new) * 9 // 10
        self.train, held = new[:cut], new[cut:]
        self.new = held[: 60 * 256].view(60, 256)
        stories = [s.strip() for s in text("tinystories_sample_2MiB").split("<|endoftext|>") if s.strip()]
        rows = [tokenizer(story)["input_ids"] for story in stories[:400]]  # each from BOS
        self.old = torch.tensor([row[:128] for row in rows if len(row) >= 128][:120])

    def batch(self, seed: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - LENGTH, (BATCH,), generator=generator)
        return torch.stack([self.train[start : start + LENGTH] for start in starts.tolist()])


def loss_on(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(20)]
    model.train()
    return sum(found) / len(rows)


def run(side: str, rate: float, seed: int, texts: Texts) -> dict[str, Any]:
    """One tuning: the losses on both texts over the steps, and what trained."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = SIDES[side](AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)).train()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.01, betas=(0.9, 0.95))
    share = lambda step: min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    curve, began = [], time.perf_counter()
    for step in range(STEPS + 1):
        if step % (STEPS // EVALUATIONS) == 0:
            curve.append({"step": step, "new": loss_on(model, texts.new), "old": loss_on(model, texts.old)})
        if step < STEPS:
            tokens = texts.batch(seed, step)
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(moving, 1.0)
            optimizer.step()
            schedule.step()
    parameters = sum(p.numel() for p in model.parameters())
    return {"side": side, "rate": rate, "seed": seed, "curve": curve, "seconds": time.perf_counter() - began,
            "parameters": parameters, "trained_tensors": sum(p.numel() for p in moving)}  # fmt: skip


class Missing(Exception):
    """A run that has not been made."""


class Done:
    """Runs by side, rate and seed, kept in a file of lines; with `texts` None, nothing is run."""

    def __init__(self, file: Path, texts: Callable[[], Texts] | None) -> None:
        self.file, self._open, self._texts = file, texts, None
        lines = file.read_text().splitlines() if file.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    @property
    def runs(self) -> bool:
        """Whether what is missing is made."""
        return self._open is not None

    def of(self, side: str, rate: float, seed: int) -> dict[str, Any]:
        for row in self.rows:
            if (row["side"], row["rate"], row["seed"]) == (side, rate, seed):
                return row
        if self._open is None:
            raise Missing(side)
        self._texts = self._texts or self._open()
        row = run(side, rate, seed, self._texts)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        self.rows.append(row)
        last = row["curve"][-1]
        print(f"{side}, rate {rate:g}, seed {seed}: new {last['new']:.4f}, old {last['old']:.4f}", flush=True)
        return row


def best_rate(side: str, done: Done) -> float:
    """The rate with the lowest loss on the new text; the same search for every side."""
    rates = list(RATES)

    def final(rate: float) -> float:
        return done.of(side, rate, SEARCH_SEED)["curve"][-1]["new"]

    while True:
        best = min(rates, key=final)
        if best == rates[0]:
            rates.insert(0, rates[0] / FACTOR)
        elif best == rates[-1]:
            rates.append(rates[-1] * FACTOR)
        else:
            return best


def summary(done: Done, kept: dict[str, Any], first: Sequence[str] = ()) -> dict[str, Any]:
    """What is known of each side; sides of `first` are run before the others. `kept`: what an earlier report says of sides whose runs are
    not all here."""
    found = dict(kept)
    for side in [*first, *(side for side in SIDES if side not in first)]:
        try:
            for gentle in GENTLE if done.runs else ():
                done.of(side, gentle, SEARCH_SEED)
            rate = best_rate(side, done)
            rows = [done.of(side, rate, seed) for seed in SEEDS]
        except Missing:
            continue  # what an earlier report says stays
        last = [row["curve"][-1] for row in rows]
        found[side] = {
            "rate": rate, "parameters": rows[0]["parameters"], "trained_tensors": rows[0]["trained_tensors"],
            **{f"{text}_loss": mean(point[text] for point in last) for text in ("new", "old")},
            **{f"{text}_sd": stdev(point[text] for point in last) for text in ("new", "old")},
            "seeds": last,
        }  # fmt: skip
    return {side: found[side] for side in SIDES if side in found}


def draw(done: Done, found: dict[str, Any], start: dict[str, float], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for number, side in enumerate(SIDES):
        colour = f"C{number}"
        for row in (row for row in done.rows if row["side"] == side and row["seed"] == SEARCH_SEED):
            points = row["curve"][1:]
            axes.plot([p["new"] for p in points], [p["old"] for p in points], color=colour, alpha=0.5, lw=1)
            axes.plot(points[-1]["new"], points[-1]["old"], ".", color=colour, ms=4)
        if side not in found:
            continue
        ends = found[side]["seeds"]
        axes.plot([p["new"] for p in ends], [p["old"] for p in ends], "o", color=colour, label=side)
    axes.axhline(start["old"], color="grey", lw=0.8, ls="--", label="before tuning")
    axes.set_xlabel("loss on the new text (tinyshakespeare, held out)")
    axes.set_ylabel("loss on the old text (stories)")
    axes.set_title(f"stories260K, {STEPS} steps; dots: seeds at the chosen rate; lines: every rate, to its end")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "results/forgetting.jsonl", help="where runs are kept")
    parser.add_argument("--report", action="store_true", help="of what is done, without running anything")
    parser.add_argument("--first", nargs="+", default=[], choices=SIDES, help="sides to begin with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = Done(arguments.runs, None if arguments.report else Texts)
    place = ROOT / "results/forgetting.json"
    kept = json.loads(place.read_text())["sides"] if place.exists() else {}
    found = summary(done, kept, arguments.first)
    if not done.rows:
        sys.exit("no run has been made yet")
    start = done.rows[0]["curve"][0]  # every side begins as the same function
    report = {"steps": STEPS, "tokens": STEPS * BATCH * LENGTH, "before": start, "sides": found}
    place.write_text(json.dumps(report, indent=2) + "\n")
    draw(done, found, start, ROOT / "results/forgetting.png")
    for side, row in found.items():
        print(f"{side:20} rate {row['rate']:.0e}  new {row['new_loss']:.4f}  old {row['old_loss']:.4f}")


if __name__ == "__main__":
    main()
