"""Checkpoints in object stores and on other file systems of fsspec: `s3://bucket/model`, `gs://...`,
`hf://owner/name`.

A source is fetched into the cache (`$MERISTEM_CACHE`, or `meristem` in the user's cache), file by file. A
file is fetched again only if it has changed. A result is written and proved on the local disk and then
uploaded. `config.json` comes last, so that nobody opens an incomplete model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from meristem.data.token_cache import cache_folder
from meristem.errors import MeristemError, first_line

CONFIG = "config.json"


def is_address(place: str | Path) -> bool:
    """Whether this is an address in an object store: `protocol://...`."""
    return "://" in str(place)


def fetch(address: str, unwanted: tuple[str, ...], judge: Callable[[Path], object]) -> Path:
    """A local directory with the files of a model directory at `address`.

    Args:
        address: the address.
        unwanted: patterns of files that are not fetched.
        judge: a function that is called with the directory when it holds only `config.json`. An error that it
            raises ends the fetch.

    Raises:
        MeristemError: if the protocol is not known, if there is no model, if the name of a file leads out of
            the directory, or if the store refuses.
    """
    system, root = _open(address)
    folder = cache_folder().with_name("checkpoints") / hashlib.sha256(address.encode()).hexdigest()[:16]
    with _locked(folder), _told(address, "cannot be read"):
        found = _versions(system, root, address, unwanted)
        if CONFIG not in found:
            raise MeristemError(f"{address} is not a model directory: it holds no {CONFIG}")
        known = _states(folder)
        for stale in set(known) - set(found):
            (folder / stale).unlink(missing_ok=True)
        for name in sorted(found, key=lambda name: (name != CONFIG, name)):
            if known.get(name) != found[name] or not (folder / name).is_file():
                known.pop(name, None)
                _write_states(folder, known)
                _fetch_file(system, _join(root, name), folder / name, found[name][0])
                known[name] = found[name]
                _write_states(folder, known)
            if name == CONFIG:
                judge(folder)
        now = _versions(system, root, address, unwanted)
        changed = sorted(name for name in found if found[name] != now.get(name))
        if changed:
            raise MeristemError(
                f"{address}: {changed[0]} changed while it was read; try again when no process writes there"
            )
        _write_states(folder, found)
    return folder


def check_free(address: str) -> None:
    """Check whether a result may be uploaded to this address, as far as that is known in advance.

    Raises:
        MeristemError: if something is there already, which an object store cannot replace in one step, or if
            the store refuses.
    """
    system, root = _open(address)
    with _told(address, "cannot be read"):
        there = [name for name, _ in _listed(system, root, address)]
    if there:
        raise MeristemError(
            f"{address} holds {len(there)} files already, such as {there[0]}; an object store cannot exchange them for others in one step: "
            "remove them, or name another address"
        )


def upload(directory: Path, address: str) -> None:
    """Upload all files of a directory to an address, `config.json` last.

    Raises:
        MeristemError: if the store refuses. What was uploaded is then removed as far as possible.
    """
    system, root = _open(address)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    with _told(address, "cannot be written"):
        done: list[str] = []
        try:
            for path in sorted(files, key=lambda path: path == directory / CONFIG):
                place = _join(root, path.relative_to(directory).as_posix())
                system.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
                done.append(place)
                system.put_file(str(path), place)
        except BaseException:
            for place in done:
                try:
                    system.rm_file(place)
                except Exception:  # the first error is the one to tell
                    continue
            raise


def _open(address: str) -> tuple[Any, str]:
    """The file system, and the path in it."""
    import fsspec
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0].lower()
    try:
        return url_to_fs(address)
    except ValueError as error:
        raise MeristemError(
            f"{address}: the protocol {protocol!r} is not known; fsspec knows {', '.join(sorted(fsspec.available_protocols()))}"
        ) from error
    except ImportError as error:
        raise MeristemError(f"{address} needs another package: {first_line(error)}") from error
    except Exception as error:
        raise MeristemError(f"{address} cannot be opened: {first_line(error)}") from error


def _listed(system: Any, root: str, address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path relative to the root, what the store says about it) of all files below it."""
    base = root.rstrip("/") + "/"
    try:
        found = system.find(root, detail=True)
    except FileNotFoundError:
        return
    for path, info in sorted(found.items()):
        name = path.removeprefix(base)
        if not path.startswith(base) or any(part in ("", ".", "..") for part in name.split("/")):
            raise MeristemError(f"{address} holds {path!r}, whose path leads out of its directory")
        yield name, info


def _versions(system: Any, root: str, address: str, unwanted: tuple[str, ...]) -> dict[str, list[Any]]:
    """{file: [size, what identifies its version]}, from one listing of the store."""
    system.invalidate_cache()
    return {
        name: [info.get("size"), hashlib.sha256(str(sorted(info.items())).encode()).hexdigest()]
        for name, info in _listed(system, root, address)
        if not any(fnmatch(name, pattern) for pattern in unwanted)
    }


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"


def _fetch_file(system: Any, place: str, target: Path, size: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    system.get_file(place, str(unfinished))
    if size is not None and unfinished.stat().st_size != size:
        raise MeristemError(f"{place} has {size:,} bytes, of which {unfinished.stat().st_size:,} arrived")
    os.replace(unfinished, target)


def _states(folder: Path) -> dict[str, list[Any]]:
    """{file: [size, what identifies its version]} of what was fetched before."""
    try:
        return json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_states(folder: Path, states: dict[str, list[Any]]) -> None:
    unfinished = folder.with_suffix(".part")
    unfinished.write_text(json.dumps(states), encoding="utf-8")
    os.replace(unfinished, folder.with_suffix(".json"))


def _locked(folder: Path) -> Any:
    """Only one process fetches at a time. Others wait for it."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_suffix(".lock"))


@contextlib.contextmanager
def _told(address: str, what: str) -> Iterator[None]:
    """Turn any error of the store into one sentence."""
    try:
        yield
    except MeristemError:
        raise
    except Exception as error:
        raise MeristemError(f"{address} {what}: {first_line(error)}") from error
