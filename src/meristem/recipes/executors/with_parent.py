"""Ends processes that somebody else started when the process that asked for it is gone, however it went.

    python -m meristem.recipes.executors.with_parent PID...

Ray's agents look for the end of their cluster by a call to its dead server, which they wait for up to a minute.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import psutil

from meristem.orphans import environment_of_child, watching_parent


@contextlib.contextmanager
def children_end_with_this_process() -> Iterator[None]:
    """For all that this process has started by now, directly or not: within this context they end when it is killed."""
    below = [str(process.pid) for process in psutil.Process().children(recursive=True)]
    command = [sys.executable, "-m", "meristem.recipes.executors.with_parent", *below]
    watcher = subprocess.Popen(command, env=environment_of_child(), stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def main() -> None:
    known = []
    for number in sys.argv[1:]:
        with contextlib.suppress(psutil.Error):
            known.append(psutil.Process(int(number)))  # knows when it was made: another of the same number is another

    def end() -> None:
        for process in known:
            with contextlib.suppress(psutil.Error):
                process.kill()

    with watching_parent(when_gone=end):
        psutil.wait_procs(known)


if __name__ == "__main__":
    main()
