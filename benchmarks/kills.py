"""Every recipe of docs/recipes.md, killed at random moments: does it end with the same bytes, and does any process survive its parent?

    python benchmarks/kills.py                        # 100 kills in all ways; resumes; two hours on two quiet cores
    python benchmarks/kills.py --kills torchrun=30    # of one way
    python benchmarks/kills.py --small                # 6 kills of one recipe, in one process

The recipes are those of the page with less data (see `support.small_recipes`). Each runs undisturbed once. A trial then runs the same
command in an empty directory and sends SIGKILL at a moment drawn evenly from half the undisturbed run's duration; then runs the same command
again, which goes on from there, which is killed as well, until it ends by itself. Ways to run, and who is killed:

`single`: the command itself.
`torchrun`: two processes share each train node; the command, the launcher, torchrun or one of its workers.
`ray`: a cluster of two slots; the command, a worker of Ray, or the process of a node.

A trial is equal if all models, optimizer states, kept checkpoints and results (but for seconds) are, byte for byte. Who was started by the
process that was killed, directly or not, has to end too. Of an unequal trial, both folders stay (`--unequal`), and its row names the first
tensor that differs, in the order in which nodes ended. Every process computes in one thread. Writes results/kills.json after each trial.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import yaml
from checkpoints import ENVIRONMENT, ROOT, say
from support.small_recipes import published, small

from meristem.checkpoints.written import MANIFEST

WAYS = {"single": [], "torchrun": [], "ray": ["--executor", "ray", "--executor-option", "slots=2"]}
WANTED = {"single": 50, "torchrun": 30, "ray": 20}  # kills at least; each recipe is killed in each way
MOST = {"single": 5, "torchrun": 3, "ray": 3}  # kills in one trial
SOON_SECONDS = 5.0  # what a killed process had started and that still runs then is written down by its command line
GONE_SECONDS = 90.0  # when it counts as a survivor
CRASH_SECONDS = 300.0


def start(file: Path, out: Path, way: str, log: Path) -> BaseProcess:
    """The command `meristem run` in a process of its own, forked from this one so that nothing is imported anew."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(file, out, way, log))
    process.start()
    return process


def _run(file: Path, out: Path, way: str, log: Path) -> None:
    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ["RAY_TMPDIR"] = str(log.parent.parent / "r")  # a socket's path has to be short
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112 on a busy machine
    from meristem.cli.main import main

    sys.argv = ["meristem", "run", str(file), "--out", str(out), *WAYS[way]]
    main()


def digest(out: Path) -> dict[str, str]:
    """SHA-256 of all that a run leaves, by file; in text its own directory has no name and seconds do not count."""
    found = {}
    for file in sorted(out.rglob("*")):
        name = file.relative_to(out).as_posix()
        kept = "/model/" in name or "/kept/" in name or name.endswith(("node.json", "ensemble.json", ".safetensors"))
        if (
            file.is_file() and kept and "/trainer/" not in name and file.name != MANIFEST
        ):  # hashes of what is compared here
            content = file.read_bytes()
            if file.suffix == ".json":
                content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
            if file.suffix in (".json", ".md"):
                content = content.replace(str(out).encode(), b"OUT")
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def first_difference(undisturbed: Path, killed: Path, unequal: list[str]) -> str:
    """The first file that differs, of the node that ended first; of tensors, the first by name, and by how much."""
    import torch
    from safetensors.torch import load_file

    def ended(name: str) -> float:
        result = undisturbed / name.split("/")[0] / "node.json"
        return result.stat().st_mtime if result.exists() else 0.0

    ordered = sorted(unequal, key=lambda name: (ended(name), not name.endswith(".safetensors"), name))
    if not ordered[0].endswith(".safetensors") or not all((out / ordered[0]).exists() for out in (undisturbed, killed)):
        return ordered[0]
    one, other = (load_file(out / ordered[0]) for out in (undisturbed, killed))
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return f"{ordered[0]}: {name} is in one of them only"
        if not torch.equal(one[name], other[name]):
            return f"{ordered[0]}: {name} by {float((one[name] - other[name]).abs().max()):.3g}"
    return f"{ordered[0]}: equal tensors, other bytes"


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if "seconds" not in key}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def victims(top: psutil.Process, way: str) -> list[psutil.Process]:
    """Who may be killed now."""
    found = [top]
    for process in top.children(recursive=True) if way != "single" else ():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "meristem.recipes" in line or line.startswith("ray::"):
                found.append(process)
    return found


