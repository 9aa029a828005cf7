"""Noise by its place: the same numbers in any order and in pieces."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from meristem.growth.tensors import draws


def test_the_numbers_of_philox_are_those_of_its_authors():
    """Known-answer test of Random123 (kat_vectors, philox4x64 10 rounds, all zero), which numpy's generator counts from 1."""
    first = np.random.Philox(counter=[2**64 - 1] * 4, key=[0, 0]).random_raw(4)
    assert [hex(int(n)) for n in first] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


@pytest.mark.parametrize("shape", [(7, 100_000), (300_000,), (5000, 40, 3), (3, 2)])
def test_rows_are_drawn_alike_alone_and_together(shape):
    whole = draws.normal("model.embed.weight", 3, "noise", shape)
    assert whole.shape == shape
    last = shape[0]
    for a, b in ((last - 1, last), (0, 1), (last // 3, last // 2 + 1)):
        assert torch.equal(draws.normal("model.embed.weight", 3, "noise", shape, (a, b)), whole[a:b])


def test_the_numbers_are_quantiles_that_sixteen_bits_of_philox_choose():
    """Recomputed by hand from the generator's raw numbers and the standard library's normal distribution."""
    from statistics import NormalDist

    drawn = draws.normal("w", 5, "noise", (4, 6)).flatten()
    digest = hashlib.blake2b(b"5 noise w", digest_size=16).digest()
    key = np.array([int.from_bytes(half, "little") for half in (digest[:8], digest[8:])], dtype=np.uint64)
    raw = np.random.Philox(counter=[0, 0, 0, 0], key=key).random_raw(6)
    bits = [int(number) >> shift & 0xFFFF for number in raw for shift in (0, 16, 32, 48)]
    expected = [NormalDist().inv_cdf((n + 0.5) / 65536) for n in bits]
    assert torch.allclose(drawn.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6)


def test_they_are_normal_and_depend_on_seed_purpose_and_name():
    drawn = draws.normal("w", 0, "noise", (1000, 1000))
    assert abs(float(drawn.mean())) < 5e-3
    assert float(drawn.std()) == pytest.approx(1, abs=5e-3)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.05)
    blocks = drawn.flatten().view(-1, 1000)  # blocks of rows are not copies of each other
    assert float(torch.corrcoef(torch.stack([drawn[0], drawn[65]]))[0, 1]) == pytest.approx(0, abs=0.15)
    assert len(torch.unique(blocks[:, :3], dim=0)) == len(blocks)
    for other in (("w", 1, "noise"), ("w", 0, "fresh"), ("v", 0, "noise")):
        assert not torch.equal(draws.normal(*other, (10, 10)), draws.normal("w", 0, "noise", (10, 10)))


def test_scalars_and_empty_tensors():
    assert draws.normal("s", 0, "noise", ()).shape == ()
    assert draws.normal("e", 0, "noise", (0, 4)).shape == (0, 4)
    assert draws.normal("e", 0, "noise", (4, 0)).shape == (4, 0)
