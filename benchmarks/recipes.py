"""What recipes stand on: tokens that stay on disk, a loader that keeps up, FLOPs counted by shapes.

    python benchmarks/recipes.py                       # all parts, about 10 minutes and 2 GB of disk
    python benchmarks/recipes.py --parts flops

`tokens`: a file of random uint16 tokens (2 GB) is opened and its first batch read, and the demo's small network is trained on it for some steps; the
peak memory beside that of the same training on a file of 2 MB. Each in a fresh process, three times, in turns.
`loader`: tokens that the loader hands out in a second of one core, for each way to cut documents and for several sources, beside those that training
the demo's small network reads in a second of a core; the ratio is of the loader against two cores that train without any loss.
`flops`: each architecture, small, counted by shapes and by torch's own counter over a real run; and the seconds that the count takes at the size
of transformers' default configuration (Llama: 7B), where no memory is taken.
Times are of the processor, so that they say the same on a busy machine. Writes results/recipes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import ENVIRONMENT, ROOT, say

SEQUENCE, BATCH, VOCABULARY = 256, 8, 4096
ROUNDS = 3
MODEL = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
ARCHITECTURES = {  # model type -> its class with a loss
    **dict.fromkeys(("llama", "gpt2", "qwen3", "mistral", "gemma2", "olmo2", "gpt_neox", "opt", "bloom", "falcon"), "CausalLM"),
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3"), "CausalLM"),  # mixtures
    **dict.fromkeys(("bert", "roberta", "electra"), "MaskedLM"),
    **dict.fromkeys(("t5", "bart"), "Seq2SeqLM"),
    **dict.fromkeys(("vit", "deit", "swin"), "ImageClassification"),
}  # fmt: skip
MORE = {
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_group": 1,
        "topk_group": 1,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    }
}


def write_tokens(place: Path, size: int) -> Path:
    """`size` bytes of tokens, 16 MB of random ones again and again, with a document's end at one in 500."""
    place.mkdir(parents=True)
    draw, file = np.random.default_rng(0), place / "train.bin"
    tokens = draw.integers(1, VOCABULARY, min(size, 1 << 24) // 2).astype(np.uint16)
    tokens[draw.random(len(tokens)) < 1 / 500] = 0
    with file.open("wb") as out:
        for start in range(0, size, 1 << 24):
            out.write(tokens[: min(size - start, 1 << 24) // 2].tobytes())
    (place / "meta.json").write_text(json.dumps({"vocab_size": VOCABULARY, "end_token": 0}))
    return file


def alone(part: str, *arguments: Any) -> dict[str, Any]:
    """The JSON that a part prints in a fresh process, with its peak memory."""
    line = [sys.executable, __file__, "--alone", part, *map(str, arguments)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    said = process.stdout.read()
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(line)} ended with {code}")
    return {**json.loads(said.splitlines()[-1]), "peak_megabytes": round(usage.ru_maxrss / 1024)}


def opened(source: str) -> dict[str, float]:
    """From the recipe's `data` section to the first batch; imports left out."""
    from meristem.recipes.specs.data_specs import TextSpec
    from meristem.recipes.tasks import open_task

    start, processor = time.perf_counter(), time.process_time()
    examples = open_task(TextSpec(source=source, sequence_length=SEQUENCE)).training_set(10_000, 1, 0)
    for position in range(BATCH):
        examples[position]
    found = time.perf_counter() - start, time.process_time() - processor
    return dict(zip(("seconds", "processor_seconds"), (round(value, 3) for value in found), strict=True))


def trained(source: str, steps: int) -> dict[str, float]:
    """Training of the demo's small network on these tokens."""
    from meristem.recipes import run
    from meristem.recipes.specs.schema import parse_recipe

    train = {"model": MODEL, "examples": steps * BATCH, "batch_size": BATCH, "learning_rate": 1e-3, "evaluations": 1}
    data = {"source": source, "sequence_length": SEQUENCE, "eval_sequences": 8}
    with tempfile.TemporaryDirectory() as out:
        processor = time.process_time()
        run(parse_recipe({"data": data, "nodes": {"net": {"train": train}}}), out)
        return {"steps": steps, "processor_seconds": round(time.process_time() - processor, 1)}


def tokens_part(folder: Path, size: int, steps: int) -> dict[str, Any]:
    large, little = write_tokens(folder / "large", size), write_tokens(folder / "little", 2 << 20)
    found: dict[str, Any] = {"bytes": size, "opened": [alone("opened", large) for _ in range(ROUNDS)]}
    rounds = []
    for _ in range(ROUNDS):  # the two take turns
        rounds.append({name: alone("trained", file, steps) for name, file in (("large", large), ("little", little))})
    found["trained"] = rounds
    found["megabytes_more"] = [one["large"]["peak_megabytes"] - one["little"]["peak_megabytes"] for one in rounds]
    say("tokens", found)
    return found


def rate(read: Callable[[int], Any], tokens: int, seconds: float) -> float:
    """Tokens in a second of the processor, of as many calls as take about so long."""
    number, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        for _ in range(16):
            read(number)
            number += 1
    return number * tokens / (time.process_time() - start)


def loader_part(folder: Path, seconds: float) -> dict[str, Any]:
    import torch
    from transformers import default_data_collator

    from meristem.recipes.specs.data_specs import TextSpec
    from meristem.recipes.tasks import open_task
    from meristem.recipes.tasks.language import causal_language_model

    files = [str(write_tokens(folder / name, 200 << 20)) for name in ("one", "other")]
    sources = [{"source": file, "weight": weight} for file, weight in zip(files, (3, 1), strict=True)]
    ways: dict[str, dict[str, Any]] = {
        "one source": {"source": files[0]},
        "two sources": {"sources": sources},
        "within documents": {"source": files[0], "documents": "within"},
        "whole documents": {"source": files[0], "documents": "whole"},
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        examples = open_task(TextSpec(sequence_length=SEQUENCE, **way)).training_set(10**7, 1, 0)
        read = lambda n, own=examples: default_data_collator([own[n * BATCH + i] for i in range(BATCH)])  # noqa: E731
        found[name] = [round(rate(read, BATCH * SEQUENCE, seconds)) for _ in range(ROUNDS)]
    network = causal_language_model(MODEL, 256, SEQUENCE, 0)
    optimizer = torch.optim.AdamW(network.parameters())
    batch = torch.randint(0, 256, (BATCH, SEQUENCE))

    def step(_: int) -> None:
        network(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    training = [round(rate(step, BATCH * SEQUENCE, seconds)) for _ in range(ROUNDS)]
    ratios = {
        name: [round(own / (2 * one), 1) for own, one in zip(rates, training, strict=True)]
        for name, rates in found.items()
    }
    found = {"tokens_in_a_second": found, "training": training, "of_two_cores": ratios}
    say("loader", found)
    return found


def flops_part(names: list[str]) -> dict[str, Any]:
    import torch
    import transformers
    from support.tiny import shrunk_entries
    from torch.utils.flop_counter import FlopCounterMode

    from meristem.anatomy import flops
    from meristem.anatomy.flop_formulas import more_formulas
    from meristem.anatomy.flops_by_shapes import by_shapes
    from meristem.anatomy.inputs import example_inputs
    from meristem.recipes.tasks.task import new_of

    def batch(model: Any) -> dict[str, Any]:
        inputs = example_inputs(model, 1, 32)
        tokens = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        return {**inputs, "labels": torch.zeros(1, dtype=torch.long) if tokens is None else tokens}

    def images(config: Any) -> dict[str, Any]:
        pixels = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": pixels, "labels": torch.zeros(1, dtype=torch.long)}

    found: dict[str, Any] = {}
    for name in names:
        auto = getattr(transformers, f"AutoModelFor{ARCHITECTURES[name]}")
        config = transformers.AutoConfig.for_model(name)
        entries = {**shrunk_entries(config), **MORE.get(name, {})}
        model = new_of(auto, transformers.AutoConfig.for_model(name, **entries)).train()
        inputs = batch(model)
        counted = by_shapes(flops._TrainingStep(model), inputs, ())
        with more_formulas(), FlopCounterMode(display=False) as real:
            model(**inputs).loss.backward()
        with torch.device("meta"):
            whole = new_of(auto, config)
        inputs = images(config) if ARCHITECTURES[name] == "ImageClassification" else inputs
        start = time.process_time()
        large = flops.training_flops(whole, inputs)
        seconds = time.process_time() - start
        row = {"by_shapes": counted.total if counted else None, "really_run": real.get_total_flops()}
        row["ratio"] = row["by_shapes"] / row["really_run"] if counted else None
        row |= {
            "default_parameters": sum(p.numel() for p in whole.parameters()),
            "default_gflops": round(large / 1e9, 1),
        }
        found[name] = {**row, "processor_seconds": round(seconds, 2)}
        say(name, found[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["tokens", "loader", "flops"], default=["tokens", "loader", "flops"]
    )
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, help="for `flops`; all by default")
    parser.add_argument("--small", action="store_true", help="200 MB, four architectures")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    if arguments.alone:
        part, source, *more = arguments.alone
        print(json.dumps(opened(source) if part == "opened" else trained(source, int(more[0]))))
        return
    import torch

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    torch.set_num_threads(1)
    small = arguments.small
    file = arguments.results / ("recipes_small.json" if small else "recipes.json")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if "tokens" in arguments.parts:
            found["tokens"] = tokens_part(Path(folder), 200 << 20 if small else 2 * 10**9, 5 if small else 20)
        if "loader" in arguments.parts:
            found["loader"] = loader_part(Path(folder), 1.0 if small else 5.0)
    if "flops" in arguments.parts:
        names = arguments.architectures or list(ARCHITECTURES)[:: 6 if small else 1]
        found["flops"] = {**found.get("flops", {}), **flops_part(names)}
    found["machine"] = f"{machine()}, {os.cpu_count()} CPUs"
    write_json(file, found)


if __name__ == "__main__":
    main()
