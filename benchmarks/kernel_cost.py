"""What Majority Kernels cost: the time of a training step and its memory, three kernels against a plain network.

    python benchmarks/kernel_cost.py --small    # one CPU core, a few minutes
    python benchmarks/kernel_cost.py --large    # one GPU

What kernels gain is a trial: `python -m benchmarks run majority`. Writes results/kernel_cost.json.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import itertools
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from support.trained import ROOT, llama

import meristem as ms

KERNELS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "layers": 4, "heads": 8, "tokens": (512, 4096), "repeats": 30, "device": "cpu"},
    "large": {"hidden_size": 1024, "layers": 12, "heads": 16, "tokens": (4096, 32768), "repeats": 30, "device": "cuda"},
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    size = parser.parse_args().size

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    content = {"machine": machine(), "size": size, "kernels": KERNELS, "cost": cost(SETTINGS[size])}
    write_json(ROOT / "results" / "kernel_cost.json", content)


if __name__ == "__main__":
    main()
