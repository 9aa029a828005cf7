"""What the operating system offers for replacing a directory: a lock, an exchange in one step, and writes
that reach the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from meristem.errors import MeristemError

WITHOUT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """A context in which no other process writes to `place`. The lock ends with its process, and its file is
    removed when it is released.

    On a file system without locks nothing is locked. Only the names of unfinished directories then keep
    writers apart.

    Raises:
        MeristemError: if another process holds the lock.
    """
    path = place.parent / f".{place.name}.lock"
    handle = _lock(path)
    while handle is None:
        handle = _lock(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a file that cannot be removed locks nothing
            if not path.stat().st_size:  # one with content belongs to another program
                path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int | None:
    """The open lock file, or None if its last holder removed it after it was opened here."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        current = False
    except BlockingIOError as error:
        os.close(handle)
        raise MeristemError(
            f"{path.parent / path.name[1:-5]} is being written by another process; wait for it or choose another place"
        ) from error
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return handle
        os.close(handle)
        raise
    if current:
        return handle
    os.close(handle)
    return None


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step. Returns whether the system and its file system can do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(here, names[0], here, names[1], swap)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, 2)  # RENAME_SWAP of macOS
    else:
        return False
    if failed and ctypes.get_errno() not in WITHOUT_EXCHANGE:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return not failed


def sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_entry(path)
    sync_entry(directory)


def sync_entry(directory: Path) -> None:
    """Write the names in a directory to the disk. Some file systems cannot do that and do not need it."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
