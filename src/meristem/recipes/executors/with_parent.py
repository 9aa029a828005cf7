"""Ends processes that another process started, when the process that requested it ends in any way.

    python -m meristem.recipes.executors.with_parent PID...

Ray's agents detect the end of their cluster by a call to its dead server, for which they wait up to a minute.
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
    """Within this context, all processes that this one has started so far, directly or indirectly, end when
    it is killed.
    """
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
            known.append(
                psutil.Process(int(number))
            )  # it knows its start time, so a later process of the same number differs

    def end() -> None:
        for process in known:
            with contextlib.suppress(psutil.Error):
                process.kill()

    with watching_parent(when_gone=end):
        psutil.wait_procs(known)


if __name__ == "__main__":
    main()
