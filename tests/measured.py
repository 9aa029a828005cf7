"""What each test takes, measured once and kept in `measured.json`: from it follow which tests are slow, and fair thirds of the rest.

    pytest --measure tests/growth        # run these, and keep what they took

What is kept are seconds of the processor, of the test and of the processes that it started and waited for: they say the same on a
busy machine as on a quiet one.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("measured.json")
SLOW = 5.0  # seconds of the processor, from which on a test does not belong to the everyday suite
KEPT = 0.5  # seconds; what takes less is not written down
PARTS = 3


def measured() -> dict[str, float]:
    """{test: seconds of the processor}; what has not been measured is not there."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def part_of(name: str) -> int:
    """Which of the thirds a test belongs to, the same whatever other tests there are."""
    return zlib.crc32(name.encode()) % PARTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="keep in tests/measured.json what each test takes")
    parser.addoption("--third", type=int, help=f"of the slow tests, only those of this part (0 to {PARTS - 1})")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    taken, third = measured(), config.getoption("--third")
    for item in items:
        if taken.get(item.nodeid, 0.0) >= SLOW:
            item.add_marker(pytest.mark.slow)
    if third is not None:
        slow = [item for item in items if item.get_closest_marker("slow")]
        chosen = [item for item in slow if part_of(item.nodeid) == third % PARTS]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor_seconds", sum(os.times()[:4]) - before))


class Keeper:
    """Collects what tests took, in the process that gathers the reports, and writes it down at the end."""

    def __init__(self) -> None:
        self._taken: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._taken[report.nodeid] = round(dict(report.user_properties).get("processor_seconds", 0.0), 2)

    def pytest_sessionfinish(self) -> None:
        kept = {name: taken for name, taken in {**measured(), **self._taken}.items() if taken >= KEPT}
        FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--measure") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Keeper())
