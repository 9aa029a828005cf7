"""One node of one seed: what it has to do, as a file in its directory, and what it left behind when it has finished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from meristem.checkpoints.write import write_json
from meristem.recipes.data_specs import DataSpec
from meristem.recipes.specs import NodeSpec

FORMAT = 2  # raise when the meaning of a node's result changes
JOB, RESULT = "job.json", "node.json"


@dataclass(frozen=True)
class Job:
    """All that is needed to run a node, on any machine that sees its directory.

    Args:
        directory: `OUT/NAME-sSEED-HASH`.
        hash: its identity: what it does, on which data, from which parents.
        fingerprint: of the data, which have to be the same on every machine.
        parents: directories of the parents, beside its own.
    """

    directory: Path
    name: str
    seed: int
    hash: str
    node: NodeSpec
    data: DataSpec
    fingerprint: str
    parents: tuple[str, ...]

    @staticmethod
    def of(
        out: Path, name: str, seed: int, node: NodeSpec, data: DataSpec, fingerprint: str, parents: list[Job]
    ) -> Job:
        """The job of a recipe's node."""
        own: dict[str, Any] = {**data.model_dump(), "fingerprint": fingerprint} if node.train else {}
        if node.checkpoint:
            own = {"files": _files(node.checkpoint.source)}
        identity = {"format": FORMAT, "kind": node.kind, "spec": node.spec.model_dump(by_alias=True), "seed": seed}
        identity |= {"data": own, "parents": [p.hash for p in parents]}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        directory = out / directory_name(name, seed, digest)
        return Job(directory, name, seed, digest, node, data, fingerprint, tuple(p.directory.name for p in parents))

    @property
    def label(self) -> str:
        return f"{self.name} (seed {self.seed})"

    @property
    def parent_directories(self) -> list[Path]:
        return [self.directory.parent / parent for parent in self.parents]

    def save(self) -> None:
        """Write it into its directory, which is made."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {"name": self.name, "seed": self.seed, "hash": self.hash, "parents": list(self.parents)}
        content |= {"node": self.node.model_dump(by_alias=True, exclude_none=True), "fingerprint": self.fingerprint}
        write_json(self.directory / JOB, {**content, "data": self.data.model_dump()})

    @staticmethod
    def load(directory: Path) -> Job:
        """What `save` wrote."""
        content = json.loads((directory / JOB).read_text())
        own = {
            "node": NodeSpec.model_validate(content.pop("node")),
            "data": TypeAdapter(DataSpec).validate_python(content.pop("data")),
            "parents": tuple(content.pop("parents")),
        }
        return Job(directory, **content, **own)


@dataclass(frozen=True)
class NodeResult:
    """`flops`, `seconds`, `examples` and `tokens` (of text; 0 otherwise) are the node's own; `curve` holds evaluations with the
    node's own cost so far."""

    name: str
    kind: str
    seed: int
    hash: str
    parents: list[str]  # directories of the parents, beside this one
    flops: int
    seconds: float
    examples: int
    tokens: int
    metrics: dict[str, float]
    parameters: int
    curve: list[dict[str, float]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(job: Job, outcome: dict[str, Any]) -> NodeResult:
        """The result of a job, from what its kind of work returned."""
        nothing = {"flops": 0, "examples": 0, "tokens": 0, "metrics": {}}
        own = {"name": job.name, "kind": job.node.kind, "seed": job.seed, "hash": job.hash}
        return NodeResult(**own, parents=list(job.parents), **{**nothing, **outcome})

    def save(self, directory: Path) -> None:
        write_json(directory / RESULT, asdict(self))


def _files(source: str) -> list[list[Any]]:
    """What a model directory holds, by which a change is noticed without reading the weights; nothing for a hub name."""
    found = sorted(file for file in Path(source).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]


def load_result(directory: Path) -> NodeResult | None:
    """The node's result, or None if it has not finished."""
    file = directory / RESULT
    return NodeResult(**json.loads(file.read_text())) if file.exists() else None


def has_finished(directory: Path) -> bool:
    """Whether the node has left its result, which appears whole or not at all."""
    return (directory / RESULT).exists()


def directory_name(name: str, seed: int, hash: str) -> str:
    """Where a node is kept."""
    return f"{name}-s{seed}-{hash[:8]}"


def ancestors_of(job: Job) -> dict[str, NodeResult]:
    """The results of all nodes that this one comes from, each once, by the names of their directories."""
    found: dict[str, NodeResult] = {}
    waiting = list(job.parents)
    while waiting:
        name = waiting.pop()
        if name not in found:
            result = load_result(job.directory.parent / name)
            assert result is not None, f"{name} has not finished"
            found[name] = result
            waiting += result.parents
    return found
