"""Whether models use the same token ids for the same text, as far as the files next to their weights show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meristem.checkpoints.source import Source
from meristem.errors import MeristemError


def check_same_tokens(sources: Sequence[Source], made: str) -> None:
    """Raises MeristemError if an id belongs to one token in the first model and to another in a later one.

    Args:
        sources: the models. One whose vocabulary cannot be read is not checked.
        made: what is made from them, for the message: "fused".
    """
    known = [(source, found) for source in sources if (found := tokens_of(source.path))]
    for source, found in known[1:]:
        first, ours = known[0]
        other = sorted(number for number in ours.keys() & found.keys() if ours[number] != found[number])
        if other:
            raise MeristemError(
                f"{first} and {source} give the same ids to different tokens: {other[0]} is {ours[other[0]]!r} and {found[other[0]]!r}, and "
                f"{len(other):,} of {len(ours):,} differ; {made}, one would use the other's tokenizer. Pass --allow-differences "
                "(allow_differences=True) if they mean the same"
            )


def tokens_of(directory: Path) -> dict[int, str]:
    """{id: token} from tokenizer.json, vocab.json or vocab.txt. Empty if none can be read."""
    try:
        if (directory / "tokenizer.json").is_file():
            rules = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
            added = {entry["id"]: entry["content"] for entry in rules.get("added_tokens") or ()}
            return {**_by_id(rules["model"]["vocab"]), **added}
        if (directory / "vocab.json").is_file():
            return _by_id(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
        if (directory / "vocab.txt").is_file():
            return dict(enumerate((directory / "vocab.txt").read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _by_id(vocabulary: Any) -> dict[int, str]:
    """{id: token} from {token: id}, or from a list of (token, score)."""
    if isinstance(vocabulary, dict):
        return {int(number): token for token, number in vocabulary.items()}
    return {number: entry[0] for number, entry in enumerate(vocabulary)}
