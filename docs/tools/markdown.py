"""What the other scripts need to know about Markdown: which lines are code, and where a relative link points."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

FENCE = re.compile(r"^\s*(```+|~~~+)")
LINK = re.compile(r"(?<!`)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number from 1, line, whether it is code) of every line; a fence is code, and so is a block indented by four."""
    fence = ""
    before_blank, indented = True, False
    for number, line in enumerate(text.splitlines(), 1):
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark.group(1)
            yield number, line, True
        elif fence:
            if mark and line.strip() == fence:
                fence = ""
            yield number, line, True
        else:
            indented = line.startswith("    ") and (before_blank or indented)
            yield number, line, indented
        before_blank = not line.strip()


def relink(text: str, new: Callable[[str, str], str]) -> str:
    """`text` with every relative link outside of code replaced by `new(target, anchor)`."""

    def renewed(match: re.Match[str]) -> str:
        return f"]({new(match.group(1), match.group(2) or '')})"

    return "\n".join(line if code else LINK.sub(renewed, line) for _, line, code in lines(text)) + "\n"
