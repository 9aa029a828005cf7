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
import shutil
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from meristem.checkpoints.exchange import exchange, locked, sync, sync_entry
from meristem.errors import MeristemError

MANIFEST = ".meristem-files"  # in every directory written here: the files that may be replaced with it
SAVE_PRETRAINED = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "README.md", "meristem.json",
    "modeling_grouped.py", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "chat_template.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "*processor_config.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth",
    "trainer_state.json", "training_args.bin", ".metadata", "*.distcp",
)  # fmt: skip


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
                _write_manifest(partial)
                sync(partial)
                check_place(out, overwrite, sources)  # somebody may have worked there meanwhile
                _put(partial, place)
                created = []
            finally:
                shutil.rmtree(partial, ignore_errors=True)
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
        return place
    if not place.is_dir():
        raise MeristemError(f"OUT, {out}, is a file; name a new directory")
    if os.path.ismount(place):
        raise MeristemError(f"OUT, {out}, is a mount point, which cannot be replaced; name a directory in it")
    if not overwrite:
        raise MeristemError(f"{out} exists; choose another place or pass --overwrite")
    try:
        foreign = next(_foreign(place), None)
    except OSError as error:
        raise MeristemError(f"cannot read {out}, so it is not replaced: {error.strerror or error}") from error
    if foreign is not None:
        raise MeristemError(
            f"{out} holds {foreign}, which neither Meristem nor save_pretrained wrote; --overwrite replaces only what they "
            "wrote. Move it away or choose another place"
        )
    return place


def _lying_in(place: Path, source: Path) -> Iterator[str]:
    """The entries of a source's directory that are links into `place`."""
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        with contextlib.suppress(OSError, RuntimeError):  # a link in a circle leads nowhere
            if entry.is_symlink() and place in entry.resolve().parents:
                yield entry.name


def write_json(path: Path, content: Any) -> None:
    """Write JSON by atomic rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def _foreign(directory: Path) -> Iterator[str]:
    """The relative paths of the files in it that neither Meristem nor `save_pretrained` wrote."""
    names = sorted(os.listdir(directory))
    manifest = _manifest(directory / MANIFEST)
    known = {MANIFEST, *manifest} if manifest else set()
    patterns = SAVE_PRETRAINED if manifest or {"config.json", ".metadata"} & set(names) else ()
    for path in _files(directory, names):
        if path not in known and not any(fnmatch(path, p) and path.count("/") == p.count("/") for p in patterns):
            yield path


def _files(directory: Path, names: Iterable[str]) -> Iterator[str]:
    """The paths below it of everything that is not a directory. Links to directories are not followed."""
    for name in names:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            yield from (f"{name}/{below}" for below in _files(path, sorted(os.listdir(path))))
        else:
            yield name


def _manifest(file: Path) -> list[str]:
    try:
        names = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _write_manifest(directory: Path) -> None:
    names = list(_files(directory, sorted(os.listdir(directory))))
    (directory / MANIFEST).write_text(json.dumps(names, indent=0) + "\n")


def _new_beside(place: Path) -> Path:
    """An empty hidden directory next to `place` that no other writer has."""
    for name in (f".{place.name}.partial", f".{place.name}.partial-{secrets.token_hex(4)}"):
        with contextlib.suppress(FileExistsError):
            (place.parent / name).mkdir()
            return place.parent / name
    raise FileExistsError(errno.EEXIST, f"cannot make {name}")


def _old(place: Path) -> Path:
    return place.parent / f".{place.name}.old"


def _clear_remains(place: Path) -> None:
    """Clean up after killed writers: remove half-filled directories, and restore an old `place` that was
    moved aside if no new one replaced it.
    """
    remains = re.compile(re.escape(f".{place.name}.partial") + r"(-[0-9a-f]{8})?")
    for name in os.listdir(place.parent):
        if remains.fullmatch(name):
            shutil.rmtree(place.parent / name, ignore_errors=True)
    old = _old(place)
    if old.is_dir() and next(_foreign(old), None) is None:
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
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
        shutil.rmtree(old, ignore_errors=True)
    sync_entry(place.parent)


def _missing_parents(place: Path) -> list[Path]:
    """The directories above `place` that do not exist, innermost first."""
    return [parent for parent in place.parents if not parent.exists()]
