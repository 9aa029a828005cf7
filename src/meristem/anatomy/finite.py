"""Weights or outputs that are not finite. They prove nothing, and say nothing about the anatomy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import is_streamed, weights_of
from meristem.errors import MeristemError

NAMED = 3


def check_finite(model: nn.Module, outputs: Mapping[str, Tensor]) -> None:
    """Raises MeristemError for outputs that prove nothing: NaN, only infinities, or an infinity that comes
    from the weights.

    The cause is in the weights, which the message names, or in the inputs. (Minus infinity alone is the
    output of some classes for tokens that are not allowed.)

    Args:
        model: the network.
        outputs: {name: output of the network}.
    """
    broken = next(
        (n for n, o in outputs.items() if o.numel() and bool(o.isnan().any() or not o.isfinite().any())), None
    )
    infinite = any(bool(output.isinf().any()) for output in outputs.values())
    bad = _bad_weights(model) if broken is not None or infinite else {}
    if bad:
        shown = ", ".join(f"{count} in {name}" for name, count in list(bad.items())[:NAMED])
        more = f" and {len(bad) - NAMED} more tensors" if len(bad) > NAMED else ""
        raise MeristemError(
            f"the network's weights are not finite (NaN or infinite: {shown}{more}), so nothing can be proved of it; use a "
            "checkpoint from before they were, or pass verify=False (--no-verify) to copy them as they are"
        )
    if broken is not None:
        raise MeristemError(
            f"the network's outputs are not finite on the inputs of the proof ({broken} is not a number), though its weights are; "
            "pass inputs that it was made for (inputs=, --inputs)"
        )


def _bad_weights(model: nn.Module) -> dict[str, int]:
    """{tensor: how many of its values are not finite}, for the tensors that have such values."""
    found = {}
    for network in [part for part in model.modules() if is_streamed(part)] or [model]:
        weights = weights_of(network)
        for name in weights:
            tensor = weights[name]
            count = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
            if count:
                found[name] = count
    return found
