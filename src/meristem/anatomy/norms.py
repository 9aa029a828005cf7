"""What a normalisation layer computes, measured on the layer itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meristem.algebra import Layout
from meristem.anatomy.conventions import NORM_CLASS, NORM_GAINS

WIDTH = 16  # of the features that a norm without weights and without a shape is asked with


@dataclass(frozen=True)
class NormFacts:
    """What is known about a norm.

    Args:
        centres: whether it subtracts the mean (LayerNorm) or not (RMSNorm).
        offset: the gain is offset + weight (1 in Gemma).
        gain: the name of the parameter of the gain, or None if it has none.
        layout: what a norm without a gain measures, which no tensor shows.
        sums: it divides by the length of its input (Dory), not by the root of the mean square.
    """

    centres: bool
    offset: float
    gain: str | None = "weight"
    layout: Layout | None = None
    sums: bool = False


def is_norm(module: nn.Module) -> bool:
    """Whether it is called a norm, or acts as one, and has a gain."""
    return gain_of(module) is not None


def gain_of(module: nn.Module) -> str | None:
    """The name of the gain of a norm. None if it is not a norm, or has no gain."""
    if not re.search(NORM_CLASS, type(module).__name__):
        return _gain_by_trial(module)
    return next((name for name in NORM_GAINS if isinstance(getattr(module, name, None), nn.Parameter)), None)


def is_plain_norm(module: nn.Module) -> bool:
    """Whether it is called a norm and has no weights, as in OLMo."""
    has_weights = any(parameter is not None for parameter in module._parameters.values())
    return not has_weights and not list(module.children()) and bool(re.search(NORM_CLASS, type(module).__name__))


def plain_shape(module: nn.Module) -> tuple[int, ...]:
    """What a norm without weights declares to measure. () if it accepts any shape."""
    shape = getattr(module, "normalized_shape", ())
    return (shape,) if isinstance(shape, int) else tuple(shape)


_BY_TRIAL: dict[type, str | None] = {}


def _gain_by_trial(module: nn.Module) -> str | None:
    """The gain of a module of any name that has a few vectors and no other parameters, and whose output is
    the same for features and for twice these. None for any other. Each class is tried once.
    """
    kind = type(module)
    own = dict(module.named_parameters(recurse=False))
    vectors = {p.shape for p in own.values()}
    if kind.__module__.startswith("torch.nn.") or len(vectors) != 1 or len(next(iter(vectors))) != 1:
        return None
    if any(True for _ in module.children()) or next(iter(vectors))[0] < 2 or any(True for _ in module.buffers()):
        return None
    if kind not in _BY_TRIAL:
        _BY_TRIAL[kind] = next((name for name in own if _is_gain(module, name)), None)
    return _BY_TRIAL[kind] if _BY_TRIAL[kind] in own else None


def _is_gain(module: nn.Module, name: str) -> bool:
    """Whether a module measures the size of its features and multiplies by this parameter. It is tried
    without the parameter and with twice the parameter.
    """
    try:
        probe = copy.deepcopy(module).to_empty(device="cpu").double()
        x = torch.randn(3, *probe.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)).double()
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter.zero_()
            nothing = probe(x)
            probe.get_parameter(name).fill_(1.0)
            once, scaled = probe(x), probe(4 * x)
            probe.get_parameter(name).fill_(2.0)
            twice = probe(x)
    except Exception:  # it is called in another way
        return False
    alike = isinstance(once, torch.Tensor) and once.shape == x.shape and bool(once.std(0).max() > 1e-3)
    return alike and torch.allclose(once, scaled, atol=1e-2) and torch.allclose(twice - once, once - nothing, atol=1e-6)


def is_per_unit(module: nn.Module) -> bool:
    """Whether a norm measures each unit separately: over the batch (batch norm), or over the places of one
    image.
    """
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm) or isinstance(
        getattr(module, "running_var", None), torch.Tensor
    )


def norm_facts(module: nn.Module) -> NormFacts:
    """Measure a norm on random features, with a gain for each feature (and possibly a bias) or without. It
    may be on the meta device.
    """
    probe = copy.deepcopy(module).to_empty(device="cpu").float()
    gain = gain_of(module)
    if gain is None:
        x = _features(plain_shape(module) or (WIDTH,))
        centres = float((probe(x + 3.0) - probe(x)).abs().max()) < 1e-2
        sums = not plain_shape(module) and float(probe(x).square().mean() * x.shape[-1]) < 2
        return NormFacts(centres, offset=0.0, gain=None, sums=sums)
    weight = probe.get_parameter(gain)
    x = _features(weight.shape)
    try:
        probe(x)
    except (ValueError, RuntimeError, IndexError):  # channels come first (ConvNeXt)
        x = _features((*weight.shape, 2, 2))
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            if name != gain:
                parameter.zero_()
        weight.zero_()
        offset = 1.0 if bool(probe(x).abs().max() > 1e-3) else 0.0
        weight.fill_(1.0)
        shift = float((probe(x + 3.0) - probe(x)).abs().max())
    return NormFacts(centres=shift < 1e-2, offset=offset, gain=gain)


def _features(shape: Sequence[int]) -> Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))


def norm_eps(module: nn.Module) -> float:
    """What a norm adds to the mean square that it measures, from features with a mean square of 1e-6."""
    probe = copy.deepcopy(module).to_empty(device="cpu").double()
    weight = probe.get_parameter(gain_of(module) or "weight")
    x = torch.randn(1, *weight.shape, generator=torch.Generator().manual_seed(0)).double()
    x = 1e-3 * (x - x.mean()) / (x - x.mean()).square().mean().sqrt()
    with torch.no_grad():
        if getattr(probe, "bias", None) is not None:
            probe.get_parameter("bias").zero_()
        weight.zero_()
        weight.fill_(0.0 if bool(probe(x).abs().max() > 1e-9) else 1.0)
        given = float(probe(x).double().square().mean())
    return max(0.0, 1e-6 / given - 1e-6)
