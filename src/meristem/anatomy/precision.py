"""A network in another precision, with complex tables."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

COMPLEX = {torch.float64: torch.complex128}  # of the others complex64


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the network with its weights and tables in `dtype`.

    `nn.Module.to` also makes complex numbers real (rotary tables of Llama 4's vision tower), which loses
    their imaginary parts. Here they stay complex.
    """

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(COMPLEX.get(dtype, torch.complex64))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return copy.deepcopy(model)._apply(cast)
