"""OUT as the user gives it: a local directory, or an address in an object store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from meristem.cli.output import Answer, note
from meristem.errors import MeristemError


def at_place(out: str, write: Callable[[Path], Answer], overwrite: bool = False, alone: bool = True) -> Answer:
    """Call `write` with a directory, and move the result to the place that the user gave.

    Args:
        out: the place.
        write: a function that writes into a directory.
        overwrite: whether `--overwrite` is given.
        alone: whether one process writes. Ranks need a shared directory.

    Raises:
        MeristemError: if the address is taken or cannot be written, or if an option needs a directory.
    """
    if "://" not in out:
        return write(Path(out))
    from meristem.checkpoints.object_store import check_free, upload
    from meristem.cli.progress import step

    if overwrite:
        raise MeristemError(f"--overwrite replaces directories; remove what is at {out}, or name another address")
    if not alone:
        raise MeristemError(
            f"--processes ranks or ray writes to a directory that all ranks share, not to {out}; upload it afterwards"
        )
    check_free(out)
    with tempfile.TemporaryDirectory(prefix="meristem-") as folder:
        place = Path(folder) / (out.rstrip("/").rsplit("/", 1)[-1] or "model")
        answer = write(place)
        if not place.is_dir():  # a dry run
            return answer
        with step(f"uploading to {out}"):
            upload(place, out)
    note(f"uploaded to {out}")
    return Answer({**answer.content, "out": out}, answer.exit_code)
