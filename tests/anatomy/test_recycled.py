"""Memory for large tensors is used again, and never while anything still reads it."""

from __future__ import annotations

import torch

from meristem.anatomy.recycled import ALIGNED, HELD, Recycler

SHAPE = (1024, 4096)


def test_memory_is_used_again_once_a_tensor_and_all_its_views_are_gone():
    memory = Recycler()
    first = memory.empty(SHAPE, torch.bfloat16)
    place, view = first.data_ptr(), first[3:5].t()
    assert (tuple(first.shape), first.dtype, place % ALIGNED) == (SHAPE, torch.bfloat16, 0)
    del first
    other = memory.empty(SHAPE, torch.bfloat16)
    assert other.data_ptr() != place  # the view
    del view
    again = memory.empty((4096, 512), torch.float32)  # as many bytes
    assert again.data_ptr() == place
    kept = torch.nn.Parameter(again, requires_grad=False)
    del again
    assert memory.empty(SHAPE, torch.bfloat16).data_ptr() not in (place, other.data_ptr())
    array = kept.data.numpy()
    del kept
    assert memory.empty(SHAPE, torch.bfloat16).data_ptr() != place
    assert array.ctypes.data == place


def test_tensors_that_live_keep_their_numbers_whatever_comes_after():
    memory, alive = Recycler(), []
    for number in range(24):
        tensor = memory.empty(SHAPE, torch.float32).fill_(number)
        if number % 3 == 0:
            alive.append((number, tensor))
    assert all(bool((tensor == number).all()) for number, tensor in alive)


def test_little_is_held():
    memory = Recycler()
    for rows in range(1, 80):
        memory.empty((rows, 1 << 23), torch.uint8)
        assert sum(map(len, memory._blocks)) <= max(HELD, (rows << 23) + ALIGNED)
    assert type(memory.empty((3, 5), torch.int64)) is torch.Tensor
    assert memory.empty((0, 4), torch.float16).numel() == 0
