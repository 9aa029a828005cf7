"""One node of one seed: its job, as a file in its directory, and its result when it has finished."""

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
    """Everything that is needed to run a node on any machine that has access to its directory.

    Args:
        directory: `OUT/NAME-sSEED-HASH`.
        name: the name of the node in the recipe.
        seed: the seed of the recipe.
        hash: the identity of the node: its options, its data and its parents.
        node: its section of the recipe.
        data: the data section of the recipe.
        fingerprint: a digest of the data, which must be the same on every machine.
        parents: the names of the parents' directories, which are next to its own.
        split: the split for evaluations: "eval", or "tune" while a number is chosen.
        revision: the revision of the code that planned the job. The code that runs it must have the same.
        keep: the optimizer steps at which a train node saves its model and optimizer for decays that branch
            off. They change nothing else.
        every: the optimizer steps between the checkpoints that an average takes, or 0.
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
    every: int = 0

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
        every: int = 0,
    ) -> Job:
        """The job of a node of a recipe. Its hash covers everything on which its result depends."""
        own: dict[str, Any] = {**data.model_dump(), "fingerprint": fingerprint} if node.reads_data else {}
        if node.checkpoint:
            own = {"files": _files(node.checkpoint.source)}
        identity = {"format": FORMAT, "kind": node.kind, "spec": node.identity(), "seed": seed, "split": split}
        identity |= {"every": every} if every else {}
        identity |= {"data": own, "parents": [p.hash for p in parents], "code": code_revision()}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        places = tuple(p.directory.name for p in parents)
        more = {"split": split, "revision": code_revision(), "keep": keep, "every": every}
        return Job(
            out / directory_name(name, seed, digest), name, seed, digest, node, data, fingerprint, places, **more
        )

    @property
    def streams(self) -> Streams:
        """The seeds of all random numbers in the node."""
        return Streams(self.seed, self.node.seed)

    @property
    def label(self) -> str:
        return f"{self.name} (seed {self.seed})"

    @property
    def parent_directories(self) -> list[Path]:
        return [self.directory.parent / parent for parent in self.parents]

    def save(self) -> None:
        """Write the job into its directory, which is created."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {"name": self.name, "seed": self.seed, "hash": self.hash, "parents": list(self.parents)}
        content |= {"split": self.split, "revision": self.revision, "keep": list(self.keep), "every": self.every}
        content |= {"node": self.node.model_dump(by_alias=True, exclude_none=True), "fingerprint": self.fingerprint}
        write_json(self.directory / JOB, {**content, "data": self.data.model_dump()})

    @staticmethod
    def load(directory: Path) -> Job:
        """Read the job that `save` wrote."""
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
    """The result of a node.

    `flops`, `seconds`, `examples` and `tokens` (of text, otherwise 0) are the node's own costs. `curve` holds
    the evaluations, each with the node's costs up to it. `taken` gives, by directory, the costs of a parent
    of which only a part of the training counts, because a decay branches off before its end. `made_by` holds
    the versions of the code.
    """

    name: str
    kind: str
    seed: int
    hash: str
    parents: list[str]  # directories of the parents, next to this one
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
        """The result of a job, from the fields that its work returned."""
        nothing = {"flops": 0, "examples": 0, "tokens": 0, "metrics": {}}
        own = {"name": job.name, "kind": job.node.kind, "seed": job.seed, "hash": job.hash}
        return NodeResult(**own, parents=list(job.parents), made_by=made_by(), **{**nothing, **outcome})

    def save(self, directory: Path) -> None:
        write_json(directory / RESULT, asdict(self))


def _files(source: str) -> list[list[Any]]:
    """The files of a model directory, by which a change is noticed without reading the weights. For a hub
    name, it is the revision.
    """
    if not Path(source).is_dir() and not source.startswith((".", "/", "~")):
        return [["revision", local_directory(source).name]]
    found = sorted(file for file in Path(source).glob("*") if file.is_file())
    states = [(file.name, file.stat()) for file in found]
    return [[name, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in states]


def load_result(directory: Path) -> NodeResult | None:
    """The result of the node, or None if it has not finished.

    Raises:
        MeristemError: if the file is damaged.
    """
    file = directory / RESULT
    if not file.exists():
        return None
    try:
        return NodeResult(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise MeristemError(f"{file} is damaged ({error}); remove {directory} to run the node again") from error


def has_finished(directory: Path) -> bool:
    """Whether the node has written its result. The result is written atomically."""
    return (directory / RESULT).exists()


def directory_name(name: str, seed: int, hash: str) -> str:
    """The name of a node's directory."""
    return f"{name}-s{seed}-{hash[:8]}"


def ancestors_of(job: Job) -> dict[str, NodeResult]:
    """The results of all nodes from which this one comes, by the names of their directories (see `past`).
    Before a decay has finished, the part of its parent that counts is not known.
    """

    def load(name: str) -> NodeResult:
        result = load_result(job.directory.parent / name)
        assert result is not None, f"{name} has not finished"
        return result

    return past(job.parents, {}, load)


def past(
    parents: Iterable[str], taken: Mapping[str, Mapping[str, float]], load: Callable[[str], NodeResult]
) -> dict[str, NodeResult]:
    """All nodes from which a node with these parents comes, each once, by the names of their directories. If
    only a part of a node's training counts for all that come from it, its costs and its curve are those of
    this part.

    Args:
        parents: the directories of the parents.
        taken: the parts of the node itself, as in `NodeResult`.
        load: a function that returns the result in a directory.
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
