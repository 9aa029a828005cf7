"""Many small judgements, each in a process of its own, kept one a line as they come, so that a sweep can go on later."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def judged(path: Path) -> dict[str, Row]:
    """{name: row} of what a file of rows holds; of several with one name, the last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def judge_all(
    names: Sequence[str], judge: Callable[[str], Row], path: Path, workers: int, limit: float
) -> Iterator[Row]:
    """A row for each name, `workers` at a time, each in a fresh process with `limit` seconds; appended to `path` as they come."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(names), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(name, judge, theirs))
            process.start()
            theirs.close()
            running[name] = (process, ours, time.monotonic())
        for name, (process, pipe, start) in list(running.items()):
            row = None
            if pipe.poll(0.02):
                try:
                    row = pipe.recv()
                except EOFError:
                    row = {"outcome": "fail", "stage": "crash", "why": "the process died"}
            elif time.monotonic() - start > limit:
                process.kill()
                row = {"outcome": "fail", "stage": "time", "why": f"not done after {limit:g} s"}
            if row is not None:
                process.join()
                pipe.close()
                del running[name]
                row = {"name": name, **row, "seconds": round(time.monotonic() - start, 1)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                yield row


def _work(name: str, judge: Callable[[str], Row], pipe) -> None:
    """In a forked process of its own: whatever happens there, the sweep goes on."""
    if not os.environ.get("TRACE"):
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
    pipe.send(judge(name))
