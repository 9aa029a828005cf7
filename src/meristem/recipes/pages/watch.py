"""Keeps the page of a run up to date while the run continues."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meristem.errors import MeristemError
from meristem.recipes import status
from meristem.recipes.node import Job
from meristem.recipes.pages.report import FILE, write_report

EVERY_SECONDS = 2.0


class Watch:
    """Within this context, `out/report.html` is written every two seconds, from the files in the nodes'
    directories. At the end of the context it shows the final state.

    Args:
        jobs, failed: as in `report.Run`. `failed` may grow.
        live: whether the page is also written before the end.
    """

    def __init__(self, jobs: Sequence[Job], failed: Mapping[str, str], out: Path, live: bool) -> None:
        self.jobs, self.failed, self.out, self.live = jobs, failed, out, live
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Watch:
        if self.live:
            self.out.mkdir(parents=True, exist_ok=True)
            self._before = {job.directory.name: status.read(job.directory) for job in self.jobs}
            self._write()
            print(f"watch {(self.out / FILE).absolute().as_uri()}", file=sys.stderr, flush=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self.live:
            self._thread.join()
        self._try(lambda: write_report(self.jobs, self.failed, self.out, self.out.name))

    def _keep(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._try(self._write)

    def _try(self, write: Callable[[], object]) -> None:
        """Write the page. An error (a full disk, a read-only folder) must not end the run or hide the error
        that did.
        """
        try:
            write()
        except (OSError, ValueError, MeristemError) as error:
            print(f"{self.out / FILE} is not written: {error}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        write_report(self.jobs, dict(self.failed), self.out, self.out.name, self._before)
