"""Which cases of a test the everyday suite runs: as many as fit into a second of the processor, new values first.

A test with many cases says mostly the same of each. The everyday suite needs one case of every test, and as many values of its
parameters as there is time for; all of its cases run in the ninths of the slow tests. `@pytest.mark.everyday(seconds=4)` gives a
test more time, where each of its cases is a behaviour of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import pytest

SLOW = 5.0  # seconds of the processor, from which on no case belongs to the everyday suite
ALLOWED = 1.0  # seconds for all everyday cases of one test, unless its mark says more


def slow_cases(items: Iterable[pytest.Item], taken: Mapping[str, float]) -> list[pytest.Item]:
    """The cases that the everyday suite leaves out.

    Args:
        taken: {test: seconds of the processor}; what is not there takes next to nothing and is never left out.
    """
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.nodeid in taken:
            tests[item.nodeid.split("[")[0]].append(item)
    return [item for cases in tests.values() for item in _too_many(cases, taken)]


def _too_many(cases: list[pytest.Item], taken: Mapping[str, float]) -> list[pytest.Item]:
    """Of one test's cases those that are slow, or for which there is no time left."""
    slow = [case for case in cases if taken[case.nodeid] >= SLOW]
    left = [case for case in cases if taken[case.nodeid] < SLOW]
    mark, spent, seen = cases[0].get_closest_marker("everyday"), 0.0, set()
    allowed = mark.kwargs["seconds"] if mark else ALLOWED
    values = {case.nodeid: _values(case) for case in left}
    while left:
        case = min(left, key=lambda c: (-len(values[c.nodeid] - seen), taken[c.nodeid], c.nodeid))
        left.remove(case)
        if seen and spent + taken[case.nodeid] > allowed:
            slow.append(case)
        else:
            spent, seen = spent + taken[case.nodeid], seen | values[case.nodeid]
    return slow


def _values(case: pytest.Item) -> set[tuple[str, object]]:
    """The values of the parameters of a case, those of a tuple one by one."""
    found = getattr(case, "callspec", None)
    return {
        (name, repr(one) if isinstance(one, str | int | float | None) else id(one))
        for name, value in (found.params.items() if found else [("", "")])
        for one in (value if isinstance(value, tuple) else (value,))
    }
