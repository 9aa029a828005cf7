"""How large a checkpoint can be, and how long it takes: plans of published shapes, whole commands beside `cp`, and a model of both.

    python benchmarks/scale.py                         # all parts: 0.9 GB -> 3.3 GB, about 15 minutes, 12 GB of disk
    python benchmarks/scale.py --parts plans           # checkpoints of up to 1 T parameters whose data is a hole in the file
    python benchmarks/scale.py --parts speed --mergekit VENV/bin/python

`plans`: inspect, plan and `grow --dry-run` of each shape; seconds, seconds of the processor and peak memory.
`speed`: whole commands, start-up included, in turns with each other and with `cp -r` of what was written. The least of all rounds is
given, in seconds and in seconds of the processor (user and system), and the ratios of these: on a machine that others use, seconds
measure the others. With `--mergekit`, mergekit's passthrough stacks the same layers beside `--method stacking`.
`bounds`: seconds of the processor that parts take by themselves: to load the libraries, to copy, to hash, to draw random numbers, to make
noisy bfloat16 weights of them. No growth of this kind takes less than their sum over the cores.
`kills`: thirty random kills of a growth with four processes, and of the process that started them.
`model`: a growth takes a start-up and then the longest of reading, making and writing, which overlap. The rates (bytes read and
written in a second, seconds of the processor for each GB made) are measured, seconds of the processor are checked at outputs of about
1, 2, 4 and 8 GB, and all is then applied to 7B, 70B, 405B and 671B on N machines.
Writes results/scale.json after each part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import ENVIRONMENT, ROOT, directory_bytes, make_source, say
from support.sparse import ONE_FILE, SHAPES, make_sparse

VERBS = {
    "inspect": ["inspect", "SRC"],
    "plan": ["plan", "SRC", "--width", "2", "--tokens", "10B"],
    "dry run": ["grow", "SRC", "OUT", "--width", "2", "--dry-run"],
}
COMMANDS = {
    "width, unproved": ["--width", "2", "--no-verify"],
    "width, sampled proof": ["--width", "2", "--sample", "4"],
    "width, whole proof": ["--width", "2"],
    "width, no noise, unproved": ["--width", "2", "--no-verify", "--noise", "0"],
    "width, two processes, unproved": ["--width", "2", "--no-verify", "--processes", "2", "--max-shard-size", "500MB"],
    "depth, unproved": ["--method", "stacking", "--depth", "2", "--no-verify"],
}
PROOFS = {
    "width, sampled proof": "width, unproved",
    "width, whole proof": "width, unproved",
}
PUBLISHED = {"7B": 6.7e9, "70B": 70.6e9, "405B": 405.9e9, "671B": 671.0e9}
MACHINES = (1, 8, 64)
PARTS = ["plans", "speed", "bounds", "model", "kills"]
KILLED = ROOT / "tests" / "checkpoints" / "killed_shares_worker.py"
PROBE = 1 << 29  # bytes that are written and read to measure the disk


def timed(line: list[str], **more: Any) -> dict[str, float]:
    """Seconds, seconds of the processor and peak memory of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=ENVIRONMENT, **more)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(line)} ended with {status}")
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gigabytes": round(usage.ru_maxrss * 1024 / 1e9, 3),
    }


def meristem(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "meristem.cli.main", *arguments]


