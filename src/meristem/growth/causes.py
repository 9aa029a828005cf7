"""Why a growth that should keep the function does not, where that is known: what the class computes from its width."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from meristem.anatomy.instances import constructor_of
from meristem.anatomy.uninitialised import uninitialised
from meristem.growth.plan import GrowthPlan

# Modules that compute something from the width which copies of the units do not have: class name, what it is.
COMPUTED = (
    (r"Sinusoid|SinePosition|ScaledPositionalEncoding", "positions are sinusoids computed from the width"),
    (r"Fourier", "a Fourier transform mixes over the width itself"),
)


def known_cause(model: nn.Module, plans: tuple[GrowthPlan, ...]) -> str | None:
    """One sentence about the first thing in the network that no widening of its stream keeps; None if nothing is known."""
    widened = [axis for plan in plans for axis in plan.maps if plan.source.axes[axis].kind == "hidden"]
    found = next(_computed(model, plans[0].source.sizes[widened[0]]), None) if widened else None
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


def changed_since(model: nn.Module) -> str | None:
    """How an instance computes otherwise than what its class builds, though its tensors are the same: other modules, hooks, a forward
    of its own. None if nothing of that is found."""
    hooked = [n or "the network" for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    patched = [n or "the network" for n, m in model.named_modules() if "forward" in vars(m)]
    said = []
    try:
        with torch.device("meta"):
            made = uninitialised(functools.partial(constructor_of(model), model.config))  # pyright: ignore[reportArgumentType]
        theirs = {name: type(module) for name, module in made.named_modules()}
    except Exception:  # no transformers model: nothing to compare it with
        theirs = {}
    for name, module in model.named_modules():
        kind = theirs.get(name)
        if name and kind is not None and kind.__name__ not in {c.__name__ for c in type(module).__mro__}:
            said.append(f"{name} is a {type(module).__name__} and not a {kind.__name__}")
    said += [f"{hooked[0]} has a hook"] if hooked else []
    said += [f"{patched[0]} has a forward of its own"] if patched else []
    return "; ".join([*said[:3], *(["and more"] if len(said) > 3 else [])]) or None
