"""Weights in half precision that count as float32: the numbers of a whole copy, without the copy."""

from __future__ import annotations

import pico
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meristem as ms
from meristem import makers
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.streamed import Weights, streamed
from meristem.anatomy.widened import LARGE, Widened, widened
from meristem.certificates import outputs_in
from meristem.checkpoints import open_streamed

PAIRS = [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float64)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("stored", "dtype"), PAIRS)
def test_it_computes_what_a_copy_computes(stored, dtype, threads, monkeypatch):
    monkeypatch.setattr(makers, "_THREADS", [threads])
    weight = torch.randn(1100, 1000, generator=torch.Generator().manual_seed(0)).to(stored)
    seen, copy = nn.Parameter(widened(weight, dtype), requires_grad=False), weight.to(dtype)
    assert isinstance(seen, Widened)
    assert (seen.dtype, seen.shape, seen.device) == (copy.dtype, copy.shape, copy.device)
    tolerance = 64 * torch.finfo(dtype).eps
    tokens, bias = torch.randn(2, 7, 1000, dtype=dtype), torch.randn(1100, dtype=dtype)
    with torch.no_grad():
        for ours, theirs in (
            (F.linear(tokens, seen), F.linear(tokens, copy)),
            (F.linear(tokens, seen, bias), F.linear(tokens, copy, bias)),
            (tokens[0] @ seen.t(), tokens[0] @ copy.t()),
            (torch.randn(1, 1100, dtype=dtype).fill_(0.5) @ seen, torch.full((1, 1100), 0.5, dtype=dtype) @ copy),
            (torch.addmm(bias[:1000], bias[None], seen), torch.addmm(bias[:1000], bias[None], copy)),
        ):
            assert type(ours) is torch.Tensor
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 1000**0.5)
        ids = torch.tensor([[0, 1099, 7]])
        for ours, theirs in (
            (F.embedding(ids, seen), F.embedding(ids, copy)),
            (seen[ids[0]], copy[ids[0]]),
            (seen * 2, copy * 2),  # whatever else is done with it
            (seen.sum(0), copy.sum(0)),
            (seen[3], copy[3]),
        ):
            assert torch.equal(ours + 0, theirs)


def test_a_stack_of_matrices_is_widened_one_by_one():
    stack = torch.randn(4, 600, 500).bfloat16()
    seen = widened(stack, torch.float32)
    assert isinstance(seen[2], Widened)
    x = torch.randn(3, 500)
    torch.testing.assert_close(F.linear(x, seen[2]), F.linear(x, stack[2].float()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.bmm(x.expand(4, 3, 500), seen.transpose(1, 2)), x @ stack.float().transpose(1, 2))


def test_small_and_whole_tensors_are_copied():
    assert type(widened(torch.ones(8, 8).bfloat16(), torch.float32)) is torch.Tensor
    assert type(widened(torch.ones(LARGE, 2), torch.float32)) is torch.Tensor
    assert widened(torch.ones(LARGE, 2, dtype=torch.long), torch.float32).dtype == torch.float32


class Reader(nn.Module):
    """A head that is used in other ways than a product."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(2000, 600)
        self.blocks = nn.ModuleList([nn.Linear(600, 1800), nn.Linear(1800, 600)])
        self.head = nn.Linear(600, 2000, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        scaled = self.head.weight / self.head.weight.norm(dim=1, keepdim=True)
        return F.linear(x, scaled) + torch.einsum("bth,vh->btv", x, self.head.weight)


def test_a_streamed_network_of_large_weights_is_that_in_memory():
    torch.manual_seed(0)
    model = Reader().bfloat16().eval()
    state = model.state_dict()
    with torch.device("meta"):
        skeleton = Reader().bfloat16()
    lazy = streamed(skeleton, Weights({name: t.dtype for name, t in state.items()}, state.__getitem__))
    certificate = ms.verify(model, lazy, {"input_ids": torch.arange(40).view(2, 20)})
    assert certificate.dtype == "float64"
    assert certificate.relative_error < 1e-13
    assert certificate.holds


@pytest.mark.parametrize("family", list(pico.FAMILIES))
def test_every_family_computes_what_it_computes_with_copies(family, tmp_path, monkeypatch):
    pico.build(family).to(torch.bfloat16).save_pretrained(tmp_path)
    model = open_streamed(str(tmp_path))
    inputs = example_inputs(model)
    copied = outputs_in(model, inputs, torch.float32)
    monkeypatch.setattr("meristem.anatomy.widened.LARGE", 1)
    monkeypatch.setattr("meristem.anatomy.widened.BLOCK", 1 << 8)  # several blocks for each matrix
    ours = outputs_in(model, inputs, torch.float32)
    assert ours.keys() == copied.keys()
    for name, output in ours.items():
        torch.testing.assert_close(output, copied[name], rtol=1e-4, atol=1e-5)
