"""From each size of a public family to the next: which rungs grow exactly, and why the others do not.

    python benchmarks/ladders.py                    # all families, a few minutes on one core
    python benchmarks/ladders.py --small            # three of them
    python benchmarks/ladders.py --families Qwen3 T5

Sizes are those of the published configs, widths and layers divided by numbers that the table states, numbers of heads as they
are, weights random. Each rung grows to the next one's config (`ms.grow(model, like=config)`), is saved, loaded by stock
transformers, and compared in float32: exact means 1e-5 of the largest logit. Writes results/ladders.json and docs/ladders.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
SMALL = ("SmolLM2", "Qwen3", "ViT")
START, END = "<!-- table -->", "<!-- end of table -->"


def model_of(family: str, rung: str):
    """The small network of a rung, with random weights everywhere, and inputs for it."""
    import torch
    import transformers
    from support.published import FAMILIES, small_config
    from support.tiny import randomise

    from meristem.anatomy.inputs import example_inputs

    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[family][0])(small_config(family, rung)).eval()
    randomise(model)
    inputs = example_inputs(model)
    if family == "Whisper":
        inputs["decoder_input_ids"] = torch.arange(3, 11).repeat(2, 1)
    return model, inputs


def measure(family: str, rung: str, following: str) -> dict[str, Any]:
    """One row: what growing `rung` to `following` gives."""
    from support.published import small_config

    from meristem.anatomy.inputs import logits_of
    from meristem.errors import MeristemError
    from meristem.growth import Growth
    from meristem.growth.like import like, rows

    start = time.perf_counter()
    row: dict[str, Any] = {"family": family, "from": rung, "to": following}
    small, inputs = model_of(family, rung)
    target = small_config(family, following)
    try:
        found = like(small, target)
        growth = Growth.of(small, found.method, inputs=inputs)
    except MeristemError as error:
        outcome = "shrinks" if "smaller on some axes" in str(error) else "refused"
        return {**row, "outcome": outcome, "reason": str(error)}
    with tempfile.TemporaryDirectory() as directory:
        growth.model.save_pretrained(directory)
        again = type(small).from_pretrained(directory).eval()
    a, b = logits_of(small, inputs), logits_of(again, inputs)
    error = float((a - b).abs().max() / a.abs().max())
    expected = {name: tuple(tensor.shape) for name, tensor in type(small)(target).state_dict().items()}
    obstacles = [f"{r.axis}: {r.obstacle}" for r in rows(growth.plans[0], small, inputs) if r.obstacle]
    return {
        **row,
        "outcome": "exact" if error <= TOLERANCE else "inexact",
        "error": error,
        "promised": growth.plans[0].preserves_function,
        "targets_tensors": {name: tuple(t.shape) for name, t in again.state_dict().items()} == expected,
        "other_fields": sorted(found.fields),
        "reason": "; ".join(obstacles),
        "seconds": time.perf_counter() - start,
    }


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the totals above."""
    from support.published import FAMILIES

    grows = [row for row in found if row["outcome"] != "shrinks"]
    exact = [row for row in grows if row["outcome"] == "exact"]
    possible = [row for row in grows if row["outcome"] == "exact" or not row["reason"]]
    lines = [
        f"{len(found)} adjacent rungs of {len({row['family'] for row in found})} families. In {len(found) - len(grows)} some axis "
        f"shrinks. Of the other {len(grows)}, {len(exact)} are exact; for {len(grows) - len(possible)} the rules "
        "above do not reach, with the tensor in the way named below.",
        "",
        "| family (widths, layers divided by) | rung | outcome | relative logit error | why not |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        _, _, width, depth, _, _ = FAMILIES[row["family"]]
        error = f"{row['error']:.1e}" if "error" in row else ""
        reason = row["reason"].replace("|", "/") if row["outcome"] != "exact" else ""
        lines.append(
            f"| {row['family']} ({width}, {depth}) | {row['from']} -> {row['to']} | {row['outcome']} | {error} | {reason} |"
        )
    return "\n".join(lines)


def main() -> None:
    from support.published import FAMILIES
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), help="only these; nothing is written")
    parser.add_argument("--small", action="store_true", help="three families; nothing is written")
    arguments = parser.parse_args()
    chosen = arguments.families or (SMALL if arguments.small else list(FAMILIES))
    found = []
    for family in chosen:
        for rung, following in itertools.pairwise(FAMILIES[family][5]):
            found.append(measure(family, rung, following))
            row = found[-1]
            print(
                f"{family:10} {rung:>6} -> {following:<6} {row['outcome']:8} {row.get('error', '')} {row['reason']}",
                flush=True,
            )
    if arguments.families or arguments.small:
        return
    (ROOT / "results" / "ladders.json").write_text(json.dumps(found, indent=1) + "\n")
    page = ROOT / "docs" / "ladders.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(f"{before}{START}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
