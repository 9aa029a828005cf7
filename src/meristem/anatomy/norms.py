"""What a normalisation layer computes, found by asking the layer itself."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import nn

from meristem.anatomy.conventions import NORM_CLASS


@dataclass(frozen=True)
class NormFacts:
    """`centres`: subtracts the mean (LayerNorm) or not (RMSNorm); `offset`: the gain is offset + weight (1 in Gemma)."""

    centres: bool
    offset: float


def is_norm(module: nn.Module) -> bool:
    named = bool(re.search(NORM_CLASS, type(module).__name__))
    return named and isinstance(getattr(module, "weight", None), nn.Parameter)


def is_per_unit(module: nn.Module) -> bool:
    """Whether a norm measures each unit on its own: over the batch (batch norm), or over the places of one image."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm) or isinstance(
        getattr(module, "running_var", None), torch.Tensor
    )


def norm_facts(module: nn.Module) -> NormFacts:
    """Measure a norm with a per-feature gain `weight` (and perhaps `bias`) on random features; it may be on meta."""
    probe = copy.deepcopy(module).to_empty(device="cpu").float()
    weight = probe.get_parameter("weight")
    x = torch.randn(4, *weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if getattr(probe, "bias", None) is not None:
            probe.get_parameter("bias").zero_()
        weight.zero_()
        offset = 1.0 if bool(probe(x).abs().max() > 1e-3) else 0.0
        weight.fill_(1.0)
        shift = float((probe(x + 3.0) - probe(x)).abs().max())
    return NormFacts(centres=shift < 1e-2, offset=offset)
