"""Growing a checkpoint on disk, against copying one: seconds and memory; and a Trainer run that is grown in its middle.

    python benchmarks/checkpoints.py                 # 2.2 GB -> 8.3 GB, about a quarter of an hour, 20 GB of disk
    python benchmarks/checkpoints.py --layers 2      # a tenth of that
    python benchmarks/checkpoints.py --layers 88     # 8.2 GB -> 32 GB: the large setting

Speed: a synthetic Llama in bfloat16 is cloned to twice its width by a process that has imported torch and transformers
already; `cp -r` copies the output beside it. The two take turns. Before each, its target is removed, the disk synced and the
machine left alone for some seconds: a virtual machine's host takes back memory that was freed, and writing is two to three
times as fast while it has not. Both therefore start from memory that was given back. The whole command, start-up included, is
timed apart, as are the proof (`--verify`), noise, and the way through memory (from_pretrained, grow, save_pretrained).
Writes results/checkpoints.json and results/checkpoints.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAUSE = 8.0  # seconds
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def make_source(path: Path, layers: int) -> dict[str, Any]:
    """A Llama of TinyLlama's width with random weights in bfloat16, written tensor by tensor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from meristem.anatomy.streamed import Weights, streamed
    from meristem.checkpoints import write_model
    from meristem.growth.build import skeleton

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    model = skeleton(lambda: LlamaForCausalLM(config))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def random(name: str) -> torch.Tensor:
        tensor = torch.ones(shapes[name], dtype=torch.bfloat16)
        return tensor if tensor.dim() == 1 else tensor.normal_(0, tensor.shape[-1] ** -0.5)

    write_model(streamed(model, Weights(dict.fromkeys(shapes, torch.bfloat16), random)), path, {})
    largest = max(
        4 * shape.numel() * 2 for shape in shapes.values() if len(shape) == 2
    )  # a matrix, twice as wide and high
    return {"parameters": sum(shape.numel() for shape in shapes.values()), "largest_grown_matrix_bytes": largest}


def directory_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def settle(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    time.sleep(PAUSE)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(way: str, source: str, out: Path) -> None:
    """Import everything, say so, wait for the word, grow, report."""
    import torch
    import transformers  # noqa: F401
    from transformers import LlamaForCausalLM

    import meristem as ms
    from meristem.checkpoints import open_streamed, write_model
    from meristem.checkpoints.record import growth_record
    from meristem.growth import grow_with_certificate

    own = peak_bytes()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    if way == "streamed":
        growth = grow_with_certificate(open_streamed(source), ms.HyperCloning(width=2), verify=False)
        write_model(growth.model, out, lambda: growth_record(growth, source))
    else:
        model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        ms.grow(model, ms.HyperCloning(width=2), verify=False).save_pretrained(out, max_shard_size="5GB")
    print(
        json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes(), "own_bytes": own}), flush=True
    )


def run_worker(way: str, source: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", way, str(source), str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        settle(out)
        process.stdin.write("go\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def copy(source: Path, target: Path) -> dict[str, float]:
    settle(target)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    copied = time.perf_counter() - start
    os.sync()
    return {"seconds": copied, "seconds_synced": time.perf_counter() - start}


def command(source: Path, out: Path, *options: str) -> dict[str, Any]:
    """The whole command, as a user types it."""
    settle(out)
    start = time.perf_counter()
    line = [sys.executable, "-m", "meristem.cli.main", "grow", str(source), str(out), "--width", "2", *options]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return {"seconds": time.perf_counter() - start, "peak_bytes": usage.ru_maxrss * 1024, "options": list(options)}


def speed(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    source, out, duplicate = folder / "small", folder / "big", folder / "copy"
    facts = make_source(source, layers)
    streamed, copied = [], []
    for number in range(rounds):
        streamed.append(run_worker("streamed", source, out))
        copied.append(copy(out, duplicate))
        shutil.rmtree(duplicate)
        say(f"round {number}: grown {streamed[-1]['seconds']:.1f} s, copied {copied[-1]['seconds']:.1f} s")
    sizes = {"source_bytes": directory_bytes(source), "output_bytes": directory_bytes(out)}
    commands = {}
    for name, options in (
        ("plain", ["--no-verify"]),
        ("proved", ["--verify"]),
        ("noise", ["--no-verify", "--noise", "0.01"]),
    ):
        commands[name] = command(source, out, *options)
        say(f"whole command, {name}: {commands[name]['seconds']:.1f} s")
    through_memory = run_worker("memory", source, out)
    say(f"through memory: {through_memory['seconds']:.1f} s")
    grown, synced = (
        statistics.median(s["seconds"] for s in streamed),
        statistics.median(c["seconds_synced"] for c in copied),
    )
    plain = statistics.median(c["seconds"] for c in copied)
    return {
        **facts, **sizes, "layers": layers, "streamed": streamed, "copied": copied, "whole_command": commands,
        "through_memory": through_memory,
        "median_speed_of_cp": plain / grown, "median_speed_of_cp_and_sync": synced / grown,
        "speed_of_cp_by_round": [c["seconds"] / s["seconds"] for s, c in zip(streamed, copied, strict=True)],
        "median_peak_above_interpreter_bytes": statistics.median(s["peak_bytes"] - s["own_bytes"] for s in streamed),
        "memory_route_peak_above_interpreter_bytes": through_memory["peak_bytes"] - through_memory["own_bytes"],
    }  # fmt: skip


def losses(model: Any, folder: Path, steps: int, seed: int, resume: Path | None = None) -> dict[int, float]:
    """{step: training loss} of transformers' Trainer on Python's own sources."""
    import torch
    from transformers import Trainer, TrainingArguments

    from meristem.data import open_corpus

    data = [{"input_ids": row, "labels": row} for row in open_corpus("python-stdlib", 128)]
    torch.manual_seed(seed)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3, logging_steps=1,
        save_steps=steps // 2, report_to="none", use_cpu=True, disable_tqdm=True, seed=seed, max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the checkpoints go; a temporary one by default"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--worker", nargs=3, metavar=("WAY", "SRC", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, source, out = arguments.worker
        worker(way, source, Path(out))
        return
    from meristem.checkpoints.write import write_json
    from meristem.cli.commands import machine

    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        found = speed(folder, arguments.layers, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    found["machine"] = f"{machine()}, {platform.release()}, {os.cpu_count()} CPUs"
    write_json(arguments.results / "checkpoints.json", found)
    say(
        f"{found['median_speed_of_cp']:.2f} of cp's speed, peak {found['median_peak_above_interpreter_bytes'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
