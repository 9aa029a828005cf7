"""Output directories. They are filled next to their final place and then exchanged with what is there. Files
of others are never lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meristem.checkpoints.exchange import exchange, locked, sync, sync_entry
from meristem.checkpoints.written import begin_manifest, files_below, foreign, is_marked, remove, write_manifest
from meristem.errors import MeristemError


@contextlib.contextmanager
def atomic_directory(out: Path, overwrite: bool = False, sources: Sequence[str | Path] = ()) -> Iterator[Path]:
    """A context with a directory to fill. It appears as `out` only if the block ends without an error.

    A kill at any moment leaves `out` as it was, or new and complete. The next run removes hidden remains.
    Only one process at a time writes to one place. What `out` replaces is removed last.

    Args:
        out: the final place.
        overwrite: replace `out`, if Meristem or `save_pretrained` wrote everything in it.
        sources: what is read at the same time. `out` may neither be nor contain a source, or a file to which
            its files link.

    Yields:
        The directory to fill.

    Raises:
        MeristemError: if `out` may not be written (`check_place`), if another process is writing it, or if
            the disk refuses.
    """
    place = check_place(out, overwrite, sources)
    created = _missing_parents(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place):
            _clear_remains(place)
            check_place(out, overwrite, sources)
            partial = _new_beside(place)
            try:
                yield partial
                write_manifest(partial)
                sync(partial)
                check_place(out, overwrite, sources)  # another program may have written there meanwhile
                _put(partial, place)
                created = []
            finally:
                remove(partial)
    except OSError as error:
        raise MeristemError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        for parent in created:
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_place(out: Path, overwrite: bool = False, sources: Sequence[str | Path] = ()) -> Path:
    """The real path of `out`, with links resolved, if a directory may be written there. The arguments are
    those of `atomic_directory`.

    Raises:
        MeristemError: if `out` exists and may not be replaced. The message says what prevents it.
    """
    try:
        place = out.resolve()
        exists = place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise MeristemError(f"cannot write {out}: {getattr(error, 'strerror', None) or error}") from error
    here = Path.cwd()
    if not place.name or place == here or place in here.parents:
        raise MeristemError(f"OUT is {out}, which is or contains the working directory; name a new directory")
    for source in sources:
        read = Path(source).resolve()
        if Path(source).exists() and (read == place or place in read.parents):
            what = "is" if read == place else "contains"
            raise MeristemError(f"OUT, {out}, {what} the source {source}, which would be lost; choose another place")
        if inside := next(_lying_in(place, read), None):
            raise MeristemError(
                f"OUT, {out}, holds what {inside} of the source {source} links to, which would be lost; choose another place"
            )
    if not exists:
        above = next(parent for parent in place.parents if parent.exists())
        if not above.is_dir():
            raise MeristemError(f"OUT, {out}, would lie in {above}, which is a file; name a new directory")
        return place
    if not place.is_dir():
        raise MeristemError(f"OUT, {out}, is a file; name a new directory")
    if os.path.ismount(place):
        raise MeristemError(f"OUT, {out}, is a mount point, which cannot be replaced; name a directory in it")
    if not overwrite:
        raise MeristemError(f"{out} exists; choose another place or pass --overwrite")
    try:
        found = foreign(place)
    except OSError as error:
        raise MeristemError(f"cannot read {out}, so it is not replaced: {error.strerror or error}") from error
    if found is not None:
        raise MeristemError(
            f"{out} holds {found}; --overwrite replaces only what Meristem or save_pretrained wrote. Move it away or choose another place"
        )
    return place


def _lying_in(place: Path, source: Path) -> Iterator[str]:
    """The entries below a source's directory that are links to `place` or into it."""
    for name in files_below(source) if source.is_dir() else ():
        entry = source / name
        with contextlib.suppress(OSError, RuntimeError):  # a link in a circle leads nowhere
            if entry.is_symlink() and place in (read := entry.resolve(), *read.parents):
                yield name


def check_shard_size(size: str | int) -> None:
    """Raises MeristemError for one that is not like "5GB", or not above zero."""
    from huggingface_hub.serialization._base import parse_size_to_int

    try:
        parsed = size if isinstance(size, int) else parse_size_to_int(size)
    except (ValueError, OverflowError) as error:
        raise MeristemError(f"a shard's size is like 5GB or 500MB, got {size!r}") from error
    if parsed <= 0:
        raise MeristemError(f"a shard's size is like 5GB or 500MB, and above zero, got {size!r}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON by atomic rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def _new_beside(place: Path) -> Path:
    """An empty hidden directory next to `place` that no other writer has."""
    for name in (f".{place.name}.partial", f".{place.name}.partial-{secrets.token_hex(4)}"):
        with contextlib.suppress(FileExistsError):
            (place.parent / name).mkdir()
            begin_manifest(place.parent / name)
            return place.parent / name
    raise FileExistsError(errno.EEXIST, f"cannot make {name}")


def _old(place: Path) -> Path:
    return place.parent / f".{place.name}.meristem-old"


def _clear_remains(place: Path) -> None:
    """Clean up after killed writers: remove half-filled directories that are marked as Meristem's, and
    restore an old `place` that was moved aside if no new one replaced it.
    """
    remains = re.compile(re.escape(f".{place.name}.partial") + r"(-[0-9a-f]{8})?")
    for name in os.listdir(place.parent):
        left, own = place.parent / name, remains.fullmatch(name)
        if not own or not left.is_dir():
            continue
        if is_marked(left) or not os.listdir(left) or (own[1] and foreign(left) is None):
            remove(left)
    old = _old(place)
    if old.is_dir() and foreign(old) is None:
        if place.exists():
            remove(old)
        else:
            os.rename(old, place)


def _put(partial: Path, place: Path) -> None:
    """Move `partial` to `place`. What was there is removed afterwards."""
    if not place.exists():
        os.rename(partial, place)
    elif not exchange(partial, place):
        old = _old(place)
        try:
            os.rename(place, old)
            os.rename(partial, place)
        except BaseException:
            if old.exists() and not place.exists():
                os.rename(old, place)
            raise
        remove(old)
    sync_entry(place.parent)


def _missing_parents(place: Path) -> list[Path]:
    """The directories above `place` that do not exist, innermost first."""
    return [parent for parent in place.parents if not parent.exists()]
