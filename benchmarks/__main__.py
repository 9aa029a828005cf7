"""`python -m benchmarks run NAME [--setting tiny]` runs a study and goes on where it stood; `python -m benchmarks report` writes all pages."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure what is missing of a study")
    running.add_argument("name")
    running.add_argument("--setting", default="tiny")
    running.add_argument("--seeds", type=int, nargs="+", default=[], help="reported ones; the setting's by default")
    running.add_argument("--out", type=Path, default=ROOT / "runs" / "studies", help="checkpoints, to be thrown away")
    running.add_argument("--rows", type=Path, default=ROOT / "results" / "studies", help="where results are kept")
    verbs.add_parser("report", help="pages and pictures, from the rows alone")
    given = parser.parse_args(arguments)
    os.environ.setdefault("TQDM_DISABLE", "1")
    if given.verb == "report":
        from benchmarks.studies.page import write_pages

        write_pages(ROOT)
        return 0
    return _run(given)


def _run(given: argparse.Namespace) -> int:
    from benchmarks.studies.catalogue import studies
    from benchmarks.studies.engine import Engine
    from benchmarks.studies.rows import Rows

    known = studies()
    if given.name not in known:
        print(f"there is no study {given.name!r}; studies are {', '.join(known)}", file=sys.stderr)
        return 2
    study = known[given.name]
    if given.setting not in study.settings:
        print(f"{given.name} has no setting {given.setting!r}; it has {', '.join(study.settings)}", file=sys.stderr)
        return 2
    rows = Rows(given.rows / f"{given.name}.{given.setting}.jsonl")
    Engine(study, study.settings[given.setting], rows, given.out / f"{given.name}-{given.setting}", given.seeds).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
