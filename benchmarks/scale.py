"""How large a checkpoint can be, and how long it takes: plans of published shapes, whole commands beside `cp`, and a model of both.

    python benchmarks/scale.py                         # all parts: 0.84 GB -> 3.1 GB, about 15 minutes, 10 GB of disk
    python benchmarks/scale.py --parts plans           # checkpoints of up to 1 T parameters whose data is a hole in the file
    python benchmarks/scale.py --parts speed --mergekit VENV/bin/python

`plans`: inspect, plan and `grow --dry-run` of each shape; seconds, seconds of the processor and peak memory.
`speed`: whole commands, start-up included, each in turn with `cp -r` of what it wrote; ratios are of one round, and the median is
given. With `--mergekit`, mergekit's passthrough stacks the same layers beside `--method stacking`.
`model`: a growth takes the longest of reading, making and writing (they overlap), after a start-up; rates come from `speed`, are
checked against sources of other sizes, and are then applied to 7B, 70B, 405B and 671B on N machines.
Writes results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoints import ENVIRONMENT, ROOT, directory_bytes, make_source, say
from support.sparse import SHAPES, make_sparse

VERBS = {
    "inspect": ["inspect", "SRC"],
    "plan": ["plan", "SRC", "--width", "2", "--tokens", "10B"],
    "dry run": ["grow", "SRC", "OUT", "--width", "2", "--dry-run"],
}
COMMANDS = {
    "width, unproved": ["--width", "2", "--no-verify"],
    "width, sampled proof": ["--width", "2", "--sample", "4"],
    "width, whole proof": ["--width", "2"],
    "width, noise, unproved": ["--width", "2", "--no-verify", "--option", "noise=0.1"],
    "width, two processes, unproved": ["--width", "2", "--no-verify", "--processes", "2", "--max-shard-size", "500MB"],
    "depth, unproved": ["--method", "stacking", "--depth", "2", "--no-verify"],
}
PUBLISHED = {"7B": 6.7e9, "70B": 70.6e9, "405B": 405.9e9, "671B": 671.0e9}
MACHINES = (1, 8, 64)


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
        source = folder / name
        found[name] = make_sparse(source, SHAPES[name]())
        places = {"SRC": str(source), "OUT": str(folder / "out")}
        for verb, words in VERBS.items():
            found[name][verb] = timed(meristem(*(places.get(word, word) for word in words)))
            say(name, verb, found[name][verb])
        shutil.rmtree(source)
    return found


def copied(source: Path, target: Path) -> float:
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    os.sync()  # a growth is on the disk before it appears
    return time.perf_counter() - start


def grown(source: Path, out: Path, options: list[str]) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return timed(meristem("grow", str(source), str(out), *options))


def speed(folder: Path, layers: int, rounds: int, mergekit: str | None) -> dict[str, Any]:
    source, out, duplicate = folder / "small", folder / "big", folder / "copy"
    found: dict[str, Any] = {"parameters": make_source(source, layers)["parameters"], "rounds": rounds}
    found["source_bytes"] = directory_bytes(source)
    for name, options in COMMANDS.items():
        runs = []
        for _ in range(rounds):
            run = grown(source, out, options)
            runs.append(
                {**run, "output_bytes": directory_bytes(out), "cp_sync_seconds": round(copied(out, duplicate), 2)}
            )
            if mergekit and name.startswith("depth"):
                runs[-1]["mergekit_seconds"] = passthrough(mergekit, source, folder / "merged", layers)["seconds"]
        ratios = [run["cp_sync_seconds"] / run["seconds"] for run in runs]
        found[name] = {"of_cp": round(statistics.median(ratios), 3), "runs": runs}
        if "mergekit_seconds" in runs[0]:
            of_mergekit = [run["mergekit_seconds"] / run["seconds"] for run in runs]
            found[name]["of_mergekit"] = round(statistics.median(of_mergekit), 3)
        say(name, found[name])
    return found


def passthrough(python: str, source: Path, out: Path, layers: int) -> dict[str, float]:
    """mergekit's stacking of the same layers."""
    shutil.rmtree(out, ignore_errors=True)
    recipe = out.with_suffix(".json")  # JSON is YAML
    part = {"sources": [{"model": str(source), "layer_range": [0, layers]}]}
    recipe.write_text(json.dumps({"merge_method": "passthrough", "dtype": "bfloat16", "slices": [part, part]}))
    os.sync()
    line = [python, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out), "--lazy-unpickle", "--no-copy-tokenizer"]
    return timed(line)


def model(folder: Path, measured: dict[str, Any], layers: list[int]) -> dict[str, Any]:
    """Rates from the smallest and the largest measured point, checked at those between, and what follows for published sizes."""
    points = []
    for count in layers:
        source, out = folder / f"small{count}", folder / "big"
        make_source(source, count)
        run = grown(source, out, ["--width", "2", "--no-verify"])
        points.append(
            {"output_gigabytes": directory_bytes(out) / 1e9, "seconds": run["seconds"], "peak": run["peak_gigabytes"]}
        )
        say(points[-1])
        shutil.rmtree(source)
        shutil.rmtree(out)
    low, high = points[0], points[-1]
    rate = (high["output_gigabytes"] - low["output_gigabytes"]) / max(1e-9, high["seconds"] - low["seconds"])
    startup = max(0.0, low["seconds"] - low["output_gigabytes"] / rate)
    for point in points:
        point["predicted_seconds"] = round(startup + point["output_gigabytes"] / rate, 2)
    hours = {
        name: {machines: round((startup + 8 * parameters / 1e9 / rate / machines) / 3600, 3) for machines in MACHINES}
        for name, parameters in PUBLISHED.items()
    }  # twice the width is four times the parameters, in two bytes each
    return {
        "start_up_seconds": round(startup, 2), "gigabytes_per_second": round(rate, 3), "points": points,
        "hours_to_twice_the_width_by_machines": hours, "cp_of_the_same_in_one_run": measured.get("width, unproved", {}).get("of_cp"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["plans", "speed", "model"], default=["plans", "speed", "model"])
    parser.add_argument("--small", action="store_true", help="the small setting, which is the default")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", type=int, default=8, help="of the source; 22 are 2.2 GB")
    parser.add_argument("--points", type=int, nargs="+", default=[1, 4, 8], help="layers of the sources for the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", help="a Python that has mergekit")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; a temporary one by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    file = arguments.results / "scale.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        load = {"before": os.getloadavg()}
        if "plans" in arguments.parts:
            found["plans"] = plans(folder, arguments.shapes)
        if "speed" in arguments.parts:
            found["speed"] = speed(folder, arguments.layers, arguments.rounds, arguments.mergekit)
        if "model" in arguments.parts:
            found["model"] = model(folder, found.get("speed", {}), arguments.points)
    finally:
        shutil.rmtree(folder)
    found["machine"] = f"{machine()}, {os.cpu_count()} CPUs"
    found["load_averages"] = {**load, "after": os.getloadavg()}
    write_json(file, found)


if __name__ == "__main__":
    main()
