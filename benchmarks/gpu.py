"""All that wants a GPU, in one go of under eight minutes: tests, growth and proof on the device, times of steps, studies.

    make gpu                             # or: python benchmarks/gpu.py
    python benchmarks/gpu.py --only raptr_deep    # another study; rows are kept, and the next go measures what is missing

Each part is a command of its own with a limit in seconds; what it prints in its last line, if that is JSON, is kept. A part that
fails or takes too long is written down as such, and the next one runs. A study joins with one line in `PARTS`. Where there is no
CUDA device, the script says so and ends well. Writes results/gpu.json after each part, with the card's name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUDGET = 460.0  # seconds in all


@dataclass(frozen=True)
class Part:
    """A command, below the repository, and how many seconds it may take. One that `resumes` has not failed when they are over."""

    command: tuple[str, ...]
    limit: float
    resumes: bool = False


def study(name: str, setting: str) -> Part:
    """A study or a trial, measured by four processes side by side."""
    words = ("-m", "benchmarks", "run", name, "--setting", setting, "--workers", "4", "--ungated")
    return Part(words, BUDGET, resumes=True)


PARTS: dict[str, Part] = {
    "steps": Part(("-m", "benchmarks.support.step_times", "cuda"), 170),
    "tests": Part(("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/growth/device_suite.py"), 130),
    **{name: study(name, "large") for name in ("growth", "depth_eight", "raptr_deep", "fusion", "best")},
    **{name: study(name, "gpu") for name in ("majority", "incubation")},
    "likelihood": study("likelihood", "tiny"),
}
USUAL = ("steps", "tests", "growth")


def run(part: Part, limit: float) -> dict[str, Any]:
    """What became of a part: seconds, its exit code (None: it took too long), and the JSON that it printed last."""
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *part.command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=limit)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said, _ = process.communicate()
        code = None
    lines = said.strip().splitlines()
    outcome: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "exit_code": code}
    try:
        outcome["found"] = json.loads(lines[-1])
    except (IndexError, ValueError):
        outcome["last_lines"] = lines[-12:]
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(USUAL))
    parser.add_argument("--small", action="store_true", help="the small setting, which is the default")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("there is no CUDA device here, so nothing was run")
        return
    card = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    end, parts = time.monotonic() + arguments.budget, {}
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        limit = min(PARTS[name].limit, end - time.monotonic())
        parts[name] = (
            run(PARTS[name], limit)
            if limit > 0
            else {"exit_code": None, "seconds": 0.0, "last_lines": ["no time left"]}
        )
        print(name, json.dumps(parts[name]), flush=True)
        (arguments.results / "gpu.json").write_text(json.dumps({**card, "parts": parts}, indent=2) + "\n")
    if any(part["exit_code"] not in ((0, None) if PARTS[name].resumes else (0,)) for name, part in parts.items()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
