"""Growing a checkpoint on disk, against copying one: seconds and memory; and a Trainer run that is grown in its middle.

    python benchmarks/checkpoints.py                 # 2.2 GB -> 8.3 GB, about 20 minutes, 20 GB of disk
    python benchmarks/checkpoints.py --parts mid_run # the second half alone
    python benchmarks/checkpoints.py --large         # 8 GB -> 31 GB

Speed: a synthetic Llama in bfloat16 is cloned to twice its width by a process that has imported torch and transformers
already; `cp -r` copies the output beside it. The two take turns. Before each, its target is removed, the disk synced and the
machine left alone for some seconds: a virtual machine's host takes back memory that was freed, and writing is two to three
times as fast while it has not. Both therefore start from memory that was given back. The whole command, start-up included, is
timed apart, as are the proof (`--verify`), noise, and the way through memory (from_pretrained, grow, save_pretrained).

In mid-run: a small Llama is trained by transformers' Trainer, its checkpoint grown, and training goes on from there with the
grown optimizer state, and without.
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

sys.path.insert(0, str(Path(__file__).parent))

from support.picture import picture
from support.terminal import say

ROOT = Path(__file__).parents[1]
PAUSE = 8.0  # seconds
STEPS = 200  # before growth in mid-run, and after it
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def make_source(path: Path, layers: int) -> dict[str, Any]:
    """A Llama of TinyLlama's width with random weights in bfloat16, written tensor by tensor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from meristem.anatomy.streamed import Weights, streamed
    from meristem.checkpoints import write_model
    from meristem.growth.tensors.build import skeleton

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
    from meristem.growth import Growth

    own = peak_bytes()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    if way == "streamed":
        growth = Growth.of(open_streamed(source), ms.HyperCloning(width=2), verify=False)
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


def trainer(model: Any, folder: Path, steps: int, seed: int, tokens: Any) -> Any:
    """transformers' Trainer on Python's own sources, at a constant learning rate, saving at step `STEPS`."""
    from transformers import Trainer, TrainingArguments

    from meristem.data.sequences import Sequences

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=2e-3, logging_steps=1,
        lr_scheduler_type="constant", save_steps=STEPS, report_to="none", use_cpu=True, disable_tqdm=True, seed=seed,
        max_grad_norm=0.0, weight_decay=0.1,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Sequences(tokens, 128, 16 * steps, seed))


def losses(run: Any, resume: Path | None = None) -> list[float]:
    run.train(resume_from_checkpoint=str(resume) if resume else None)
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def continued(folder: Path, seed: int) -> dict[str, list[float]]:
    """Training losses by step: the small network throughout, and grown at step STEPS with its optimizer state or without."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from meristem.checkpoints import open_model
    from meristem.data.corpus import open_corpus

    corpus = open_corpus("python-stdlib").train
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=4, vocab_size=256
    )  # fmt: skip
    small = trainer(LlamaForCausalLM(config), folder / "small", 2 * STEPS, seed, corpus)
    found = {"small": losses(small)}
    source, grown = folder / "small" / f"checkpoint-{STEPS}", folder / "grown"
    line = [sys.executable, "-m", "meristem.cli.main", "grow", str(source), str(grown), "--width", "2"]
    subprocess.run(line, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    with_state = trainer(open_model(str(grown)), folder / "with", 2 * STEPS, seed, corpus)
    found["grown, with its state"] = losses(with_state, grown)
    saved = torch.load(grown / "optimizer.pt", weights_only=True)
    torch.save({**saved, "state": {}}, grown / "optimizer.pt")
    without = trainer(open_model(str(grown)), folder / "without", 2 * STEPS, seed, corpus)
    found["grown, without"] = losses(without, grown)
    return found


def mid_run(folder: Path, seeds: int) -> dict[str, Any]:
    runs = []
    for seed in range(seeds):
        (folder / str(seed)).mkdir()
        runs.append(continued(folder / str(seed), seed))
        say(f"seed {seed}: after growth " + ", ".join(f"{name} {run[STEPS]:.6f}" for name, run in runs[-1].items()))
    names = list(runs[0])
    first = max(abs(run[name][STEPS] - run["small"][STEPS]) for run in runs for name in names)
    after = {n: statistics.mean(sum(r[n][STEPS + 1 : STEPS + 21]) / 20 for r in runs) for n in names}
    end = {n: statistics.mean(sum(r[n][-20:]) / 20 for r in runs) for n in names}
    spike = {n: max(max(r[n][STEPS : STEPS + 20]) - max(r["small"][STEPS : STEPS + 20]) for r in runs) for n in names}
    return {
        "steps": STEPS, "seeds": seeds, "largest_difference_of_the_first_loss": first, "mean_loss_of_the_next_20_steps": after,
        "mean_loss_of_the_last_20_steps": end, "largest_spike_over_the_small_run": spike, "runs": runs,
    }  # fmt: skip


def draw(found: dict[str, Any], file: Path) -> None:
    with picture(file, 1, 2, figsize=(11, 4), dpi=120) as (left, right):
        speed = found["speed"]
        gigabytes = speed["output_bytes"] / 1e9
        sides = {
            "cp -r": [c["seconds"] for c in speed["copied"]],
            "cp -r; sync": [c["seconds_synced"] for c in speed["copied"]],
            "grown from disk": [s["seconds"] for s in speed["streamed"]],
            "through memory": [speed["through_memory"]["seconds"]],
        }
        for place, (name, seconds) in enumerate(sides.items()):
            left.plot(seconds, [place] * len(seconds), "o", label=name)
        left.set_yticks(range(len(sides)), list(sides))
        left.set(xlim=(0, None), xlabel="seconds", title=f"{gigabytes:.1f} GB written")
        steps = range(STEPS - 20, STEPS + 60)
        for name in found["mid_run"]["runs"][0]:
            mean = [statistics.mean(run[name][step] for run in found["mid_run"]["runs"]) for step in steps]
            right.plot(steps, mean, label=name)
        right.axvline(STEPS, color="grey", linewidth=0.8)
        right.set(xlabel="step", ylabel="training loss", title="a Trainer run, grown in its middle")
        right.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["speed", "mid_run"], default=["speed", "mid_run"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="layers", action="store_const", const=22, default=22)
    size.add_argument("--large", dest="layers", action="store_const", const=88)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary one by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--worker", nargs=3, metavar=("WAY", "SRC", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, source, out = arguments.worker
        worker(way, source, Path(out))
        return
    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    file = arguments.results / "checkpoints.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        if "speed" in arguments.parts:
            found["speed"] = speed(folder, arguments.layers, arguments.rounds)
        if "mid_run" in arguments.parts:
            found["mid_run"] = mid_run(folder, arguments.seeds)
    finally:
        shutil.rmtree(folder)
    found["machine"] = f"{machine()}, Linux {platform.release()}, {os.cpu_count()} CPUs"
    write_json(file, found)
    if {"speed", "mid_run"} <= set(found):
        draw(found, arguments.results / "checkpoints.png")


if __name__ == "__main__":
    main()
