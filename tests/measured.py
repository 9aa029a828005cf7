"""What each test takes, measured once and kept in `measured.json`: from it follow which cases are slow (`everyday.py`), and fair
ninths of them.

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
from everyday import slow_cases

FILE = Path(__file__).with_name("measured.json")
KEPT = 0.1  # seconds; what takes less is not written down, and counts as nothing
PARTS = 9


def measured() -> dict[str, float]:
    """{test: seconds of the processor}; what has not been measured is not there."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def part_of(name: str) -> int:
    """Which of the ninths a test belongs to, the same whatever other tests there are."""
    return zlib.crc32(name.encode()) % PARTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="keep in tests/measured.json what each test takes")
    parser.addoption("--part", type=int, help=f"of the slow tests, only those of this part (0 to {PARTS - 1})")
    parser.addoption("--only-slow", action="store_true", help="only tests of which the everyday suite runs no case")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in slow_cases(items, measured()):
        item.add_marker(pytest.mark.slow)
    part = config.getoption("--part")
    if part is not None:
        _keep(items, [item for item in items if _is_slow(item) and part_of(item.nodeid) == part % PARTS], config)
    if config.getoption("--only-slow"):
        everyday = {item.nodeid.split("[")[0] for item in items if not _is_slow(item)}
        _keep(items, [item for item in items if item.nodeid.split("[")[0] not in everyday], config)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _keep(items: list[pytest.Item], chosen: list[pytest.Item], config: pytest.Config) -> None:
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
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
