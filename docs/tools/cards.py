"""A method's card, as it lies beside its code, becomes a page: run-in heads become headings, and its evidence is added."""

from __future__ import annotations

import re
from pathlib import Path

HEADS = {"What": "What it does", "When": "When to use it", "When not": "When not to use it", "Good to know": "Notes"}
RUN_IN = re.compile(r"^\*\*([A-Z][^*.:]{1,40})\.\*\* ?(.*)$")
STUDIES = "../studies.md"


def cards(source: Path) -> dict[str, Path]:
    """Every card below `source` by its name, which is the name of its file."""
    return {page.stem: page for page in sorted(source.rglob("*.md")) if page.stem != "README"}


def headed(card: str) -> str:
    """The card with a heading for every run-in head, for its options and for its example."""
    out: list[str] = []
    fenced, heading, has_example = False, "", False
    for line in card.splitlines():
        head = None if fenced else RUN_IN.match(line)
        if head:
            heading = HEADS.get(head.group(1), head.group(1))
            out += [f"## {heading}", "", head.group(2)]
            continue
        if not fenced and line.startswith("| option |") and heading != "Options":
            out += ["## Options", ""]
            heading = "Options"
        if not fenced and line.startswith("```python") and not has_example:
            has_example = True
            out += ["## Example", ""]
        if line.startswith("```"):
            fenced = not fenced
        out.append(line)
    return "\n".join(out) + "\n"


def study_rows(studies: str, name: str) -> list[str]:
    """The rows of the page of studies whose claim is about the method `name`."""
    return [row for row in studies.splitlines() if re.search(rf"\| `{re.escape(name)}(@\d+)?`", row)]


def evidence(studies: str, name: str, link: str = STUDIES) -> str:
    """A section with what the studies say of a method; where no study has it, the section says so."""
    rows = [re.sub(r"\]\(studies/", f"]({link.removesuffix('.md')}/", row) for row in study_rows(studies, name)]
    if not rows:
        return f"\n## Evidence\n\nNo [study]({link}) has measured this method yet; the [benchmarks](../benchmarks.md) may.\n"
    head = "| study | claim | gate | effect | saved | verdict |\n|---|---|---|---|---|---|\n"
    return (
        f"\n## Evidence\n\nFrom the [studies]({link}), which say how to read a row.\n\n{head}" + "\n".join(rows) + "\n"
    )


def page(card: str, studies: str, name: str) -> str:
    """The page of a card: its evidence stands before its source, where it names one."""
    text, own = headed(card), evidence(studies, name)
    place = text.find("\n## Source\n")
    return text + own if place < 0 else text[:place] + own + text[place:]


def first_sentence(card: str) -> str:
    """What the card says first of what the method does."""
    found = re.search(r"\*\*What\.\*\* (.*?[.;])(\s|$)", re.sub(r"\s+", " ", card))
    return found.group(1).rstrip(";.") + "." if found else ""
