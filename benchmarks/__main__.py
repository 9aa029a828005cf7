"""`python -m benchmarks run [NAMES] [--setting tiny]` runs studies, all by default, and goes on where they stood; `python -m benchmarks report` writes all
pages. A study that has no such setting is passed over."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.studies.study import Study
    from benchmarks.trials.trial import Trial

ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure what is missing of a study")
    running.add_argument("names", nargs="*", help="all by default, in the order of their value")
    running.add_argument("--setting", default="tiny")
    running.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="of the setting's, those to report now; all by default"
    )
    running.add_argument("--workers", type=int, default=1, help="processes side by side, which share the work")
    running.add_argument("--ungated", action="store_true", help="do not wait for the gate's own sides")
    running.add_argument("--out", type=Path, default=ROOT / "runs" / "studies", help="checkpoints, to be thrown away")
    running.add_argument("--rows", type=Path, default=ROOT / "results" / "studies", help="where results are kept")
    verbs.add_parser("report", help="pages and pictures, from the rows alone")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")
    if given.verb == "report":
        from benchmarks._report import write_pages

        write_pages(ROOT)
        return 0
    return _run(given)


def _run(given: argparse.Namespace) -> int:
    from benchmarks.studies.catalogue import studies
    from benchmarks.trials.catalogue import trials

    known: dict[str, Study | Trial] = {**studies(), **trials()}
    names = given.names or list(known)
    for name in names:
        if name not in known:
            print(f"there is no study {name!r}; studies are {', '.join(known)}", file=sys.stderr)
            return 2
    found = [name for name in names if given.setting in known[name].settings]
    if not found:
        settings = dict.fromkeys(setting for name in names for setting in known[name].settings)
        print(f"there is no setting {given.setting!r}; settings are {', '.join(settings)}", file=sys.stderr)
        return 2
    if told := _other_seeds(known, found, given):
        print(told, file=sys.stderr)
        return 2
    from benchmarks._measure import measure

    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=measure, args=(found, given, turn), daemon=True) for turn in range(1, given.workers)]
    for other in others:
        other.start()
    measure(found, given, 0)
    for other in others:
        other.join()
    return max([0, *(abs(other.exitcode or 0) for other in others)])


def _other_seeds(known: Mapping[str, Study | Trial], names: Sequence[str], given: argparse.Namespace) -> str:
    """What is wrong with the seeds that were asked for: pages show those of a setting alone."""
    for name in names:
        seeds = known[name].settings[given.setting].seeds
        if others := sorted(set(given.seeds) - set(seeds)):
            return f"{name} reports the seeds {', '.join(map(str, seeds))}, and not {', '.join(map(str, others))}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
