"""Words of the "not" column of CONTRIBUTING.md's vocabulary, as far as a program can find them.

    python -m docs.tools.words     check README, docs, examples, cards, docstrings, comments and strings; `make lint` runs this

What a program writes on a page comes from results, which quote the messages of their day, and is not checked.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from docs.tools.prose import ROOT, by_hand, pages

INSTEAD = {
    r"anew": "again, from the start",
    r"beside": "next to, compared with, in addition to",
    r"for ever": "forever",
    r"behind": "after",
    r"asleep": "silent",
    r"neurons?": "unit",
    r"(let|lets|letting) go( of)?": "free, drop",
    r"(give|gives|gave|giving|put|puts) out": "return, output",
    r"(hand|hands|handed|handing) on": "pass, return",
    r"(take|takes|took|taken) in": "read, receive, input",
    r"(change|changes|changed|changing) places": "permute",
    r"held against": "compared with",
    r"what is on": "block",
    r"so manieth": "n-th",
}
REFUSED = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)

# Where these words are right: names in code, what is not copied, a score that is lower.
ALLOWED = re.compile(
    r"`[^`]*`|(left|leaves nothing) behind|(level on \w+, |and |is |\d )behind (on|plain)",
    re.IGNORECASE,
)
VOCABULARY = "CONTRIBUTING.md"  # its table lists the words


def words(text: str) -> list[tuple[int, str]]:
    """(line, word) of the words in `text` that the vocabulary refuses. They may go over the end of a line."""
    hidden = ALLOWED.sub(lambda found: re.sub(r"\S", "_", found.group()), text)
    flat = re.sub(r"\s", " ", hidden)
    return [(text.count("\n", 0, found.start()) + 1, found.group()) for found in REFUSED.finditer(flat)]


def said_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the comments and strings of a Python file. An f-string is joined, without its values."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [value for value in node.values if isinstance(value, ast.Constant)]
            inside.update(map(id, parts))
            yield node.lineno, " ... ".join(str(value.value) for value in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def faults_of_module(source: str) -> list[tuple[int, str]]:
    """(line, word) of a Python file."""
    return sorted((first + line - 1, word) for first, text in said_in(source) for line, word in words(text))


def check() -> list[str]:
    """One line for each word that is refused."""
    found = {page: words(by_hand(page.read_text())) for page in pages() if page.name != VOCABULARY}
    modules = [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    found |= {file: faults_of_module(file.read_text()) for file in sorted(modules)}
    return [
        f"{file.relative_to(ROOT)}:{line}: {word!r}; write {_instead(word)}"
        for file, faults in found.items()
        for line, word in faults
    ]


def _instead(word: str) -> str:
    return next(said for pattern, said in INSTEAD.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def main() -> int:
    """Print the words that are refused."""
    faults = check()
    print("\n".join(faults) or "words: the vocabulary is kept")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
