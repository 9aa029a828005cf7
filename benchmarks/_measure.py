"""What one of several processes measures. Not in `__main__`, where a spawned process would not find it."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading

from benchmarks.studies.catalogue import studies
from benchmarks.studies.engine import Engine as StudyEngine
from benchmarks.studies.rows import Rows
from benchmarks.trials.catalogue import trials
from benchmarks.trials.engine import Engine as TrialEngine


def measure(names: list[str], given: argparse.Namespace, turn: int) -> None:
    """What is missing of these studies, in one process of several."""
    if first := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(first,), daemon=True).start()
    for name in names:
        rows = Rows(given.rows / f"{name}.{given.setting}.jsonl")
        own = (rows, given.out / f"{name}-{given.setting}", given.seeds, turn, given.ungated)
        if study := studies().get(name):
            StudyEngine(study, study.settings[given.setting], *own).run()
        else:
            trial = trials()[name]
            TrialEngine(trial, trial.settings[given.setting], *own).run()


def _end_with(first: multiprocessing.process.BaseProcess) -> None:
    """End this process when the one that started it is gone, however it was killed."""
    first.join()
    os._exit(1)
