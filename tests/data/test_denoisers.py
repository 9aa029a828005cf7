"""UL2's denoisers: nothing is lost, each kind says what it is, all are as likely."""

from __future__ import annotations

from collections import Counter

import numpy as np

from meristem.data import Denoisers, Sequences
from meristem.data.denoisers import KINDS, MIXTURE, sentinels_wanted
from meristem.data.encoding import IGNORED

LENGTH, END = 128, 2
SENTINELS = np.arange(1000, 1000 + sentinels_wanted(LENGTH))
TEXT = np.arange(3, 3 + 40 * LENGTH) % 900 + 3


def filled_in(inputs, target):
    """The whole text again: every sentinel of the input replaced by what stands behind it in the target."""
    pieces, current = {}, None
    for token in target[:-1]:
        if token >= 1000:
            current = pieces.setdefault(token, [])
        else:
            current.append(token)
    return [found for token in inputs[1:-1] for found in (pieces[token] if token >= 1000 else [token])]


def test_every_example_can_be_made_whole_again():
    sequences = Sequences(TEXT, LENGTH, 400, seed=1)
    examples, kinds = Denoisers(sequences, SENTINELS, END), Counter()
    for position in range(len(examples)):
        one = examples[position]
        assert (len(one["input_ids"]), len(one["labels"])) == examples.lengths
        inputs = one["input_ids"][one["attention_mask"].bool()].tolist()
        target = one["labels"][one["labels"] != IGNORED].tolist()
        assert inputs[-1] == target[-1] == END
        assert filled_in(inputs, target) == sequences[position]["input_ids"].tolist()
        kind = KINDS[inputs[0] - SENTINELS[-3]]
        taken = len(target) - 1 - sum(token >= 1000 for token in target)
        kinds[kind, round(taken / LENGTH, 2), sum(token >= 1000 for token in target)] += 1
        if kind == "S":
            assert target[1:-1] == sequences[position]["input_ids"][-32:].tolist()
    expected = {(d.kind, round(d.numbers(LENGTH)[0] / LENGTH, 2), d.numbers(LENGTH)[1]) for d in MIXTURE}
    assert set(kinds) == expected
    assert all(25 < count < 100 for count in kinds.values())  # 57 expected, deviation 7


def test_an_example_is_a_function_of_seed_and_position():
    one, later = (Denoisers(Sequences(TEXT, LENGTH, 20, 1, offset), SENTINELS, END) for offset in (0, 5))
    assert all(one[7][name].equal(later[2][name]) for name in one[7])
