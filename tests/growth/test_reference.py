"""The fast path against the formula, for every tensor of every method."""

from __future__ import annotations

from dataclasses import replace

import pico
import pytest
import torch
from table import METHODS, method_for

import meristem as ms
from meristem.growth.methods.method import as_list
from meristem.growth.tensors.apply import grow_tensor
from meristem.growth.tensors.reference import reference_moment, reference_weight

NOT_WEIGHTS = {"ligo", "aki", "shrink, zero-pad, perturb"}  # fitted first, copies from elsewhere, perturbed at random


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "t5"])
@pytest.mark.parametrize("row", [row for row in METHODS if row not in NOT_WEIGHTS])
def test_fast_and_plain_agree(row, family):
    small = pico.build(family).double()
    weights = small.state_dict()
    method = as_list(method_for(row, small))[0]
    method = replace(method, noise=0.0) if hasattr(method, "noise") else method
    plan = method.plan(ms.Anatomy.of(small), small)
    for name, tensor in plan.tensors.items():
        drawn = any(axis_map is not None and axis_map.fresh is not None for axis_map in tensor.maps)
        if not drawn:
            expected = reference_weight(tensor, weights.__getitem__)
            torch.testing.assert_close(grow_tensor(tensor, weights.__getitem__), expected, msg=name)
        for power, moment in ((1, "gradient"), (2, "second_moment")):
            expected = reference_moment(tensor, weights.__getitem__, power)
            torch.testing.assert_close(grow_tensor(tensor, weights.__getitem__, moment), expected, msg=name)
