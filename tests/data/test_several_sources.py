"""Several sources in given shares, and documents that are read each by itself or are never cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from meristem.data import Sequences
from meristem.data.encoding import IGNORED
from meristem.data.order import WeightedOrder, shares_of
from meristem.data.packing import best_fit, packed_documents, pieces
from meristem.data.sequences import positions_in_documents
from meristem.data.windows import Consecutive, Weighted


@pytest.mark.parametrize("weights, shares", [
    ([0.7, 0.3], [700, 300]), ([1, 1, 1], [334, 333, 333]), ([3], [1000]), ([1, 1e6], [1, 999]), ([2, 1, 1], [500, 250, 250]),
])  # fmt: skip
def test_shares(weights, shares):
    assert shares_of(weights) == shares


@pytest.mark.parametrize("weights", [[0.7, 0.3], [5, 2, 1], [1, 200]])
def test_shares_hold_on_every_stretch_and_each_source_goes_through_its_examples_in_turn(weights):
    examples = [13, 40, 7][: len(weights)]
    order, shares = WeightedOrder(examples, weights, seed=3), np.array(shares_of(weights)) / 1000
    places = np.array([order.at(position) for position in range(3300)])
    starts = np.cumsum([0, *examples])
    sources = np.searchsorted(starts, places, side="right") - 1
    for source, count in enumerate(examples):
        seen = np.cumsum(sources == source)
        assert np.abs(seen - shares[source] * np.arange(1, 3301)).max() < 3
        own = places[sources == source] - starts[source]
        for turn in range(len(own) // count):  # all examples before any comes again
            assert sorted(own[turn * count : (turn + 1) * count]) == list(range(count))


def test_a_place_of_the_run_is_the_same_wherever_it_begins_and_whatever_was_asked_before():
    """So a resumed run, a later node, and the ranks of several processes read what one run reads."""

    def order(offset=0, seed=1):
        return WeightedOrder([100, 50], [0.8, 0.2], seed, offset)

    whole = [order().at(position) for position in range(2500)]
    assert [order(1234).at(position) for position in range(1200)] == whole[1234:2434]
    shared = order()
    ranks = [[shared.at(position) for position in range(rank, 2500, 4)] for rank in (2, 0, 3, 1)]
    assert {rank: whole[rank::4] for rank in (2, 0, 3, 1)} == dict(zip((2, 0, 3, 1), ranks, strict=True))
    assert whole != [order(seed=2).at(position) for position in range(2500)]
    assert [order().source_at(position) for position in range(50)] == [int(place >= 100) for place in whole[:50]]


def test_windows_of_several_sources():
    one, other = np.arange(100), np.arange(1000, 1050)
    both = Weighted([Consecutive(one, 10), Consecutive(other, 10)], [1, 3])
    assert len(both) == 15
    assert [int(both.tokens(number)[0]) for number in (0, 9, 10, 14)] == [0, 90, 1000, 1040]
    read = Sequences(both, 10, 400)
    from_other = sum(int(read[position]["input_ids"][0] >= 1000) for position in range(400))
    assert from_other == 300


def test_positions_begin_anew_behind_a_separator():
    tokens = torch.tensor([5, 6, 0, 7, 0, 0, 8, 9])
    assert positions_in_documents(tokens, 0).tolist() == [0, 1, 2, 0, 1, 0, 0, 1]


def documents(*lengths):
    """Documents of so many tokens each, the separator (0) included; the first token of each tells its number."""
    parts = [
        np.array([10 * (number + 1) + place for place in range(length - 1)] + [0])
        for number, length in enumerate(lengths)
    ]
    return np.concatenate(parts)


def test_sequences_within_documents():
    tokens = documents(4, 3, 5)
    first = Sequences(tokens, 6, 2, separator=0)
    found = sorted(
        (item["input_ids"].tolist(), item["labels"].tolist(), item["position_ids"].tolist())
        for item in (first[0], first[1])
    )
    assert found[1] == ([10, 11, 12, 0, 20, 21], [IGNORED, 11, 12, 0, IGNORED, 21], [0, 1, 2, 3, 0, 1])
    assert found[0] == ([0, 30, 31, 32, 33, 0], [IGNORED, IGNORED, 31, 32, 33, 0], [0, 0, 1, 2, 3, 4])


def test_no_document_is_cut_that_fits(tmp_path, monkeypatch):
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path))
    lengths = [3, 20, 6, 5, 8, 2, 8, 1]
    packed = packed_documents(documents(*lengths), 8, 0, "some")
    found = [packed.tokens(number).tolist() for number in range(len(packed))]
    assert sorted(token for sequence in found for token in sequence) == sorted(documents(*lengths).tolist())
    assert all(len(sequence) <= 8 for sequence in found)
    whole = [documents(*lengths)[s:e].tolist() for s, e in zip(*pieces(documents(*lengths), 8, 0), strict=True)]
    assert sorted(map(len, whole)) == sorted([3, 8, 8, 4, 6, 5, 8, 2, 8, 1])  # 20 = 8 + 8 + 4
    for piece in whole:
        assert any(str(piece)[1:-1] in str(sequence)[1:-1] for sequence in found)
    assert len(found) == 7  # 53 tokens: as few as there can be
    read = Sequences(packed, 8, len(packed), separator=0, pad_token=9)
    for item in (read[position] for position in range(len(packed))):
        padding = item["input_ids"] == 9
        assert (item["labels"][padding] == IGNORED).all()
        assert (item["labels"][item["position_ids"] == 0] == IGNORED).all()
    assert not list((tmp_path / "packing").glob(".*"))


def test_packing_is_kept_and_named_by_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MERISTEM_CACHE", str(tmp_path))
    packed_documents(documents(3, 4), 8, 0, "one")
    monkeypatch.setattr("meristem.data.packing.best_fit", None)
    assert packed_documents(documents(3, 4), 8, 0, "one").tokens(0).tolist() == [10, 11, 0, 20, 21, 22, 0]
    with pytest.raises(TypeError):
        packed_documents(documents(3, 4), 8, 0, "another")


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_is_what_the_slow_way_finds(seed):
    """The reference: look at all sequences, choose the fullest that still has room."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 33, 300)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    fast_starts, _, firsts = best_fit(starts, ends, 32)
    fullness: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [number for number, taken in enumerate(fullness) if taken + length <= 32]
        if fitting:
            fullness[max(fitting, key=lambda number: fullness[number])] += length
        else:
            fullness.append(length)
    size = dict(zip(starts.tolist(), lengths.tolist(), strict=True))
    found = [sum(size[start] for start in fast_starts[a:b].tolist()) for a, b in itertools.pairwise(firsts.tolist())]
    assert sorted(found) == sorted(fullness)
    assert sorted(fast_starts.tolist()) == starts.tolist()
