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


def norm_eps(module: nn.Module) -> float:
    """What a norm adds to the mean square that it measures, found by measuring features of a mean square of 1e-6."""
    probe = copy.deepcopy(module).to_empty(device="cpu").double()
    x = torch.randn(1, *probe.get_parameter("weight").shape, generator=torch.Generator().manual_seed(0)).double()
    x = 1e-3 * (x - x.mean()) / (x - x.mean()).square().mean().sqrt()
    with torch.no_grad():
        if getattr(probe, "bias", None) is not None:
            probe.get_parameter("bias").zero_()
        probe.get_parameter("weight").zero_()
        probe.get_parameter("weight").fill_(0.0 if bool(probe(x).abs().max() > 1e-9) else 1.0)
        given = float(probe(x).double().square().mean())
    return max(0.0, 1e-6 / given - 1e-6)
