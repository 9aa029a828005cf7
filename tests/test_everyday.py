"""Which cases the everyday suite leaves out, on cases whose costs are given."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from everyday import ALLOWED, SLOW, slow_cases
from measured import PARTS, part_of


def case(test: str, seconds: float | None = None, **params):
    """One case of a test, with what its mark allows."""
    name = "-".join(map(str, params.values()))
    mark = SimpleNamespace(kwargs={"seconds": seconds}) if seconds else None
    return SimpleNamespace(
        nodeid=f"{test}[{name}]" if params else test,
        get_closest_marker=lambda kind: mark if kind == "everyday" else None,
        **({"callspec": SimpleNamespace(params=params)} if params else {}),
    )


def left_out(cases, taken):
    return [item.nodeid for item in slow_cases(cases, taken)]


def test_slow_tests_are_left_out_whole():
    assert left_out([case("a"), case("b"), case("c")], {"a": SLOW, "b": SLOW - 0.01}) == ["a"]


def test_a_test_keeps_its_cheapest_case_and_what_there_is_time_for():
    cases = [case("t", size=size) for size in range(4)]
    taken = {"t[0]": 4.0, "t[1]": 0.5, "t[2]": 0.4, "t[3]": 6.0}
    assert sorted(left_out(cases, taken)) == ["t[0]", "t[3]"]
    assert sorted(left_out(cases, {"t[0]": 4.0, "t[1]": 3.0, "t[2]": 3.0, "t[3]": 3.0})) == ["t[0]", "t[2]", "t[3]"]
    assert left_out(cases[:1], taken) == []  # alone it is the cheapest


def test_cases_with_values_that_are_new_come_first():
    cases = [case("t", row=row, family=family) for row, family in itertools.product("abc", "xyz")]
    taken = {item.nodeid: ALLOWED / 3 for item in cases}
    kept = {item.nodeid for item in cases} - set(left_out(cases, taken))
    assert kept == {"t[a-x]", "t[b-y]", "t[c-z]"}


def test_pairs_are_two_values_and_what_costs_nothing_counts_for_nothing():
    """Pairs that are refused, and so cost nothing, do not stand for those that run."""
    cases = [case("t", pair=pair) for pair in itertools.combinations("abcd", 2)]
    names = [item.nodeid for item in cases]
    taken = dict.fromkeys(names[1:], ALLOWED / 2)  # ab is refused
    kept = set(names) - set(left_out(cases, taken))
    assert len(kept) == 3
    assert names[0] in kept
    assert {letter for name in kept - {names[0]} for letter in name if letter in "abcd"} == set("abcd")


def test_a_mark_gives_more_time():
    cases = [case("t", seconds=1.5 * ALLOWED, size=size) for size in range(4)]
    assert len(left_out(cases, {item.nodeid: ALLOWED / 2 for item in cases})) == 1


def test_what_is_not_measured_runs_every_day():
    cases = [case("t", size=size) for size in range(3)]
    assert left_out(cases, {"t[0]": 0.9}) == []
    assert left_out(cases, {"t[0]": 0.9, "t[1]": 0.9}) == ["t[1]"]


def test_ninths_share_out_all_tests():
    parts = [part_of(f"test_{number}") for number in range(9000)]
    assert set(parts) == set(range(PARTS))
    assert all(900 < parts.count(part) < 1100 for part in range(PARTS))
