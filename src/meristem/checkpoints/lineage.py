"""What a model card inherits from the cards of the models that it was made from: licence, language, tags,
citation, and their own base. It does not inherit results of evaluations, because these were measured on
another network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 1 << 20  # bytes of a card that is read
KEPT = (
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "tags",
)  # no names of data, which may be private
CITATION = re.compile(r"^```[\w-]*[ \t]*\n(\s*@\w+\s*\{.*?)^```", re.S | re.M)


@dataclass(frozen=True)
class Lineage:
    """What the cards of all sources say.

    Attributes:
        metadata: entries of the front matter. Entries in which the sources differ are lists.
        citations: BibTeX entries, each once.
        ancestors: hub names that the sources' own cards name as their base.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    citations: Sequence[str] = ()
    ancestors: Sequence[str] = ()


def lineage(sources: Iterable[Path]) -> Lineage:
    """What the README.md of each of these directories says. A card that is missing or cannot be read adds
    nothing.
    """
    found: dict[str, list[Any]] = {}
    citations: dict[str, None] = {}
    for source in dict.fromkeys(sources):
        metadata, text = _card(source / "README.md")
        for key in (*KEPT, "base_model"):
            for value in _texts(metadata.get(key)):
                if value not in found.setdefault(key, []):
                    found[key].append(value)
        citations.update(dict.fromkeys(entry.strip() for entry in CITATION.findall(text)))
    ancestors = found.pop("base_model", [])
    return Lineage({key: v[0] if len(v) == 1 else v for key, v in found.items() if v}, list(citations), ancestors)


def _card(file: Path) -> tuple[dict[str, Any], str]:
    """(front matter, text) of a card."""
    import yaml

    try:
        with open(file, "rb") as stream:
            text = stream.read(LONGEST).decode("utf-8", "replace").replace("\r\n", "\n")
        parts = text.split("\n---", 1) if text.startswith("---\n") else []
        metadata = yaml.safe_load(parts[0][4:]) if len(parts) == 2 else {}
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return {}, ""
    return metadata if isinstance(metadata, dict) else {}, text


def _texts(value: Any) -> list[str]:
    """One line of text, or a list of lines. Empty for anything else."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip() and "\n" not in text]
