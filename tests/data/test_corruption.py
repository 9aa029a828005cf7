"""Masked tokens and spans taken out: what is asked can be put back."""

import numpy as np
import pytest
import torch

from meristem.data import CorruptedSpans, MaskedSequences, Sequences
from meristem.data.corruption import span_numbers
from meristem.data.encoding import IGNORED

TOKENS = np.arange(10, 10 + 64 * 50) % 200 + 5
SENTINELS = np.arange(300, 400)


def sequences(count=40, seed=0, offset=0):
    return Sequences(TOKENS, 64, count, seed, offset)


def test_masked_tokens():
    whole, masked = sequences(2000), MaskedSequences(sequences(2000), mask_token=1, vocab_size=205)
    kinds = {"mask": 0, "random": 0, "same": 0}
    for i in range(0, 2000, 5):
        text, asked = whole[i]["input_ids"], masked[i]
        chosen = asked["labels"] != IGNORED
        assert int(chosen.sum()) == round(0.15 * 64)
        assert torch.equal(asked["labels"][chosen], text[chosen])
        assert torch.equal(asked["input_ids"][~chosen], text[~chosen])
        seen = asked["input_ids"][chosen]
        kinds["mask"] += int((seen == 1).sum())
        kinds["same"] += int((seen == text[chosen]).sum())
        kinds["random"] += int(((seen != 1) & (seen != text[chosen])).sum())
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.02)


def restored(example):
    """The sequence, from inputs and target."""
    target, spans, sentinel = example["labels"][:-1].tolist(), {}, None
    for token in target:
        if token >= SENTINELS[0]:
            sentinel, spans[token] = token, []
        else:
            spans[sentinel].append(token)
    inputs = example["input_ids"][:-1].tolist()
    return [token for given in inputs for token in spans.get(given, [given])]


def test_spans_can_be_put_back():
    noise, spans = span_numbers(64, 0.15, 3.0)
    assert (noise, spans) == (10, 3)
    whole, corrupted = sequences(), CorruptedSpans(sequences(), SENTINELS, end_token=2)
    lengths = set()
    for i in range(40):
        example = corrupted[i]
        assert restored(example) == whole[i]["input_ids"].tolist()
        assert example["input_ids"][-1] == example["labels"][-1] == 2
        assert example["labels"][0] == SENTINELS[0]
        lengths.add((len(example["input_ids"]), len(example["labels"])))
    assert lengths == {(64 - noise + spans + 1, noise + spans + 1)}


@pytest.mark.parametrize("length, density", [(2, 0.15), (8, 0.9), (3, 0.5), (512, 0.15)])
def test_extreme_numbers(length, density):
    noise, spans = span_numbers(length, density, 3.0)
    assert 1 <= spans <= noise < length
    assert spans <= length - noise
    tokens = Sequences(TOKENS, length, 5)
    assert restored(CorruptedSpans(tokens, SENTINELS, 2, density)[0]) == tokens[0]["input_ids"].tolist()


@pytest.mark.parametrize("make", [
    lambda s: MaskedSequences(s, 1, 205),
    lambda s: CorruptedSpans(s, SENTINELS, 2),
])  # fmt: skip
def test_a_function_of_seed_and_position(make):
    one, again, other, later = make(sequences()), make(sequences()), make(sequences(seed=1)), make(sequences(20, 0, 20))
    same = [torch.equal(one[i]["input_ids"], again[i]["input_ids"]) for i in range(40)]
    assert all(same)
    assert not all(torch.equal(one[i]["input_ids"], other[i]["input_ids"]) for i in range(40))
    assert all(torch.equal(one[20 + i]["input_ids"], later[i]["input_ids"]) for i in range(20))
