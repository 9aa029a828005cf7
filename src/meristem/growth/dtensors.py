"""Tensors that are sharded over processes: made whole, and cut into parts again."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, gathered from all processes if it is sharded; to be called by all of them alike."""
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def as_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all have whole, laid out as `like`; what has another shape (steps) as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and whole.shape == like.shape:
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return whole.clone()


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
