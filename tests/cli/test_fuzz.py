"""A few of the attempts of `fuzzing.py`; `python tests/fuzzing.py 1000` makes that many."""

from __future__ import annotations

import pytest
from fuzzing import attempt


@pytest.mark.parametrize("batch", range(4))
def test_mutated_directories_and_command_lines(batch, tmp_path):
    outcomes = set()
    for number in range(12):
        room = tmp_path / str(number)
        room.mkdir()
        outcomes.add(attempt(f"suite {batch} {number}", room)[1])
    assert "an error that says what is wrong" in outcomes
