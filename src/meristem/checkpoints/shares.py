"""Weight files written by several processes, on one machine or on many that share a file system.

The files of a checkpoint are divided into runs of about equal bytes, one for each process (rank). A rank
writes its files into a directory next to OUT that all ranks know. Each file has a hidden name until it is
complete. A rank that is killed and started again continues with the first missing file. When all files are
there, one process moves them into the checkpoint. The name of the directory contains a fingerprint of
everything that the files depend on, so that files of another growth are never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from meristem.anatomy.streamed import weights_of
from meristem.checkpoints.shards import Progress, Shards, write_shards
from meristem.checkpoints.source import states_of_files
from meristem.checkpoints.stock import Written
from meristem.errors import MeristemError, first_line
from meristem.makers import divide_threads
from meristem.orphans import PARENT, watching_parent

KILLS = 1000  # of the processes of one growth, after which it gives up
POLL_SECONDS = 0.05
STALLED_SECONDS = 1800.0  # without a new byte, after which rank 0 no longer waits for others
RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))  # torchrun, srun


@dataclass(frozen=True)
class Processes:
    """Who writes: `count` processes started here (`rank` None), or this one as number `rank` of `count`
    started elsewhere.

    Args:
        count: the number of processes.
        rank: the number of this process, or None.
        watch: a function that rank 0 calls while it waits for others. It raises an error if one of them has
            failed for good.
        of: what the written weights depend on besides the files of the source (methods and their options), as
            JSON. All ranks have to give the same.
    """

    count: int
    rank: int | None = None
    of: Any = None
    watch: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @staticmethod
    def parse(text: str) -> Processes:
        """Parse a number of processes, or "ranks" for the rank and their number that torchrun or srun put
        into the environment.

        Raises:
            MeristemError: for anything else, or if the environment names no rank.
        """
        if text == "ranks":
            for rank, count in RANKS:
                if rank in os.environ and count in os.environ:
                    return Processes(int(os.environ[count]), int(os.environ[rank]))
            raise MeristemError(
                "--processes ranks is for torchrun and srun, which set RANK and WORLD_SIZE; none is set here"
            )
        if not text.isdecimal() or int(text) < 1:
            raise MeristemError(f"--processes takes a number of at least 1, ranks or ray, got {text!r}")
        return Processes(int(text))


def share(shards: Shards, count: int) -> list[tuple[str, ...]]:
    """The files of each rank. They are consecutive, and the bytes are divided as equally as whole files
    allow.
    """
    files, total = list(shards.files), shards.bytes
    shares: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for file in files:
        middle = before + shards.sizes[file] / 2
        shares[min(count - 1, int(middle * count / max(1, total)))].append(file)
        before += shards.sizes[file]
    return [tuple(names) for names in shares]


def fingerprint(shards: Shards, of: Any, sources: Sequence[str | Path]) -> str:
    """A fingerprint of everything that the files depend on: their layout, what `of` says about the growth,
    and the names, sizes and times of the files of the source.
    """
    from meristem import __version__

    digest = hashlib.sha256(json.dumps([__version__, of], sort_keys=True, default=str).encode())
    for header in shards.headers.values():
        digest.update(header)
    for source in sources:
        for name, (size, changed) in states_of_files(Path(source)).items() if Path(source).is_dir() else ():
            digest.update(f"{name} {size} {changed}".encode())
    return digest.hexdigest()[:12]


def shares_directory(place: Path, of: str) -> Path:
    """The directory into which the ranks of a growth to `place` write."""
    return place.parent / f".{place.name}.shares-{of}"


def clear_shares(place: Path, keep: Path | None = None) -> None:
    """Remove what killed growths to `place` have left there."""
    ours = re.compile(re.escape(f".{place.name}.shares-") + r"[0-9a-f]{12}")
    for name in os.listdir(place.parent) if place.parent.is_dir() else ():
        if ours.fullmatch(name) and place.parent / name != keep:
            shutil.rmtree(place.parent / name, ignore_errors=True)


@contextlib.contextmanager
def shared_files(
    place: Path,
    shards: Shards,
    groups: Sequence[Written],
    model: Any,
    processes: Processes,
    sources: Sequence[str | Path],
) -> Iterator[Callable[[Path, Progress | None], None]]:
    """A context with a function that writes all files by `processes` and moves them into a directory. Files
    that a killed growth left are used.

    At the end of the context the directory of the ranks is removed. A kill leaves it, and so does an error of
    one of many ranks started elsewhere.
    """
    directory = shares_directory(place, fingerprint(shards, processes.of, sources))
    weights = weights_of(model)

    def write(target: Path, progress: Progress | None) -> None:
        clear_shares(place, keep=directory)
        directory.mkdir(exist_ok=True)
        if processes.rank is None:
            write_shares(directory, shards, groups, model, weights, processes.count, progress)
        else:
            write_share(directory, shards, share(shards, processes.count)[processes.rank], groups, model, weights)
            wait_for_all(directory, shards, progress, processes.watch)
        take_over(directory, target, shards)

    try:
        yield write
    except BaseException:
        if processes.rank is None:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)


def write_own_share(
    place: Path,
    shards: Shards,
    groups: Sequence[Written],
    model: Any,
    processes: Processes,
    sources: Sequence[str | Path],
) -> None:
    """Write the files of a rank other than the first. The first rank moves them into the checkpoint."""
    directory = shares_directory(place, fingerprint(shards, processes.of, sources))
    directory.mkdir(parents=True, exist_ok=True)
    files = share(shards, processes.count)[processes.rank or 0]
    write_share(directory, shards, files, groups, model, weights_of(model))


def write_share(
    directory: Path, shards: Shards, files: Sequence[str], groups: Sequence[Written], model: Any, weights: Any
) -> None:
    """Write those of `files` that `directory` does not hold yet, in their order, each complete or not at
    all.
    """
    wanted = {file for file in files if not (directory / file).exists()}
    if not wanted:
        return
    own = replace(
        shards,
        files={file: names for file, names in shards.files.items() if file in wanted},
        places={name: place for name, place in shards.places.items() if place[0] in wanted},
    )
    mine = [group for group in groups if any(name in own.places for name in group.layout)]
    pieces = ((n, piece) for group in mine for n, piece in group.pieces(model, weights) if n in own.places)
    write_shards(directory, own, pieces, hidden=f".{os.getpid()}.partial-")


def write_shares(
    directory: Path,
    shards: Shards,
    groups: Sequence[Written],
    model: Any,
    weights: Any,
    count: int,
    progress: Progress | None,
) -> None:
    """Write all files with `count` processes of this machine. A process that is killed is started again.

    Raises:
        MeristemError: if a process fails, or if processes are killed again and again.
    """
    fork = multiprocessing.get_context("fork")  # what is planned need not be sent
    shares = [files for files in share(shards, count) if files]
    running: dict[int, tuple[BaseProcess, Any]] = {}
    kills, seen = 0, _Seen(directory, shards, progress)

    def start(rank: int) -> None:
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(
            target=_work,
            args=(theirs, os.getpid(), len(shares), directory, shards, shares[rank], groups, model, weights),
        )
        process.start()
        theirs.close()
        running[rank] = (process, ours)

    try:
        for rank in range(len(shares)):
            start(rank)
        while running:
            time.sleep(POLL_SECONDS)
            seen.look()
            for rank, (process, pipe) in list(running.items()):
                if process.exitcode is None:
                    continue
                said = _said(pipe)
                del running[rank]
                if said is not None:
                    raise MeristemError(said)
                if process.exitcode != 0:  # killed
                    kills += 1
                    if kills > KILLS:
                        raise MeristemError(f"the processes that write were killed {kills} times; rank {rank} last")
                    start(rank)
        seen.look()
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def wait_for_all(directory: Path, shards: Shards, progress: Progress | None, watch: Callable[[], None]) -> None:
    """Wait until other ranks have written all files.

    Raises:
        MeristemError: if no file has grown for half an hour.
    """
    seen, last, since = _Seen(directory, shards, progress), -1, time.monotonic()
    while not seen.look():
        watch()
        size = _bytes(directory)
        if size != last:
            last, since = size, time.monotonic()
        if time.monotonic() - since > STALLED_SECONDS:
            missing = next(file for file in shards.files if not (directory / file).exists())
            raise MeristemError(f"{missing} has not been written by any rank, and no file has grown for half an hour")
        time.sleep(POLL_SECONDS)


def take_over(directory: Path, target: Path, shards: Shards) -> None:
    """Move the files, all of them complete, into `target`. They also stay in `directory` if the file system
    can share them.
    """
    for file in shards.files:
        try:
            os.link(directory / file, target / file)
        except OSError:
            os.rename(directory / file, target / file)


def _work(
    pipe: Any,
    parent: int,
    processes: int,
    directory: Path,
    shards: Shards,
    files: Sequence[str],
    groups: Any,
    model: Any,
    weights: Any,
) -> None:
    """The work of a process of its own, which ends with the one that started it."""
    os.environ[PARENT] = str(parent)
    divide_threads(processes)
    try:
        with watching_parent():
            write_share(directory, shards, files, groups, model, weights)
    except KeyboardInterrupt:
        os._exit(1)
    except BaseException as error:
        pipe.send(f"a process that writes failed: {first_line(error)}")
        os._exit(0)
    os._exit(0)


def _said(pipe: Any) -> str | None:
    with contextlib.suppress(EOFError, OSError):
        return pipe.recv() if pipe.poll() else None
    return None


def _bytes(directory: Path) -> int:
    """The bytes of its files. Other ranks rename files meanwhile, so a listed name may be gone."""
    total = 0
    for name in os.listdir(directory) if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            total += (directory / name).stat().st_size
    return total


class _Seen:
    """The files that are there. A progress bar is told about each once."""

    def __init__(self, directory: Path, shards: Shards, progress: Callable[[int], None] | None) -> None:
        self._directory, self._shards, self._progress = directory, shards, progress
        self._missing = list(shards.files)

    def look(self) -> bool:
        """Whether all files are there."""
        for file in [name for name in self._missing if (self._directory / name).exists()]:
            self._missing.remove(file)
            if self._progress is not None:
                self._progress(self._shards.sizes[file])
        return not self._missing
