"""What training a part of the network costs and moves: step time against counted FLOPs, and the change when one block is left out.

    python benchmarks/subnetwork_cost.py --small    # one CPU core, a quarter of an hour
    python benchmarks/subnetwork_cost.py --large    # one GPU

Parts (`--parts`): `time`, for depths and widths; `boundary`, how far the output of a random network moves when one block is left out, against
depth. What RAPTR and its relatives save is a study: `python -m benchmarks run raptr`. Writes results/subnetwork_cost.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from support.trained import ROOT, llama

LENGTH = 128
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 1024, "layers": 12, "heads": 16, "batch_size": 8, "repeats": 5, "device": "cpu"},
    "large": {"hidden_size": 1024, "layers": 24, "heads": 16, "batch_size": 32, "repeats": 20, "device": "cuda"},
}


def times(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Median step time (forward, backward, optimizer) along paths of several depths and widths, full steps in between."""
    import torch

    from meristem.recipes.tasks.language import causal_language_model, example_tokens
    from meristem.subnetworks import SubnetworkSchedule
    from meristem.subnetworks.blocks import lists_of_blocks
    from meristem.subnetworks.flops import PathFlops
    from meristem.subnetworks.gate import along

    device = torch.device(own["device"])
    model = (
        causal_language_model(llama(own["hidden_size"], own["layers"], own["heads"]), 256, LENGTH, 0).to(device).train()
    )
    (blocks,) = lists_of_blocks(model)
    counter = PathFlops(model, example_tokens(LENGTH, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as in transformers' Trainer
    tokens = torch.randint(0, 256, (own["batch_size"], LENGTH), device=device)

    def step(path: Any) -> float:
        began = time.perf_counter()
        with along(model, {blocks.name: path}):
            model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    layers = own["layers"]
    cases = [(layers * share // 12, width) for share, width in ((3, 1), (6, 1), (8, 1), (10, 1), (12, 0.25), (12, 0.5))]
    cases += [(layers, 0.75), (layers // 2, 0.5)]
    rows = []
    for depth, width in cases:
        schedule = SubnetworkSchedule(layers, own["repeats"], stages=[depth], widths=[width])
        paths = [schedule.path(i, blocks.name) for i in range(own["repeats"])]
        full = SubnetworkSchedule(layers, 1, stages=[layers]).path(0)
        step(full), step(paths[0])
        pairs = [(step(full), step(path)) for path in paths]
        predicted = counter.of({blocks.name: paths[0]}) / counter.of({})
        measured = median(b for _, b in pairs) / median(a for a, _ in pairs)
        rows.append({"depth": depth, "width": width, "flops_ratio": predicted, "time_ratio": measured,
                     "time_over_flops": measured / predicted, "full_step_seconds": median(a for a, _ in pairs)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def boundary(depths: tuple[int, ...] = (4, 8, 16, 32, 64), width: int = 64) -> dict[str, Any]:
    """Mean relative change of the normed output when one block of a random network is left out, and its slope over depth.

    The paper's lemma: of order L^-1/2 with residual connections and norms, constant without either.
    """
    import math

    import torch

    from meristem.recipes.tasks.language import causal_language_model
    from meristem.subnetworks import Path as Route
    from meristem.subnetworks.blocks import lists_of_blocks
    from meristem.subnetworks.gate import along

    gaps = {}
    for depth in depths:
        model = causal_language_model(llama(width, depth, 4), 256, 64, 0).train()
        for parameter in model.parameters():  # updates as large as the stream
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        (blocks,) = lists_of_blocks(model)
        tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole = model.model(input_ids=tokens).last_hidden_state
            moved = []
            for layer in range(depth):
                active = tuple(i != layer for i in range(depth))
                with along(model, {blocks.name: Route(active, (1.0,) * depth)}):
                    other = model.model(input_ids=tokens).last_hidden_state
                moved.append(float((other - whole).norm() / whole.norm()))
        gaps[depth] = mean(moved)
    x, y = [math.log(d) for d in gaps], [math.log(g) for g in gaps.values()]
    slope = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / sum((a - mean(x)) ** 2 for a in x)
    return {"relative_change": gaps, "slope": slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", dest="size", action="store_const", const="small", default="small")
    parser.add_argument("--large", dest="size", action="store_const", const="large")
    parser.add_argument("--parts", nargs="+", default=["time", "boundary"], choices=["time", "boundary"])
    arguments = parser.parse_args()

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    file = ROOT / "results" / "subnetwork_cost.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    content |= {"machine": machine(), "size": arguments.size}
    for part in arguments.parts:
        content[part] = times(SETTINGS[arguments.size]) if part == "time" else boundary()
        write_json(file, content)


if __name__ == "__main__":
    main()
