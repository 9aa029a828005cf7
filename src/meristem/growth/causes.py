"""Why a growth that should keep the function does not, where that is known: what the class computes from its width."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from meristem.growth.plan import GrowthPlan

# Modules that compute something from the width which copies of the units do not have: class name, what it is.
COMPUTED = (
    (r"Sinusoid|SinePosition|ScaledPositionalEncoding", "positions are sinusoids computed from the width"),
    (r"Fourier", "a Fourier transform mixes over the width itself"),
)


def known_cause(model: nn.Module, plans: tuple[GrowthPlan, ...]) -> str | None:
    """One sentence about the first thing in the network that no widening of its stream keeps; None if nothing is known."""
    widened = [axis for plan in plans for axis in plan.maps if plan.source.axes[axis].kind == "hidden"]
    return of_width(model, plans[0].source.sizes[widened[0]]) if widened else None


def of_width(model: nn.Module, width: int) -> str | None:
    """The same for a network of which the width grows."""
    found = next(_computed(model, width), None)
    if found is None:
        return None
    return (
        f"{found}, so a wider network computes others and no widening of hidden_size keeps the function; intermediate_size and the "
        "depth can grow"
    )


def _computed(model: nn.Module, width: int) -> Iterator[str]:
    for name, module in model.named_modules():
        for pattern, what in COMPUTED:
            if re.search(pattern, type(module).__name__) and not any(True for _ in module.parameters()):
                yield f"{what} ({name}: {type(module).__name__})"
        unsaved = {buffer: module._buffers[buffer] for buffer in module._non_persistent_buffers_set}
        for attribute, value in {
            **vars(module),
            **unsaved,
        }.items():  # a table outside of the checkpoint (CTRL, VideoMAE)
            if isinstance(value, Tensor) and value.dim() > 1 and value.shape[-1] == width and "pos" in attribute:
                yield f"{COMPUTED[0][1]} ({name}.{attribute})"
