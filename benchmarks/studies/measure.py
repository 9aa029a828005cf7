"""What one of several processes measures. Not in `__main__`, where a spawned process would not find it."""

from __future__ import annotations

import argparse

from benchmarks.studies.catalogue import studies
from benchmarks.studies.engine import Engine
from benchmarks.studies.rows import Rows


def measure(names: list[str], given: argparse.Namespace, turn: int) -> None:
    """What is missing of these studies, in one process of several."""
    for name in names:
        study, rows = studies()[name], Rows(given.rows / f"{name}.{given.setting}.jsonl")
        out = given.out / f"{name}-{given.setting}"
        Engine(study, study.settings[given.setting], rows, out, given.seeds, turn, given.ungated).run()