def plans(folder: Path, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        source = folder / name.replace(" ", "-")
        found[name] = make_sparse(source, SHAPES[name](), "100GB" if name == ONE_FILE else "5GB")
        places = {"SRC": str(source), "OUT": str(folder / "out")}
        for verb, words in VERBS.items():
            found[name][verb] = timed(meristem(*(places.get(word, word) for word in words)))
            say(name, verb, found[name][verb])
        shutil.rmtree(source)
    return found


def copied(source: Path, target: Path) -> dict[str, float]:
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    copy = timed(["cp", "-r", str(source), str(target)])
    start = time.perf_counter()
    os.sync()  # a growth is on the disk before it appears
    shutil.rmtree(target)
    return {**copy, "seconds": round(copy["seconds"] + time.perf_counter() - start, 2)}


def grown(source: Path, out: Path, options: list[str]) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return timed(meristem("grow", str(source), str(out), *options))


def speed(folder: Path, layers: int, rounds: int, mergekit: str | None, commands: list[str]) -> dict[str, Any]:
    source, out, duplicate = folder / "small", folder / "big", folder / "copy"
    parameters = make_source(source, layers)["parameters"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    copies: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    theirs: list[dict[str, float]] = []
    for _ in range(rounds):
        for name in commands:
            runs[name].append({**grown(source, out, COMMANDS[name]), "output_bytes": directory_bytes(out)})
            say(name, runs[name][-1])
            copies[name].append(copied(out, duplicate))
            say("cp -r", copies[name][-1])
            if mergekit and name.startswith("depth"):
                theirs.append(passthrough(mergekit, source, folder / "merged", layers))
                say("mergekit", theirs[-1])
    found: dict[str, Any] = {"parameters": parameters, "source_bytes": directory_bytes(source), "rounds": rounds}
    for name in commands:
        found[name] = {"least": least(runs[name]), "of_cp": ratio(copies[name], runs[name]), "runs": runs[name]}
        if name in PROOFS and PROOFS[name] in runs:
            found[name]["times_unproved"] = ratio(runs[name], runs[PROOFS[name]])
        if theirs and name.startswith("depth"):
            found[name] |= {"of_mergekit": ratio(theirs, runs[name]), "mergekit": theirs}
    shutil.rmtree(source)
    shutil.rmtree(out)
    return found


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of several runs of one command, each measure at its best."""
    return {
        measure: min(run[measure] for run in runs) for measure in ("seconds", "processor_seconds", "peak_gigabytes")
    }


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """The least of `ours` over the least of `theirs`."""
    a, b = least(ours), least(theirs)
    return {measure: round(a[measure] / max(1e-9, b[measure]), 3) for measure in ("seconds", "processor_seconds")}


def passthrough(python: str, source: Path, out: Path, layers: int) -> dict[str, float]:
    """mergekit's stacking of the same layers."""
    shutil.rmtree(out, ignore_errors=True)
    recipe = out.with_suffix(".json")  # JSON is YAML
    part = {"sources": [{"model": str(source), "layer_range": [0, layers]}]}
    recipe.write_text(json.dumps({"merge_method": "passthrough", "dtype": "bfloat16", "slices": [part, part]}))
    os.sync()
    line = [python, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out), "--lazy-unpickle", "--no-copy-tokenizer"]
    return timed(line)


def disk(folder: Path) -> dict[str, float]:
    """Bytes that this disk takes and gives in a second, in GB: the best of three times."""
    data, file, best = os.urandom(1 << 24), folder / "probe", {"write": 0.0, "read": 0.0}
    for _ in range(3):
        start = time.perf_counter()
        with open(file, "wb", buffering=0) as stream:
            for _ in range(PROBE >> 24):
                stream.write(data)
            os.fsync(stream.fileno())
            best["write"] = max(best["write"], PROBE / 1e9 / (time.perf_counter() - start))
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with open(file, "rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
        best["read"] = max(best["read"], PROBE / 1e9 / (time.perf_counter() - start))
    file.unlink()
    return {f"{name}_gigabytes_per_second": round(rate, 3) for name, rate in best.items()}


def bounds(folder: Path) -> dict[str, Any]:
    """What parts of a growth take by themselves, in seconds of the processor, the least of several times."""
    import torch

    from meristem.growth.tensors.draws import normal
    from meristem.growth.tensors.rounding import pair_of

    torch.set_num_threads(1)
    source, rows, columns = folder / "bytes", 1 << 4, 1 << 12
    source.write_bytes(os.urandom(1 << 24) * (PROBE >> 24))
    load = [
        timed([sys.executable, "-c", f"import {name}"])
        for name in ("torch", "transformers.models.llama.modeling_llama") * 3
    ]
    copies = [timed(["cp", str(source), str(folder / "copied")]) for _ in range(3)]
    data = source.read_bytes()
    weights, shape = torch.randn(rows, columns).bfloat16(), [rows, columns]
    noise = lambda: normal("weight", 0, "noise", shape, std=0.01)  # noqa: E731
    drawn = noise()
    new = 2 * rows * columns  # of each draw two entries
    found = {
        "torch_seconds": least(load[0::2])["processor_seconds"],
        "transformers_and_torch_seconds": least(load[1::2])["processor_seconds"],
        "cp_seconds_per_gigabyte": least(copies)["processor_seconds"] / (PROBE / 1e9),
        "sha256_seconds_per_gigabyte": processor_seconds(lambda: hashlib.sha256(data), 3) / (PROBE / 1e9),
        "draws_seconds_per_gigabyte_of_noisy_bfloat16": processor_seconds(noise) / (2 * new / 1e9),
        "shares_seconds_per_gigabyte_of_noisy_bfloat16": processor_seconds(
            lambda: [share.bfloat16() for share in pair_of(weights.float(), drawn.clone(), torch.bfloat16)]
        ) / (2 * new / 1e9),
    }  # fmt: skip
    source.unlink()
    (folder / "copied").unlink()
    return {name: round(value, 3) for name, value in found.items()}


def kills(folder: Path) -> dict[str, Any]:
    """A growth with four processes, killed at random moments thirty times: what came of it (see the test of the same)."""
    place = folder / "killed"
    place.mkdir()
    said = subprocess.run([sys.executable, str(KILLED), str(place)], capture_output=True, text=True, check=True)
    found = json.loads(said.stdout.splitlines()[-1])
    statuses = found.pop("statuses")
    shutil.rmtree(place)
    return {**found, "growths": len(statuses), "failed": sum(map(bool, statuses))}


def processor_seconds(work: Callable[[], Any], times: int = 50) -> float:
    """The least that this thread takes for it, of so many times."""
    taken = []
    for _ in range(times):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken)


def model(folder: Path, layers: list[int], rounds: int) -> dict[str, Any]:
    """Rates from the smallest and the largest point, checked at those between, and what follows for published sizes."""
    points = [point(folder, count, rounds) for count in layers]
    low, high = points[0], points[-1]
    more = high["output_gigabytes"] - low["output_gigabytes"]
    making = (high["processor_seconds"] - low["processor_seconds"]) / more
    startup = max(0.0, low["processor_seconds"] - making * low["output_gigabytes"])
    for at in points:
        at["predicted_processor_seconds"] = round(startup + making * at["output_gigabytes"], 2)
    rates, cores = disk(folder), os.cpu_count() or 1
    write, read = rates["write_gigabytes_per_second"], rates["read_gigabytes_per_second"]

    def hours(parameters: float, machines: int) -> float:
        source, output = 2 * parameters / 1e9, 8 * parameters / 1e9  # two bytes each, four times as many
        seconds = max(source / read, output / write, output * making / cores) / machines
        return round((startup + seconds) / 3600, 3)

    return {
        "start_up_processor_seconds": round(startup, 2), "processor_seconds_per_gigabyte": round(making, 3), **rates,
        "cores": cores, "points": points,
        "hours_to_twice_the_width_by_machines": {
            name: {machines: hours(parameters, machines) for machines in MACHINES} for name, parameters in PUBLISHED.items()
        },
        "peak_gigabytes": {
            "measured": max(at["peak_gigabytes"] for at in points),
            "what it holds": "start-up, and the largest tensor of the source: nothing grows with the number of tensors",
        },
    }  # fmt: skip


def point(folder: Path, layers: int, rounds: int) -> dict[str, float]:
    """One measured size."""
    source, out = folder / f"small{layers}", folder / "big"
    make_source(source, layers)
    runs = [grown(source, out, COMMANDS["width, unproved"]) for _ in range(rounds)]
    found = {"output_gigabytes": round(directory_bytes(out) / 1e9, 3), **least(runs)}
    shutil.rmtree(source)
    shutil.rmtree(out)
    say(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true", help="the small setting, which is the default")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", type=int, default=8, help="of the source; 22 are 2.2 GB")
    parser.add_argument(
        "--points", type=int, nargs="+", default=[2, 4, 10, 22], help="layers of the sources for the model"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--mergekit", help="a Python that has mergekit")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary one by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    file = arguments.results / "scale.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    parts = {
        "plans": lambda: plans(folder, arguments.shapes),
        "speed": lambda: speed(folder, arguments.layers, arguments.rounds, arguments.mergekit, arguments.commands),
        "bounds": lambda: bounds(folder),
        "kills": lambda: kills(folder),
        "model": lambda: model(folder, arguments.points, arguments.rounds),
    }
    found["machine"] = f"{machine()}, {os.cpu_count()} CPUs"
    try:
        for part in arguments.parts:
            before = os.getloadavg()
            made = parts[part]()
            load = {"load_averages": {"before": before, "after": os.getloadavg()}}
            if part == "speed":  # of the commands that were run; others stay as they were measured
                made |= {name: {**made[name], **load} for name in arguments.commands}
            found[part] = {**(found.get(part, {}) if part in ("plans", "speed") else {}), **made, **load}
            write_json(file, found)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
