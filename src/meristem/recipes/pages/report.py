"""A run as one HTML page: the graph of its nodes with states, costs, curves and links to logs. It opens
without a server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from meristem.recipes import status
from meristem.recipes.node import Job, NodeResult, load_result, past
from meristem.recipes.pages.pictures import STATES, Point, curves, graph

FILE = "report.html"
REFRESH_SECONDS = 3  # of the page of a run in progress
LOGS = ("node.json", "ensemble.json", "log.txt", "error.txt", "diverged.json", "status.json")

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .8em .25em 0;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#222}
"""


class Run:
    """The state of a run: the results of its nodes, and the status of those that are running.

    Args:
        jobs: the jobs of the run, parents first. They need not have finished.
        failed: the messages of failed nodes, by the names of their directories.
        before: the status of each node before this run. A node whose status has changed is running. None:
            nothing runs.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        failed: Mapping[str, str],
        before: Mapping[str, status.Status | None] | None = None,
    ) -> None:
        self.jobs, self.failed = jobs, failed
        self.results = {job.directory.name: load_result(job.directory) for job in jobs}
        self.statuses = {job.directory.name: status.read(job.directory) for job in jobs}
        self._before = before

    def state(self, job: Job) -> str:
        """One of `pictures.STATES`."""
        name = job.directory.name
        if self.results[name]:
            return "done"
        if name in self.failed:
            return "failed"
        if self._before is not None and self.statuses[name] != self._before[name]:
            return "running"
        ready = self._before is not None and all(self.results[parent] for parent in job.parents)
        return "queued" if ready else "waiting"

    def line(self, job: Job) -> str:
        """The text for a node in the graph."""
        result, state, known = self.results[job.directory.name], self.state(job), self.statuses[job.directory.name]
        if result and "eval_loss" in result.metrics:
            return f"{job.node.kind}, loss {result.metrics['eval_loss']:.4f}"
        if state == "running" and known and known.steps:
            return f"{job.node.kind}, step {known.step} of {known.steps}"
        return f"{job.node.kind}, {state}"

    def flops_before(self, job: Job) -> int | None:
        """The FLOPs of all nodes from which this one comes, or None while they have not finished."""
        result = self.results[job.directory.name]

        def load(name: str) -> NodeResult:
            found = self.results[name]
            if found is None:
                raise LookupError(name)
            return found

        try:
            return sum(own.flops for own in past(job.parents, result.taken if result else {}, load).values())
        except LookupError:
            return None

    def curve(self, job: Job) -> list[Point]:
        """The evaluations over the node's own compute, also for a running node."""
        result, known = self.results[job.directory.name], self.statuses[job.directory.name]
        points: Sequence[Mapping[str, float]] = result.curve if result else known.curve if known else ()
        return [
            (point["flops"], point["eval_loss"], f"{job.label}, step {point['step']:.0f}: {point['eval_loss']:.4f}")
            for point in points
            if point.get("eval_loss") is not None
        ]


def write_report(
    jobs: Sequence[Job],
    failed: Mapping[str, str],
    out: Path,
    title: str,
    before: Mapping[str, status.Status | None] | None = None,
) -> Path:
    """Write `out/report.html` atomically. The arguments are those of `Run`. With `before`, the page reloads
    itself.
    """
    run = Run(jobs, failed, before)
    first = [job for job in jobs if job.seed == min(job.seed for job in jobs)]
    own = [(job.name, run.curve(job)) for job in jobs]
    behind = {job.directory.name: run.flops_before(job) for job in jobs}
    whole = [
        (job.name, [(more + x, y, said) for x, y, said in run.curve(job)])
        for job in jobs
        if (more := behind[job.directory.name]) is not None
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Nodes</h2>",
        graph(first, {job.directory.name: (run.state(job), run.line(job)) for job in first}),
        _table(run),
        "<h2>Loss against compute, with that of all ancestors</h2>",
        curves(whole),
        "<h2>Loss against the node's own compute</h2>",
        curves(own),
        _choices(out / "tuning"),
    ]
    again = "" if before is None else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    page = f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>{escape(title)}</title><style>{STYLE}</style>'
    partial = out / f".{FILE}.partial"
    partial.write_text(page + "".join(parts) + "</html>\n", encoding="utf-8")
    return partial.replace(out / FILE)


def _table(run: Run) -> str:
    head = "".join(f"<th>{name}</th>" for name in (
        "node", "seed", "state", "parameters", "examples", "TFLOPs", "TFLOPs with ancestors", "seconds", "eval loss", "files",
    ))  # fmt: skip
    return f"<table><tr>{head}</tr>{''.join(_row(run, job) for job in run.jobs)}</table>"


def _row(run: Run, job: Job) -> str:
    name, state = job.directory.name, run.state(job)
    result, known, before = run.results[name], run.statuses[name], run.flops_before(job)
    said, numbers = "", [""] * 6
    if state == "failed":
        said = run.failed.get(name) or status.error_of(job.directory) or ""
    elif state == "running" and known:
        said = f"step {known.step} of {known.steps}" if known.steps else ""
        said += f", attempt {known.attempt}" if known.attempt > 1 else ""
        numbers[5] = f"{known.eval_loss:.4f}" if known.eval_loss is not None else ""
    if result:
        loss = f"{result.metrics['eval_loss']:.4f}" if "eval_loss" in result.metrics else ""
        whole = f"{(result.flops + before) / 1e12:.3f}" if before is not None else ""
        costs = f"{result.flops / 1e12:.3f}", whole, f"{result.seconds:.1f}"
        numbers = [f"{result.parameters:,}", f"{result.examples:,}", *costs, loss]
    files = " ".join(f'<a href="{escape(name)}/{file}">{file}</a>' for file in LOGS if (job.directory / file).exists())
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    shown = f'<span style="color:{STATES[state]}">{state}</span> {escape(said)}'
    return f'<tr id="{escape(name)}"><td>{escape(job.name)}</td><td>{job.seed}</td><td>{shown}</td>{cells}<td>{files}</td></tr>'


def _choices(folder: Path) -> str:
    """The results of tuning: each number that was tried with its mean loss, and the chosen one in bold."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        found: dict[str, Any] = json.loads(file.read_text())
        tried = [
            f"<{'b' if trial['numbers'] == found['chosen'] else 'span'}>{escape(_numbers(trial['numbers']))}: {_mean(trial['losses'])}"
            f"</{'b' if trial['numbers'] == found['chosen'] else 'span'}>"
            for trial in found["trials"]
        ]
        rows.append(
            f"<tr><td>{escape(found['node'])}</td><td>{'; '.join(tried)}</td><td>{found['flops'] / 1e12:.3f}</td></tr>"
        )
    if not rows:
        return ""
    return f"<h2>Tuned numbers</h2><table><tr><th>node</th><th>tried</th><th>TFLOPs</th></tr>{''.join(rows)}</table>"


def _numbers(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in numbers.items())


def _mean(losses: Sequence[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.4f}" if len(known) == len(losses) else "diverged"
