"""One node of one seed: what it has to do, as a file in its directory, and what it left behind when it has finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from meristem.checkpoints.open import local_directory
from meristem.checkpoints.write import write_json
from meristem.errors import MeristemError
from meristem.recipes.code import code_revision, made_by
from meristem.recipes.specs.data_specs import DataSpec
from meristem.recipes.specs.nodes import NodeSpec
from meristem.recipes.tasks.task import Split
from meristem.streams import Streams

FORMAT = 3  # raise when the meaning of a node's result changes
JOB, RESULT = "job.json", "node.json"
CHECKPOINTS = "trainer"  # where a train node keeps the Trainer's own checkpoints


@dataclass(frozen=True)
class Job:
    """All that is needed to run a node, on any machine that sees its directory.

    Args:
        directory: `OUT/NAME-sSEED-HASH`.
        hash: its identity: what it does, on which data, from which parents.
        fingerprint: of the data, which have to be the same on every machine.
        parents: directories of the parents, beside its own.
        split: what the node is evaluated on: "eval", or "tune" while a number is chosen.
        revision: of the code that planned it, which has to be the same where it runs.
        keep: optimizer steps at which a train node leaves its model and optimizer, for decays that branch off there; they change nothing
            else.
    """

    directory: Path
    name: str
    seed: int
    hash: str
    node: NodeSpec
    data: DataSpec
    fingerprint: str
    parents: tuple[str, ...]
    split: Split = "eval"
    revision: str = ""
    keep: tuple[int, ...] = ()

    @staticmethod
    def of(
        out: Path,
        name: str,
        seed: int,
        node: NodeSpec,
        data: DataSpec,
        fingerprint: str,
        parents: list[Job],
        split: Split = "eval",
        keep: tuple[int, ...] = (),
    ) -> Job:
        """The job of a recipe's node. Its hash covers all that its result depends on."""
        own: dict[str, Any] = {**data.model_dump(), "fingerprint": fingerprint} if node.reads_data else {}
        if node.checkpoint:
            own = {"files": _files(node.checkpoint.source)}
        identity = {"format": FORMAT, "kind": node.kind, "spec": node.identity(), "seed": seed, "split": split}
        identity |= {"data": own, "parents": [p.hash for p in parents], "code": code_revision()}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        places = tuple(p.directory.name for p in parents)
        more = {"split": split, "revision": code_revision(), "keep": keep}
        return Job(
            out / directory_name(name, seed, digest), name, seed, digest, node, data, fingerprint, places, **more
        )

    @property
    def streams(self) -> Streams:
        """The seeds of all that is random in it."""
        return Streams(self.seed, self.node.seed)

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
        content |= {"split": self.split, "revision": self.revision, "keep": list(self.keep)}
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
            "keep": tuple(content.pop("keep")),
        }
        return Job(directory, **content, **own)


@dataclass(frozen=True)
class NodeResult:
    """`flops`, `seconds`, `examples` and `tokens` (of text; 0 otherwise) are the node's own; `curve` holds evaluations with the
    node's own cost so far. `taken`: of a parent on which only a part of its training counts, by its directory, how much (a decay branches
    off before its end). `made_by`: the code's versions."""

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
    taken: dict[str, dict[str, float]] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(job: Job, outcome: dict[str, Any]) -> NodeResult:
        """The result of a job, from what its kind of work returned."""
        nothing = {"flops": 0, "examples": 0, "tokens": 0, "metrics": {}}
        own = {"name": job.name, "kind": job.node.kind, "seed": job.seed, "hash": job.hash}
        return NodeResult(**own, parents=list(job.parents), made_by=made_by(), **{**nothing, **outcome})

    def save(self, directory: Path) -> None:
        write_json(directory / RESULT, asdict(self))


def _files(source: str) -> list[list[Any]]:
    """What a model directory holds, by which a change is noticed without reading the weights; for a hub name, the revision."""
    if not Path(source).is_dir() and not source.startswith((".", "/", "~")):
        return [["revision", local_directory(source).name]]
    found = sorted(file for file in Path(source).glob("*") if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]


def load_result(directory: Path) -> NodeResult | None:
    """The node's result, or None if it has not finished. Raises MeristemError for a file that something else has damaged."""
    file = directory / RESULT
    if not file.exists():
        return None
    try:
        return NodeResult(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise MeristemError(f"{file} is damaged ({error}); remove {directory} to run the node again") from error


def has_finished(directory: Path) -> bool:
    """Whether the node has left its result, which appears whole or not at all."""
    return (directory / RESULT).exists()


def directory_name(name: str, seed: int, hash: str) -> str:
    """Where a node is kept."""
    return f"{name}-s{seed}-{hash[:8]}"


def ancestors_of(job: Job) -> dict[str, NodeResult]:
    """The results of all nodes that this one comes from, by the names of their directories (see `past`); how much a decay takes of its
    parent is not known before it has finished."""

    def load(name: str) -> NodeResult:
        result = load_result(job.directory.parent / name)
        assert result is not None, f"{name} has not finished"
        return result

    return past(job.parents, {}, load)


def past(
    parents: Iterable[str], taken: Mapping[str, Mapping[str, float]], load: Callable[[str], NodeResult]
) -> dict[str, NodeResult]:
    """All nodes that one with these parents comes from, each once, by the names of their directories. Where only a part of a node's
    training counts, for all that come from it, its costs and its curve are those of this part.

    Args:
        taken: of the node itself, as in `NodeResult`.
        load: the result in a directory.
    """
    found: dict[str, NodeResult] = {}
    shares: dict[str, list[Mapping[str, float] | None]] = {}
    waiting = [(name, taken.get(name)) for name in parents]
    while waiting:
        name, share = waiting.pop()
        shares.setdefault(name, []).append(share)
        if name not in found:
            found[name] = load(name)
            waiting += [(parent, found[name].taken.get(parent)) for parent in found[name].parents]
    return {name: _up_to(result, shares[name]) for name, result in found.items()}


def _up_to(result: NodeResult, shares: list[Mapping[str, float] | None]) -> NodeResult:
    parts = [share for share in shares if share is not None]
    if len(parts) < len(shares):
        return result
    most = max(parts, key=lambda share: share["step"])
    costs = {
        "flops": int(most["flops"]), "seconds": most["seconds"], "examples": int(most["examples"]), "tokens": int(most["tokens"]),
    }  # fmt: skip
    return replace(result, **costs, curve=[point for point in result.curve if point["step"] <= most["step"]])
