"""Rungs at their real size: from the published config of one size to that of the next, in bfloat16, streamed from disk to disk.

    python benchmarks/rungs.py                      # all five, one after the other; 6 GB of disk in --work
    python benchmarks/rungs.py --rungs GPT-2 ViT    # only these; the others keep their rows

Sources are written with random weights (gains about 1), one at a time, grown as `meristem grow SRC OUT --like TARGET` does it (noise
0.1), loaded by stock transformers, and deleted. The growth runs in a process of its own: seconds of the plan and the proof, of
the writing, and the most memory above what the interpreter with torch and transformers takes. Writes results/rungs.json and
results/rungs.png, which also shows what benchmarks/ladders.py has found.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
# rung -> (family of benchmarks/support/published.py, from, to, entries that its configs share beside those of the family)
RUNGS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "ViT": ("ViT", "B", "L", {"image_size": 224, "patch_size": 16, "num_labels": 1000}),
    "GPT-2": ("GPT-2", "124M", "355M", {"vocab_size": 50257, "n_positions": 1024}),
    "OPT": ("OPT", "125M", "350M-shaped", {"vocab_size": 50272, "max_position_embeddings": 2048}),
    "SmolLM2": ("SmolLM2", "135M", "360M", {"vocab_size": 49152, "max_position_embeddings": 8192}),
    "Qwen3": ("Qwen3", "0.6B", "1.7B", {"vocab_size": 151936, "max_position_embeddings": 40960}),
}
# OPT-350M itself is post-norm and projects its embeddings to 512: no OPT of another size grows to it. This is its shape, pre-norm.
OPT_350M = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "word_embed_proj_dim": 1024,
}


def config_of(name: str, end: int) -> Any:
    """The config of a rung's first (0) or second (1) size."""
    import transformers
    from support.published import FAMILIES

    family, *ends, more = RUNGS[name]
    _, model_type, _, _, shared, rungs = FAMILIES[family]
    sizes = OPT_350M if ends[end] == "350M-shaped" else rungs[ends[end]]
    entries = {**shared, **sizes, **more}
    if model_type == "vit":
        entries.pop("head_dim", None)
    return transformers.AutoConfig.for_model(model_type, **entries)


def make_source(name: str, path: Path) -> None:
    """A network of the first size with random weights in bfloat16, written tensor by tensor."""
    import torch
    import transformers
    from support.published import FAMILIES

    from meristem.anatomy.streamed import Weights, streamed
    from meristem.checkpoints import write_model
    from meristem.growth.tensors.build import skeleton

    make = getattr(transformers, FAMILIES[RUNGS[name][0]][0])
    model = skeleton(lambda: make(config_of(name, 0)))
    shapes = {entry: tensor.shape for entry, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)

    def random(entry: str) -> torch.Tensor:
        tensor = torch.empty(shapes[entry], dtype=torch.bfloat16)
        if tensor.dim() == 1:
            return tensor.normal_(1.0 if entry.endswith("weight") else 0.0, 0.1, generator=generator)
        return tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)

    write_model(streamed(model, Weights(dict.fromkeys(shapes, torch.bfloat16), random)), path, {})


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(name: str, source: Path, out: Path, sample: int | None) -> None:
    """Grow and write, and report on it as one line of JSON."""
    import torch
    import transformers  # noqa: F401

    from meristem.checkpoints import open_streamed, write_model
    from meristem.checkpoints.record import growth_record
    from meristem.growth import Growth

    torch.set_num_threads(1)
    own, start = peak_bytes(), time.perf_counter()
    growth = Growth.of(open_streamed(str(source)), like=config_of(name, 1), sample=sample)
    proved = time.perf_counter()
    write_model(growth.model, out, lambda: growth_record(growth, str(source)))
    written = time.perf_counter()
    assert growth.certificate is not None
    print(
        json.dumps(
            {
                "parameters": [sum(p.numel() for p in m.parameters()) for m in (growth.source, growth.model)],
                "proof_seconds": proved - start,
                "write_seconds": written - proved,
                "peak_bytes": peak_bytes() - own,
                "certificate": growth.certificate.as_dict(),
            }
        )
    )


def loads(name: str, out: Path) -> bool:
    """Whether stock transformers finds every tensor of the target's config there."""
    import torch
    import transformers
    from support.published import FAMILIES

    kind = getattr(transformers, FAMILIES[RUNGS[name][0]][0])
    model, info = kind.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    with torch.device("meta"):
        wanted = {entry: tensor.shape for entry, tensor in kind(config_of(name, 1)).state_dict().items()}
    found = {entry: tensor.shape for entry, tensor in model.state_dict().items()}
    return not info["missing_keys"] and not info["unexpected_keys"] and found == wanted


