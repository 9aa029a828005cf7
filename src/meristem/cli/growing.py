"""The work of `meristem grow` and `meristem shrink`, after their arguments are parsed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meristem.cli.examples import Looked, wants_data, with_batches
from meristem.cli.options import like_target, named_methods
from meristem.cli.output import Answer, calm_libraries, note
from meristem.cli.progress import step
from meristem.cli.writing import print_axes, print_files, say_left, write
from meristem.errors import MeristemError, PreservationError

if TYPE_CHECKING:
    from meristem.checkpoints.shares import Processes
    from meristem.checkpoints.source import Source
    from meristem.checkpoints.source_hash import SourceHash


@dataclass(frozen=True)
class Request:
    """The arguments of a growth from the command line.

    Attributes:
        target: the model that `--like` names, and whether the other fields of its config are taken.
        processes: the processes that write: a number of processes, "ranks" or "ray", or the rank of this
            process if it is known.
        sample: the number of blocks of each list that the proof runs.
        push: the repository of the hub and its branch, if the result is uploaded.
        looked: the data of a method that chooses by data.
    """

    source: str
    out: Path
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    trust: bool = False
    prove: bool = True
    max_shard_size: str = "5GB"
    dry_run: bool = False
    drop: Sequence[str] = ()
    inputs: str | None = None
    target: tuple[str | None, bool] = (None, False)
    processes: str | Processes | None = None
    sample: int | None = None
    push: tuple[str | None, str | None] = (None, None)
    looked: Looked = field(default_factory=Looked)


@dataclass(frozen=True)
class _Planned:
    """A growth and the files that were read for it. The process that writes the record sets `hashed`."""

    growth: Any
    found: Source
    small: Any
    reader: Any
    saved: Any
    aimed: Any
    again: Callable[[], Any]
    more: dict[str, Any]
    given: dict[str, Any] | None = None
    same: Callable[[], None] = lambda: None  # raises if the source has changed meanwhile
    hashed: SourceHash | None = None


def grow_checkpoint(asked: Request) -> Answer:
    """Plan a growth, prove it and write it.

    Raises:
        MeristemError: if one of these is not possible.
    """
    from meristem.checkpoints.directory import check_place, check_shard_size
    from meristem.cli.pushing import check_push
    from meristem.cli.ray_ranks import on_ray, wants_ray

    if wants_ray(asked.processes):
        if not asked.dry_run:
            return on_ray(str(asked.processes), grow_checkpoint, asked)
        asked = replace(asked, processes=None)
    who = _processes(asked.processes) if isinstance(asked.processes, str) else asked.processes
    if not asked.dry_run:
        check_place(asked.out, asked.overwrite, [asked.source, *filter(None, asked.target[:1])])
        check_push(asked.push)
    check_shard_size(asked.max_shard_size)
    calm_libraries()
    with contextlib.ExitStack() as beside:
        return _grow(asked, who, beside)


def _grow(asked: Request, who: Processes | None, beside: contextlib.ExitStack) -> Answer:
    """Do the work of `grow_checkpoint`. The contexts in `beside` end with it.

    Raises:
        MeristemError: if the request is not possible.
    """
    from meristem.cli.pushing import push

    prove = asked.prove and not asked.dry_run
    with step("planning and proving" if prove else "planning"):
        planned = _plan(asked, prove, who, beside)
    growth = planned.growth
    if planned.aimed is not None:
        print_axes(growth, planned.aimed, planned.given)
    if asked.dry_run:
        return Answer({"out": None, **print_files(growth.model, asked.max_shard_size)})
    if who is not None:
        if planned.reader is not None:
            raise MeristemError(
                "--processes is for checkpoints in safetensors; a distributed one is written by one process"
            )
        who = replace(who, of=[growth.methods, list(asked.drop)])
    growth = _write(asked, planned, who)
    if who is not None and who.rank:
        return Answer({"out": asked.out, "rank": who.rank})
    return Answer({**_told(asked, planned, growth), "pushed": push(asked.out, asked.push)})


def _processes(asked: str) -> Processes:
    from meristem.checkpoints.shares import Processes

    return Processes.parse(asked)


def _plan(asked: Request, prove: bool, who: Processes | None, beside: contextlib.ExitStack) -> _Planned:
    from meristem.checkpoints.source import find_source, unchanged
    from meristem.checkpoints.source_hash import hashing

    found = find_source(asked.source, asked.trust)
    same, writes = unchanged(found), not asked.dry_run and (who is None or not who.rank)
    hashed = beside.enter_context(hashing(found)) if writes else None  # while libraries load

    from meristem.checkpoints import open_streamed
    from meristem.checkpoints.distributed import is_distributed, open_distributed
    from meristem.checkpoints.sharded_optimizer import read_sharded_optimizer
    from meristem.checkpoints.trainer_state import is_trainer_checkpoint, read_trainer_state
    from meristem.checkpoints.unplaced import check_drop
    from meristem.cli.inputs import inputs_for
    from meristem.growth import Growth

    drop, options = asked.drop, dict(asked.options)
    chosen = None if asked.target[0] else named_methods(asked.method, options)
    if chosen and wants_data(chosen):
        return _plan_on_data(asked, found, chosen, same, hashed)
    sharded, resumable = is_distributed(found.path), is_trainer_checkpoint(found.path, drop)
    small, reader = (
        open_distributed(found, asked.trust, drop) if sharded else (open_streamed(found, asked.trust, drop), None)
    )
    check_drop(drop, [(found, small)])
    shards = None if sharded else read_sharded_optimizer(found.path, small, drop)
    given = inputs_for(asked.inputs, found, small)
    saved = read_trainer_state(found.path, small) if resumable else shards
    aimed = like_target(small, asked.method, options, asked.target) if asked.target[0] else None
    chosen, later = aimed.methods if aimed else chosen, who is None and not sharded
    growth = Growth.of(small, chosen, verify=prove, sample=asked.sample, inputs=given, later=later)
    again = functools.partial(Growth.of, small, chosen, sample=asked.sample, inputs=given)
    return _Planned(growth, found, small, reader, saved, aimed, again, {}, given, same, hashed)


def _plan_on_data(
    asked: Request, found: Source, methods: Sequence[Any], same: Callable[[], None], hashed: SourceHash | None
) -> _Planned:
    """The plan for methods that observe the whole network on data. The network is in memory, and no optimizer
    state is grown.
    """
    from meristem.checkpoints import open_model
    from meristem.checkpoints.unplaced import check_drop
    from meristem.growth import Growth

    looked = replace(asked.looked, inputs=Path(asked.inputs) if asked.inputs else None)
    looked.check()
    small = open_model(found, asked.trust, asked.drop)
    check_drop(asked.drop, [(found, small)])
    batches = looked.batches(found.path, small)
    again = functools.partial(Growth.of, small, with_batches(methods, batches), verify=False)
    more = {"looked_at": looked.record(batches)}
    return _Planned(again(), found, small, None, None, None, again, more, None, same, hashed)


def _write(asked: Request, planned: _Planned, who: Processes | None) -> Any:
    """Write the growth. If the first proof fails, plan it a second time."""
    from meristem.checkpoints.distributed import write_distributed
    from meristem.checkpoints.record import growth_record

    growth, found, hashed = planned.growth, planned.found, planned.hashed
    if hashed is not None and (planned.reader is not None or who is not None):
        hashed.written(1.0)  # others write too, or the progress is unknown
    if planned.reader is not None:
        with step(f"writing {asked.out}"):
            read = hashed.result if hashed is not None else lambda: None
            record = lambda: growth_record(growth, found, asked.drop, read())  # noqa: E731
            left = write_distributed(growth, planned.reader, asked.out, record, asked.overwrite, asked.trust)
        say_left(left, asked.out, [found])
        return growth
    try:
        return _write_growth(asked, growth, planned, who)
    except PreservationError:
        if growth.pending is None:
            raise
        with step("planning and proving again"):  # the result of a trial may help, or its error is clearer
            growth = planned.again()
        return _write_growth(asked, growth, planned, who)


def _write_growth(
    asked: Request,
    growth: Any,
    planned: _Planned,
    processes: Processes | None,
) -> Any:
    """Write the growth, and prove it at the same time if the proof is still open."""
    from meristem.checkpoints.record import growth_record
    from meristem.checkpoints.sharded_optimizer import grow_sharded_optimizer
    from meristem.checkpoints.trainer_state import TrainerState, grow_trainer_state

    source, saved, hashed = planned.found, planned.saved, planned.hashed
    grow_saved = grow_trainer_state if isinstance(saved, TrainerState) else grow_sharded_optimizer
    written = [growth]

    def prove() -> None:
        written[0] = growth.prove()

    def record() -> dict[str, Any]:
        read = hashed.result() if hashed is not None else None
        planned.same()
        return {**growth_record(written[0], source, asked.drop, read), **planned.more}

    write(
        growth.model, asked.out, record, [source], asked.overwrite, asked.max_shard_size, asked.trust,
        functools.partial(grow_saved, saved, growth) if saved is not None else None, processes,
        prove if growth.pending is not None else None, hashed.written if hashed is not None else None,
    )  # fmt: skip
    return written[0]


def _told(asked: Request, planned: _Planned, growth: Any) -> dict[str, Any]:
    """The result as data. It is also printed."""
    from meristem.growth.optimizers.optimizer import partly_new

    saved, out = planned.saved, asked.out
    before, after = (sum(p.numel() for p in model.parameters()) for model in (planned.small, growth.model))
    resume = (
        ", optimizer state grown: resume it with Trainer.train(resume_from_checkpoint=...)" if saved is not None else ""
    )
    if saved is not None and saved.family.counts and partly_new(growth.plans):
        resume += " and callbacks=[ms.MissedStepsCallback()], since some tensors are partly new"
    names = ", ".join(recorded["method"] for recorded in growth.methods)
    note(f"{out}: {before:,} -> {after:,} parameters, {names}{resume}")
    for axis, places in growth.new_layers.items():
        note(f"new {axis.replace('_', ' ')}, counted from 0: {', '.join(map(str, places))}")
    if growth.certificate is not None:
        note(f"certificate: {growth.certificate.summary()}")
    return {
        "out": out,
        "parameters": {"before": before, "after": after},
        "methods": growth.methods,
        "new_layers": growth.new_layers,
        "optimizer_state": saved is not None,
        "certificate": growth.certificate.as_dict() if growth.certificate is not None else None,
    }
