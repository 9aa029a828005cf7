"""What a finished node left behind, and where."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meristem.checkpoints.write import write_json

FORMAT = 1  # raise when the meaning of a node's result changes


@dataclass(frozen=True)
class NodeResult:
    """`flops`, `seconds` and `tokens` are the node's own; `curve` holds evaluations with the node's own cost so far."""

    name: str
    kind: str
    seed: int
    hash: str
    parents: list[str]  # directories of the parents, beside this one
    flops: int
    seconds: float
    tokens: int
    metrics: dict[str, float]
    parameters: int
    curve: list[dict[str, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        write_json(directory / "node.json", asdict(self))


def load_result(directory: Path) -> NodeResult | None:
    """The node's result, or None if it has not finished."""
    file = directory / "node.json"
    return NodeResult(**json.loads(file.read_text())) if file.exists() else None


def node_hash(kind: str, spec: dict[str, Any], seed: int, data: dict[str, Any], parents: list[str]) -> str:
    """The identity of a node: what it does, on which data, from which parents."""
    identity = {"format": FORMAT, "kind": kind, "spec": spec, "seed": seed, "data": data, "parents": parents}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
