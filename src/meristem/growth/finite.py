"""Numbers that are none: weights or outputs that are not finite prove nothing, and say nothing about the anatomy."""

from __future__ import annotations

import math

import torch
from torch import nn

from meristem.anatomy.streamed import weights_of
from meristem.certificates import Certificate
from meristem.errors import MeristemError

NAMED = 3


def check_finite(model: nn.Module, certificate: Certificate) -> None:
    """Look for the cause of a proof that failed, in the network that was to grow.

    Raises:
        MeristemError: if weights of it are not finite, naming them, or its outputs are not.
    """
    bad = _not_finite(model)
    if bad:
        shown = ", ".join(f"{count} in {name}" for name, count in list(bad.items())[:NAMED])
        more = f" and {len(bad) - NAMED} more tensors" if len(bad) > NAMED else ""
        raise MeristemError(
            f"the network's weights are not finite (NaN or infinite: {shown}{more}), so nothing can be proved of it; use a "
            "checkpoint from before they were, or pass verify=False (--no-verify) to copy them as they are"
        )
    if not math.isfinite(certificate.relative_error):
        raise MeristemError(
            f"the network's outputs are not finite on the inputs of the proof ({certificate.inputs}), though its weights are; pass "
            "inputs that it was made for (inputs=, --inputs)"
        )


def _not_finite(model: nn.Module) -> dict[str, int]:
    """{tensor: how many of its values are not finite} of those that have any."""
    found, weights = {}, weights_of(model)
    for name in weights:
        tensor = weights[name]
        count = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if count:
            found[name] = count
    return found
