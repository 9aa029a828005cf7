"""The running statistics of batch norms, estimated again after the weights before them have changed.

Jordan, Sedghi, Saukh, Entezari, Neyshabur: "REPAIR: REnormalizing Permuted Activations for Interpolation
Repair", ICLR 2023, arXiv:2211.08403 (section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from meristem.anatomy.inputs import outputs_of


def batch_norms(model: nn.Module) -> list[str]:
    """The paths of the batch norms that keep running statistics."""
    return [
        path
        for path, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]


def new_statistics(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Estimate the running statistics of all batch norms again, as means over these batches, in place.

    Args:
        model: the network.
        batches: batches of keyword arguments of forward, some hundred examples in all.
    """
    norms: list[Any] = [model.get_submodule(path) for path in batch_norms(model)]
    if not norms:
        return
    modes, momenta = [(m, m.training) for m in model.modules()], [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for batch in batches:
        outputs_of(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training
