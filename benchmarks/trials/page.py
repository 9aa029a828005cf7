"""A page for each trial, and its lines in the summary, from rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from benchmarks.studies.statistics import LEAST_SEEDS
from benchmarks.support.markdown import table
from benchmarks.trials.results import Found, reported
from benchmarks.trials.trial import Trial

SEARCH = """\
Every side's number (a learning rate, unless said otherwise) comes from the same search, on seed{s} {tuned_on} and on a part of the training rows that
no result uses: {values}, then on by factors of {step:g} at either edge while the edge is best. Of equal figures the lower loss
decides. """
PROTOCOL = """\
Reported networks train on all training rows and are judged on test rows that nothing else uses. Reported seeds: {seeds}. Differences are
paired by seed. Intervals are the bootstrap's; [the summary](../studies.md) says when an effect counts as shown."""


def trial_page(trial: Trial, found: Sequence[Found]) -> str:
    """Question, gate, protocol, a table for each task, verdicts, limits; the largest setting first."""
    says = trial.gate.says
    parts = [
        f"# {trial.title}",
        "",
        f"**Question.** {trial.question}",
        "",
        f"**Gate.** {says[0].upper()}{says[1:]}.",
        "",
        trial.protocol,
    ]
    if not found:
        parts += ["", "Not run yet."]
    for own in found:
        parts += ["", f"## Setting `{own.name}`", "", _protocol(own)]
        for task in own.scale.tasks:
            parts += ["", *_task(own, task)]
    return "\n".join([*parts, "", "**Limits.** " + " ".join(trial.limits), ""])


def summary_rows(trial: Trial, found: Sequence[Found]) -> Iterable[list[str]]:
    """Claim, gate, effect, verdict, as in the summary of studies; one line for each claim and task."""
    link = f"[{trial.title}](studies/{trial.name}.md)"
    if not found:
        yield [link, "", "not measured", "", "", "not run yet"]
    for own in found:
        for task in own.scale.tasks:
            gate, where = own.gate(task), f"{link} ({own.name}, {task})"
            if gate != "passes":
                said, verdict = {
                    "fails": (f"{trial.gate.says}: fails", "not testable on this task"),
                    "not measured": ("not measured yet", "not measured yet"),
                }[gate]
                yield [where, f"{len(trial.claims)} claims", said, "", "", verdict]
                continue
            for claim in trial.claims:
                if gap := own.gap(task, claim.side, claim.versus):
                    how = f", against `{claim.versus}`" if claim.versus else ""
                    effect = f"{gap} {trial.metric}{how}"
                    yield [where, f"`{claim.side}`: {claim.says}", gate, effect, "", own.verdict(task, claim)]


def _protocol(own: Found) -> str:
    scale = own.scale
    return (SEARCH * scale.is_searched + PROTOCOL).format(
        s="s" * (len(scale.tuned_on) > 1),
        tuned_on=", ".join(map(str, scale.tuned_on)),
        values=", ".join(f"{value:g}" for value in scale.values),
        step=scale.step,
        seeds=", ".join(map(str, scale.seeds)),
    )


def _task(own: Found, task: str) -> list[str]:
    """The table of one task, and what it says."""
    entries = ", ".join(f"{key} {value}" for key, value in own.scale.tasks[task].items())
    lines = [f"### {task}", "", f"{entries[0].upper()}{entries[1:]}. The gate: **{own.gate(task)}**."]
    rows = [_side(own, task, side.name) for side in own.trial.sides if reported(own.rows, task, side.name)]
    if not rows:
        return [*lines, "", "Not measured yet."]
    figures = [key for key in _figures(own, task) if key != "value"]
    head = [
        "side",
        *["tuned"] * own.scale.is_searched,
        own.trial.metric,
        f"minus {own.trial.baseline}",
        "seeds",
        *(key.replace("_", " ") for key in figures),
    ]
    lines += ["", *table(head, rows), ""]
    if own.gate(task) == "fails":
        return [*lines, "**Not testable on this task.**"]
    said = [
        f"- `{c.side}` ({c.says}): **{own.verdict(task, c)}**; {gap}"
        for c in own.trial.claims
        if (gap := own.gap(task, c.side, c.versus))
    ]
    return [*lines, *said]


def _figures(own: Found, task: str) -> list[str]:
    """What the rows hold beside what names them."""
    named = {"id", "task", "side", "tuned", "seed", "split", "seconds", "chosen"}
    return list(dict.fromkeys(key for row in own.rows if row["task"] == task for key in row if key not in named))


def _side(own: Found, task: str, side: str) -> list[str]:
    rows, gap = reported(own.rows, task, side), own.gap(task, side)
    tuned = [", ".join(sorted({f"{row['tuned']:g}" for row in rows}))] * own.scale.is_searched

    def average(key: str) -> str:
        values = [row[key] for row in rows if row.get(key) is not None]
        return f"{mean(values):.4g}" if values else ""

    held = "" if side == own.trial.baseline or gap is None else str(gap)
    few = f"{len(rows)}" + (" (too few)" if len(rows) < LEAST_SEEDS else "")
    more = [average(key) for key in _figures(own, task) if key != "value"]
    return [f"`{side}`", *tuned, average("value"), held, few, *more]
