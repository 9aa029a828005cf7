"""Prose: lines of at most 110 columns.

    python -m docs.tools.prose                 check README, docs, examples, cards and docstrings; `make lint` runs this
    python -m docs.tools.prose --reflow FILE   fill the paragraphs of a Markdown FILE to 110 columns

Tables, headings, code, lines that a single link or word makes long, and what a program writes below its mark are left alone.
Pages that a program writes, in whole or in part, are not reflowed, and other files than Markdown are refused, since their lines
of code would be joined.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

from docs.tools.markdown import lines

ROOT = Path(__file__).parents[2]
COLUMNS = 110
GLUE = "\u00a0"
WRITTEN = re.compile(r"^<!-- written by\b", re.IGNORECASE | re.MULTILINE)  # a program writes the page, or what follows

TABLE, HEADING, RULE = re.compile(r"^\s*\|"), re.compile(r"^#{1,6} "), re.compile(r"^(---+|<!--.*|:::.*|!!!.*)$")
ITEM = re.compile(r"^(\s*)([-*+]|\d+\.) +")
MARKER = re.compile(r" (?=([-+*>]|#{1,6}|\d+[.)]) )")  # what would begin an item if it began a line
LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)|`[^`]+`")


def pages() -> list[Path]:
    """Every page that people write: pages that a program writes say so in their first line, and are left out."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found += (ROOT / "src").rglob("*.md")
    return sorted(page for page in found if not page.read_text().startswith("<!-- Written by"))


def by_hand(text: str) -> str:
    """What people write of a page: all of it, or what comes before the mark of the program that writes the rest."""
    written = WRITTEN.search(text)
    return text[: written.start()] if written else text


def too_long(text: str) -> list[int]:
    """The numbers of the lines of prose over 110 columns that can be broken."""
    return [
        number
        for number, line, code in lines(text)
        if len(line) > COLUMNS and not (code or TABLE.match(line) or HEADING.match(line) or RULE.match(line))
        if len(_filled(line, "", "")) > 1
    ]


def too_long_docstrings(source: str) -> list[int]:
    """The numbers of the lines of a Python file that are in a docstring, over 110 columns, and can be broken."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    text = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            place = node.body[0]
            numbers = range(place.lineno, (place.end_lineno or place.lineno) + 1)
            found += [n for n in numbers if len(text[n - 1]) > COLUMNS and not TABLE.match(text[n - 1])]
    return sorted(n for n in found if len(_filled(text[n - 1], _indent(text[n - 1]), "")) > 1)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _filled(paragraph: str, first: str, following: str) -> list[str]:
    """The paragraph in lines of at most 110 columns; the text of a link and of code is never broken."""
    hidden = LINK.sub(lambda found: found.group().replace(" ", GLUE), re.sub(r"\s+", " ", paragraph.strip()))
    hidden = MARKER.sub(GLUE, hidden)
    wrapped = textwrap.wrap(
        hidden,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(GLUE, " ") for line in wrapped]


def reflow(text: str) -> str:
    """`text` with its paragraphs and list items filled to 110 columns; everything else as it was."""
    out: list[str] = []
    paragraph: list[str] = []
    first = following = ""

    def flush() -> None:
        nonlocal first, following
        if paragraph:
            out.extend(_filled(" ".join(paragraph), first, following))
        paragraph.clear()
        first = following = ""

    for _, line, code in lines(text):
        item = ITEM.match(line)
        verbatim = TABLE.match(line) or HEADING.match(line) or RULE.match(line) or line.startswith(("<", ">"))
        if not line.strip() or verbatim or (code and not paragraph):
            flush()
            out.append(line)
        elif item:
            flush()
            first, following = item.group(), " " * len(item.group())
            paragraph.append(line[len(item.group()) :])
        else:
            if not paragraph:
                first = following = re.match(r"\s*", line).group()  # type: ignore[union-attr]
            paragraph.append(line)
            if line.endswith(("  ", "\\")):  # a break that the author wants
                flush()
    flush()
    return "\n".join(out) + "\n"


def check() -> list[str]:
    """One line for each page or module that has a line which is too long."""
    faults = []
    for page in pages():
        if long := too_long(by_hand(page.read_text())):
            shown = ", ".join(map(str, long[:10]))
            faults.append(f"{page.relative_to(ROOT)}: lines {shown} are over {COLUMNS} columns")
    package = ROOT / "src" / "meristem"
    for file in sorted(package.rglob("*.py")):
        long = too_long_docstrings(file.read_text())
        if long:
            shown = ", ".join(map(str, long[:10]))
            faults.append(f"{file.relative_to(ROOT)}: docstrings are over {COLUMNS} columns in lines {shown}")
    return faults


def reflow_files(names: list[str]) -> int:
    """Reflow these Markdown files in place. Returns 2, with nothing written, if one of them is not Markdown."""
    others = [name for name in names if Path(name).suffix != ".md"]
    if others:
        print(f"--reflow fills Markdown only (.md), got {', '.join(others)}; nothing is written", file=sys.stderr)
        return 2
    for name in names:
        text = Path(name).read_text()
        if WRITTEN.search(text):
            print(f"{name}: a program writes this page; it is left as it is", file=sys.stderr)
        else:
            Path(name).write_text(reflow(text))
    return 0


def main(arguments: list[str]) -> int:
    """Check, or reflow the files that are named."""
    if arguments[:1] == ["--reflow"]:
        return reflow_files(arguments[1:])
    faults = check()
    print("\n".join(faults) or "prose: every line fits")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
