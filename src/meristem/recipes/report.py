"""A run as one page: the graph of its nodes with states, costs, curves and links to logs. It opens without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from meristem.recipes import status
from meristem.recipes.node import Job, NodeResult, load_result

FILE = "report.html"
COLOURS = ("#1b6e3c", "#7f7f7f", "#1f5fa8", "#b8560f", "#7a3f9d", "#0f8a8a", "#a8224f", "#8a7a0f")
STATES = {"done": "#1b6e3c", "failed": "#b3261e", "open": "#8a8a8a"}
WIDTH, HEIGHT, PLACE, ROW = 640, 260, (190, 44), 74

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .8em .25em 0;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#222}
"""


def write_report(jobs: Sequence[Job], failed: Mapping[str, str], out: Path, title: str) -> Path:
    """Write `out/report.html`, whole or not at all.

    Args:
        jobs: of the run, parents first; they need not have finished.
        failed: what failed nodes said, by the names of their directories.
    """
    results = {job.directory.name: load_result(job.directory) for job in jobs}
    seeds = sorted({job.seed for job in jobs})
    first = [job for job in jobs if job.seed == seeds[0]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Nodes</h2>",
        _graph(first, results, failed),
        _table(jobs, results, failed),
        "<h2>Loss against the node's own compute</h2>",
        _curves(jobs, results),
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    partial = out / f".{FILE}.partial"
    partial.write_text(page + "".join(parts) + "</html>\n", encoding="utf-8")
    return partial.replace(out / FILE)


def _state(job: Job, results: Mapping[str, NodeResult | None], failed: Mapping[str, str]) -> str:
    name = job.directory.name
    return "done" if results[name] else "failed" if name in failed else "open"


def _graph(jobs: Sequence[Job], results: Mapping[str, NodeResult | None], failed: Mapping[str, str]) -> str:
    """The nodes of one seed, each a column behind its parents."""
    column: dict[str, int] = {}
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for job in jobs:
        name = job.directory.name
        column[name] = 1 + max((column[parent] for parent in job.parents), default=-1)
        row = rows.get(column[name], 0)
        rows[column[name]] = row + 1
        place[name] = 10 + column[name] * (PLACE[0] + 50), 10 + row * ROW
    drawn = []
    for job in jobs:
        x, y = place[job.directory.name]
        for parent in dict.fromkeys(job.parents):
            from_x, from_y = place[parent]
            line = f"M{from_x + PLACE[0]},{from_y + 22} C{x - 25},{from_y + 22} {x - 25},{y + 22} {x},{y + 22}"
            drawn.append(f'<path d="{line}" fill="none" stroke="#999"/>')
    for job in jobs:
        x, y = place[job.directory.name]
        state = _state(job, results, failed)
        drawn.append(
            f'<rect x="{x}" y="{y}" width="{PLACE[0]}" height="{PLACE[1]}" rx="6" fill="#fff" stroke="{STATES[state]}" stroke-width="2"/>'
            f'<text x="{x + 10}" y="{y + 18}" font-weight="600">{escape(job.name)}</text>'
            f'<text x="{x + 10}" y="{y + 35}">{job.node.kind}, {state}</text>'
        )
    width = 20 + max(x for x, _ in place.values()) + PLACE[0]
    height = 20 + max(y for _, y in place.values()) + PLACE[1]
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(drawn)}</svg>'


def _table(jobs: Sequence[Job], results: Mapping[str, NodeResult | None], failed: Mapping[str, str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in (
        "node", "seed", "state", "parameters", "examples", "TFLOPs", "seconds", "eval loss", "files",
    ))  # fmt: skip
    lines = []
    for job in jobs:
        name = job.directory.name
        result, state = results[name], _state(job, results, failed)
        said = escape(failed.get(name) or status.error_of(job.directory) or "") if state == "failed" else ""
        numbers = ["", "", "", "", ""]
        if result:
            loss = f"{result.metrics['eval_loss']:.4f}" if "eval_loss" in result.metrics else ""
            costs = f"{result.flops / 1e12:.3f}", f"{result.seconds:.1f}"
            numbers = [f"{result.parameters:,}", f"{result.examples:,}", *costs, loss]
        files = " ".join(
            f'<a href="{escape(name)}/{file}">{file}</a>'
            for file in ("node.json", "log.txt", "error.txt", "status.json")
            if (job.directory / file).exists()
        )
        cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
        shown = f'<span style="color:{STATES[state]}">{state}</span> {said}'
        lines.append(f"<tr><td>{escape(job.name)}</td><td>{job.seed}</td><td>{shown}</td>{cells}<td>{files}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _curves(jobs: Sequence[Job], results: Mapping[str, NodeResult | None]) -> str:
    """Evaluation losses over the compute of their own node, one colour for each name, one line for each seed."""
    curves = []
    for job in jobs:
        result = results[job.directory.name]
        points = (
            [(point["flops"], point["eval_loss"]) for point in result.curve if "eval_loss" in point] if result else []
        )
        if len(points) > 1:
            curves.append((job.name, points))
    if not curves:
        return "<p>No node has a curve yet.</p>"
    most = max(points[-1][0] for _, points in curves) or 1.0
    losses = sorted(loss for _, points in curves for _, loss in points)
    low, high = losses[0], losses[-1]
    names = list(dict.fromkeys(name for name, _ in curves))
    drawn = [f'<text x="0" y="12">{high:.3f}</text><text x="0" y="{HEIGHT}">{low:.3f}</text>']
    drawn.append(f'<text x="{WIDTH}" y="{HEIGHT + 18}" text-anchor="end">{most / 1e12:.3f} TFLOPs</text>')
    for name, points in curves:
        line = " ".join(
            f"{60 + flops / most * (WIDTH - 60):.1f},{6 + (high - loss) / ((high - low) or 1.0) * (HEIGHT - 12):.1f}"
            for flops, loss in points
        )
        colour = COLOURS[names.index(name) % len(COLOURS)]
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<text x="{WIDTH + 20}" y="{16 + 18 * number}" style="fill:{colour}">{escape(name)}</text>')
    height = max(HEIGHT + 30, 20 + 18 * len(names))
    return f'<svg viewBox="0 0 {WIDTH + 200} {height}" width="{WIDTH + 200}" role="img">{"".join(drawn)}</svg>'
