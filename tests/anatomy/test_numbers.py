"""Weights of a proof that are not numbers are found, in every dtype, and large ones are not taken for such."""

from __future__ import annotations

import pytest
import torch

from meristem.anatomy.numbers import check_numbers
from meristem.errors import MeristemError

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_is_counted(dtype, value):
    weight = torch.ones(64, 33, dtype=dtype)
    weight[3, 5] = value
    with pytest.raises(MeristemError, match=r"1 in lm_head\.weight"):
        check_numbers("lm_head.weight", weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opposite_infinities_do_not_cancel(dtype):
    weight = torch.zeros(8, 8, dtype=dtype)
    weight[0, 0], weight[1, 1] = float("inf"), -float("inf")
    with pytest.raises(MeristemError, match="2 in w"):
        check_numbers("w", weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_that_overflows_is_no_fault_of_its_numbers(dtype):
    check_numbers("w", torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype))
    check_numbers("ids", torch.tensor([1, 2]))
    check_numbers("empty", torch.zeros(0, dtype=dtype))