def measure(name: str, work: Path, sample: int | None = None) -> dict[str, Any]:
    source, out = work / "source", work / "out"
    try:
        make_source(name, source)
        command = [sys.executable, __file__, "--worker", name, str(source), str(out), str(sample or 0)]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (source, out)]
        found = json.loads(done.stdout.splitlines()[-1])
        return {
            "rung": name,
            "from": RUNGS[name][1],
            "to": RUNGS[name][2],
            "bytes": sizes,
            **found,
            "loads": loads(name, out),
        }
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)


def draw(found: list[dict[str, Any]], ladders: list[dict[str, Any]], path: Path) -> None:
    """Left: what became of each rung of each family. Right: seconds and memory of those at their real size."""
    import matplotlib

    matplotlib.use("Agg")
    from ladders import kind_of
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained", width_ratios=(3, 2))
    colours = {"exact": "tab:green", "cannot be exact": "tab:orange", "open": "tab:red", "shrinks": "lightgray"}
    families = list(dict.fromkeys(row["family"] for row in ladders))[::-1]
    for kind, colour in colours.items():
        rows = [row for row in ladders if kind_of(row) == kind]
        places = [[row for row in ladders if row["family"] == r["family"]].index(r) for r in rows]
        left.scatter(
            places, [families.index(row["family"]) for row in rows], s=90, marker="s", color=colour, label=kind
        )
    left.set_yticks(range(len(families)), families)
    left.set_xticks([])
    left.set_xlabel("rungs, from the smallest size to the largest")
    left.legend(loc="lower right")
    names = [f"{row['rung']} {row['from']} -> {row['to']}" for row in found]
    proofs, writes = ([row[key] for row in found] for key in ("proof_seconds", "write_seconds"))
    right.barh(names, proofs, color="tab:blue", label="plan and proof")
    right.barh(names, writes, left=proofs, color="tab:cyan", label="writing")
    for place, row in enumerate(found):
        memory = f"{row['bytes'][1] / 1e9:.1f} GB written,\n{row['peak_bytes'] / 1e9:.1f} GB of memory"
        right.text(proofs[place] + writes[place], place, f"  {memory}", va="center", fontsize=8)
    right.set_xlim(0, 1.5 * max(p + w for p, w in zip(proofs, writes, strict=True)))
    right.set_xlabel("seconds, one core of a shared machine")
    right.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| rung | parameters | logit error before rounding | with weights in bfloat16 (allowed) | plan and proof | writing | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        small, big = (f"{n / 1e6:,.0f} M" for n in row["parameters"])
        proof = row["certificate"]
        unrounded = proof.get("unrounded_relative_error")  # measured only where rounding shows
        unrounded = proof["relative_error"] if unrounded is None else unrounded
        lines.append(
            f"| {row['rung']} {row['from']} -> {row['to']} | {small} -> {big} | {unrounded:.1e} | "
            f"{proof['relative_error']:.1e} ({proof['tolerance']:.0e}) | {row['proof_seconds']:.0f} s | {row['write_seconds']:.0f} s | "
            f"{row['peak_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", nargs="*", choices=list(RUNGS), default=list(RUNGS))
    parser.add_argument(
        "--work", type=Path, help="where checkpoints are written and deleted; a temporary directory by default"
    )
    parser.add_argument(
        "--sample", type=int, help="prove with so many blocks, and check some rows of every tensor as it is written"
    )
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, source, out, sample = arguments.worker
        worker(name, Path(source), Path(out), int(sample) or None)
        return
    from ladders import between

    results = ROOT / "results" / "rungs.json"
    found: list[dict[str, Any]] = []
    known = {row["rung"]: row for row in json.loads(results.read_text())} if results.exists() else {}
    for name in arguments.rungs:
        with tempfile.TemporaryDirectory(dir=arguments.work) as work:
            known[name] = measure(name, Path(work), arguments.sample)
        print(json.dumps(known[name]), flush=True)
        found = [known[rung] for rung in RUNGS if rung in known]
        results.write_text(json.dumps(found, indent=1) + "\n")
    page = ROOT / "docs" / "ladders.md"
    page.write_text(between(page.read_text(), "rungs", table(found)))
    draw(found, json.loads((ROOT / "results" / "ladders.json").read_text()), ROOT / "results" / "rungs.png")


if __name__ == "__main__":
    main()
