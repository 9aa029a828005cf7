"""The pictures on the page of a run: the graph of its nodes, and their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from meristem.recipes.node import Job

COLOURS = ("#1b6e3c", "#7f7f7f", "#1f5fa8", "#b8560f", "#7a3f9d", "#0f8a8a", "#a8224f", "#8a7a0f")
STATES = {"done": "#1b6e3c", "failed": "#b3261e", "running": "#1f5fa8", "queued": "#b8560f", "waiting": "#8a8a8a"}
WIDTH, HEIGHT, LEFT, PLACE, ROW = 640, 260, 60, (190, 44), 74

Point = tuple[float, float, str]  # compute, loss, and a text about it


def graph(jobs: Sequence[Job], said: Mapping[str, tuple[str, str]]) -> str:
    """The nodes of one seed. Each is in a column to the right of its parents.

    Args:
        jobs: the jobs of one seed.
        said: the state and a line of text for each job, by the name of its directory.
    """
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
    drawn += [_node(job, *place[job.directory.name], *said[job.directory.name]) for job in jobs]
    width = 20 + max(x for x, _ in place.values()) + PLACE[0]
    height = 20 + max(y for _, y in place.values()) + PLACE[1]
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(drawn)}</svg>'


def _node(job: Job, x: int, y: int, state: str, line: str) -> str:
    return (
        f'<a href="#{escape(job.directory.name)}">'
        f'<rect x="{x}" y="{y}" width="{PLACE[0]}" height="{PLACE[1]}" rx="6" fill="#fff" stroke="{STATES[state]}" stroke-width="2"/>'
        f'<text x="{x + 10}" y="{y + 18}" font-weight="600">{escape(job.name)}</text>'
        f'<text x="{x + 10}" y="{y + 35}">{escape(line)}</text></a>'
    )


def curves(found: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Losses over compute, with one colour for each name, one line for each curve, and a point for each
    evaluation.
    """
    shown = [(name, points) for name, points in found if len(points) > 1]
    if not shown:
        return "<p>No node has a curve yet.</p>"
    most = max(points[-1][0] for _, points in shown) or 1.0
    losses = sorted(loss for _, points in shown for _, loss, _ in points)
    low, high = losses[0], losses[-1]
    names = list(dict.fromkeys(name for name, _ in shown))
    drawn = [f'<text x="0" y="12">{high:.3f}</text><text x="0" y="{HEIGHT}">{low:.3f}</text>']
    drawn.append(f'<text x="{WIDTH}" y="{HEIGHT + 18}" text-anchor="end">{most / 1e12:.3g} TFLOPs</text>')
    for name, points in shown:
        placed = [
            (LEFT + flops / most * (WIDTH - LEFT), 6 + (high - loss) / ((high - low) or 1.0) * (HEIGHT - 12), said)
            for flops, loss, said in points
        ]
        colour = COLOURS[names.index(name) % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{escape(said)}</title></circle>'
            for x, y, said in placed
        ]
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<text x="{WIDTH + 20}" y="{16 + 18 * number}" style="fill:{colour}">{escape(name)}</text>')
    height = max(HEIGHT + 30, 20 + 18 * len(names))
    return f'<svg viewBox="0 0 {WIDTH + 200} {height}" width="{WIDTH + 200}" role="img">{"".join(drawn)}</svg>'
