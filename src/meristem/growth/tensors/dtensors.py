"""Tensors that are sharded over processes, gathered and divided again."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered from all processes if it is sharded. All processes have to call it in the
    same way.
    """
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def as_part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of this process of a tensor that all have whole, sharded as `like`. A tensor of another shape
    (steps) does not change.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and whole.shape == like.shape:
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return whole.clone()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