def kill(victim: psutil.Process, said: str = "") -> dict[str, Any]:
    """Kill it (named `said`, or by its own words), and wait for all that it had started."""
    words: list[str] = []
    with contextlib.suppress(psutil.Error):
        words = victim.cmdline()
    below = [(process, _line(process)) for process in victim.children(recursive=True)]
    victim.kill()
    began, late = time.monotonic(), {}
    _, left = psutil.wait_procs([process for process, _ in below], timeout=SOON_SECONDS)
    while left and time.monotonic() - began < GONE_SECONDS:
        _, left = psutil.wait_procs(left, timeout=0.5)
        left = [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        late |= {line: round(time.monotonic() - began, 1) for process, line in below if process in left}
    said = said or next((word for word in words if word.startswith(("meristem.", "ray::"))), "gone")
    return {
        "victim": said,
        "children": len(below),
        "gone_after": round(time.monotonic() - began, 2),
        "late": late,
        "survivors": [line for process, line in below if process in left],
    }


def _line(process: psutil.Process) -> str:
    """Its number and the first words of its command line."""
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {process.name()}: {' '.join(process.cmdline())[:160]}"
    return f"{process.pid} gone"


def trial(file: Path, out: Path, way: str, duration: float, draw: random.Random, log: Path) -> Iterator[dict[str, Any]]:
    """One kill after the other, until the command ends by itself with code 0."""
    process, again = start(file, out, way, log), 0
    try:
        for number in itertools.count():
            moment = draw.uniform(0, duration / 2) if number < MOST[way] else CRASH_SECONDS
            process.join(moment)
            if process.exitcode == 0:
                return
            if process.exitcode is not None:  # a process of its own crashed, and it asks to be started again
                again += 1
                if again > MOST[way] + 3:
                    raise SystemExit(f"{file}: does not end, see {log}\n{log.read_text()[-2000:]}")
                process = start(file, out, way, log)
                continue
            victim = draw.choice(victims(psutil.Process(process.pid), way))
            yield {"moment": round(moment, 2), **kill(victim, "command" if victim.pid == process.pid else "")}
            if victim.pid == process.pid:
                process.join()
                process = start(file, out, way, log)
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def undisturbed(file: Path, folder: Path, way: str) -> tuple[dict[str, str], float]:
    """What a run leaves that nobody disturbs, and how long it takes."""
    out, log, began = folder / "undisturbed", folder / "undisturbed.log", time.monotonic()
    process = start(file, out, way, log)
    process.join()
    if (
        process.exitcode == 2 and "no Ray cluster" not in log.read_text()
    ):  # a recipe that says why this way is not for it
        return {}, 0.0
    if process.exitcode:
        raise SystemExit(f"{file}: the undisturbed run ended with {process.exitcode}\n{log.read_text()[-2000:]}")
    return digest(out), time.monotonic() - began


def one(
    name: str, content: dict[str, Any], way: str, number: int, folder: Path, known: dict[Any, Any], keep: Path
) -> dict[str, Any]:
    """The row of a trial. If it is unequal, both runs are left in `keep`."""
    place = folder / f"{name}-{way}"
    file = place / "recipe.yaml"
    if (name, way) not in known:
        place.mkdir()
        file.write_text(yaml.safe_dump(small(content, processes=2 if way == "torchrun" else 1)))
        known[name, way] = undisturbed(file, place, way)
    expected, duration = known[name, way]
    row = {"recipe": name, "way": way, "number": number}
    if not expected:
        said = (place / "undisturbed.log").read_text(encoding="utf-8").strip().splitlines()
        return {**row, "refused": " ".join(said[-3:]), "files": 0, "unequal": [], "kills": []}
    out, log, began = place / "killed", place / "killed.log", time.monotonic()
    kills = list(trial(file, out, way, duration, random.Random(f"{name} {way} {number}"), log))
    if not kills:  # the machine had been slower
        known[name, way] = (expected, min(duration, time.monotonic() - began))
    found = digest(out)
    unequal = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    row |= {"files": len(expected), "unequal": unequal, "kills": kills}
    if unequal:
        row["first_difference"] = first_difference(place / "undisturbed", out, unequal)
        kept = keep / f"{name}-{way}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(place, kept)
    shutil.rmtree(out)
    return {**row, "undisturbed_seconds": round(duration, 1), "load_average": os.getloadavg()[0]}


def missing(rows: list[dict[str, Any]], wanted: dict[str, int], recipes: list[str]) -> Iterator[tuple[str, str, int]]:
    """(recipe, way, number of the trial) while kills are wanted, or a recipe has not been killed in a way."""
    for number in range(50):
        for name, way in itertools.product(recipes, wanted):
            trials = [row for row in rows if row["way"] == way]
            own = [row for row in trials if row["recipe"] == name]
            if any(row["number"] == number or "refused" in row for row in own):
                continue
            if sum(len(row["kills"]) for row in trials) < wanted[way] or not any(row["kills"] for row in own):
                yield name, way, number


def trainings(content: dict[str, Any]) -> int:
    """How many networks a recipe trains, about."""
    tuned = sum("tune" in own for node in content["nodes"].values() for own in node.values())
    return len(content["nodes"]) + 6 * tuned


def amounts(said: list[str]) -> dict[str, int]:
    """`["torchrun=30"]` as numbers of kills by way."""
    wanted = {way: int(number) for way, _, number in (word.partition("=") for word in said)}
    if unknown := wanted.keys() - WAYS.keys():
        raise SystemExit(f"--kills {' '.join(unknown)}: no such way; there are {', '.join(WAYS)}")
    return wanted


def main() -> None:
    os.environ.update({**ENVIRONMENT, "OMP_NUM_THREADS": "1"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", nargs="+", metavar="WAY=N", default=[f"{way}={n}" for way, n in WANTED.items()])
    parser.add_argument("--recipes", nargs="+", help="some of them, by name", default=list(published()))
    parser.add_argument("--small", action="store_true", help="6 kills of the first recipe, in one process")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--unequal", type=Path, default=Path(tempfile.gettempdir()) / "kills-unequal", help="where")
    arguments = parser.parse_args()
    import transformers  # noqa: F401 what is imported here, a fork need not import

    import meristem.recipes.training.train  # noqa: F401
    from meristem.checkpoints.write import write_json
    from meristem.recipes.code import code_revision

    recipes = {name: published()[name] for name in arguments.recipes[: 1 if arguments.small else None]}
    wanted = {"single": 6} if arguments.small else amounts(arguments.kills)
    file = arguments.results / ("kills_small.json" if arguments.small else "kills.json")
    found = json.loads(file.read_text()) if file.exists() else {"trials": []}
    rows = [row for row in found["trials"] if row["revision"] == code_revision()]  # of other code they show nothing
    known: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True, prefix="kills-") as folder:
        for name, way, number in missing(rows, wanted, sorted(recipes, key=lambda name: trainings(recipes[name]))):
            row = one(name, recipes[name], way, number, Path(folder), known, arguments.unequal)
            rows.append({**row, "revision": code_revision()})
            say(
                name,
                way,
                number,
                f"{len(row['kills'])} kills, unequal {row['unequal']}",
                row.get("first_difference", ""),
            )
            kills = [kill for row in rows for kill in row["kills"]]
            summary = {"kills": len(kills), "unequal": sum(bool(row["unequal"]) for row in rows)}
            summary |= {"survivors": sum(len(kill["survivors"]) for kill in kills), "trials": rows}
            write_json(file, summary)
    if any(row["unequal"] or any(kill["survivors"] for kill in row["kills"]) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
