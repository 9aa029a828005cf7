"""The table of docs/architectures.md, from the rows of a sweep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKER = "<!-- written by benchmarks/architectures.py -->"
NOT_JUDGED = ("no width", "not built")

SINUSOIDS = "positions are sinusoids of the width, added to the stream and not stored"
CAUSES = {  # of what is known to fail in width, by parts of the class's name
    r"CTRL|FSMT|M2M100|NllbMoe|PegasusX|XGLM|Musicgen|Seamless|SpeechT5|Speech2Text|VideoMAE|Canary|Tipsv2|Kosmos2_5|TranscribeAudioModel|TimeSeries|Informer": SINUSOIDS,
    r"FNet": "a Fourier transform mixes over the width itself",
    r"Perceiver": "the embedding is the output's head as well (no tied parameter says so), and no norm comes before it",
    r"PixioBackbone": "stock transformers does not load this class's own checkpoint again; in memory it is exact",
    r"BitBackbone": "its convolutions standardise their weights, so shares of copies count whole; its output has features before any norm",
    r"BlipForQuestionAnswering": "its decoder reads the question by weights that the config makes as wide as the image's features",
    r"Blip2QFormerModel": "its input query_embeds has the network's own width, which a wider network needs wider; its composites pass",
    r"Gemma4VisionModel": "its pooler multiplies by sqrt(hidden_size) after the last weight; in Gemma 4 a norm follows",
    r"ProphetNet": "the code pairs relative positions of the predicted streams with other heads and places, so heads cannot be cloned",
}

Row = dict[str, Any]


def write_page(page: Path, rows: Sequence[Row], classes: int) -> None:
    """Replace everything below the marker; `classes`: how many there are in all."""
    head, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(f"{head}{marker}\n\n{report(rows, classes)}\n", encoding="utf-8")


def report(rows: Sequence[Row], classes: int) -> str:
    """The counts and tables as Markdown."""
    count = Counter(row["outcome"] for row in rows)
    lines = [
        f"The auto mappings name {classes} classes; {len(rows)} were looked at{_rest(classes - len(rows))}. Of these, {_built(count)} could be built at toy size and have a width to "
        f"grow: **{count['pass']} pass ({_share(count)})**, {count['fail']} fail; {count['no width']} have no width that a "
        f"config sets, {count['not built']} were not built. A class that several mappings name is judged once and counts in "
        "the row of each.",
        "",
        "| task | classes | judged | pass | share | fail | no width | not built |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in sorted({task for row in rows for task in row["tasks"]}):
        per = Counter(row["outcome"] for row in rows if task in row["tasks"])
        cells = (per.total(), _built(per), per["pass"], _share(per), per["fail"], per["no width"], per["not built"])
        lines.append(f"| {task} | {' | '.join(map(str, cells))} |")
    lines += ["", "### What fails, and why", "", "| class | stage | why |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['stage']} | {_cause(row)} |" for row in _with(rows, "fail")]
    for outcome, title in (("no width", "No width that a config sets"), ("not built", "What was not built")):
        lines += ["", f"### {title}", "", "| class | why |", "|---|---|"]
        lines += [f"| {row['name']} | {_cell(row['why'], 110)} |" for row in _with(rows, outcome)]
    lines += ["", "### What passes: relative error after reloading, width x2 and depth x2", ""]
    for first in dict.fromkeys(row["tasks"][0] for row in rows):
        passed = [row for row in _with(rows, "pass") if row["tasks"][0] == first]
        cells = [f"{row['name']} ({_figure(row['width'])}, {_figure(row['depth'])})" for row in passed]
        lines += [f"**{first}**: {', '.join(cells)}", ""] if passed else []
    return "\n".join(lines)


def _rest(count: int) -> str:
    return f", the other {count} not yet" if count else ""


def _with(rows: Sequence[Row], outcome: str) -> list[Row]:
    return [row for row in rows if row["outcome"] == outcome]


def _built(count: Counter) -> int:
    return count["pass"] + count["fail"]


def _share(count: Counter) -> str:
    return f"{count['pass'] / _built(count):.1%}" if _built(count) else "-"


def _cause(row: Row) -> str:
    known = (cause for part, cause in CAUSES.items() if row["stage"] == "width" and re.search(part, row["name"]))
    return next(known, _cell(row["why"], 200))


def _cell(text: str, length: int) -> str:
    return text.replace("|", "/").replace("<", "&lt;")[:length]


def _figure(error: float | str) -> str:
    return f"{error:.0e}" if isinstance(error, float) else error
