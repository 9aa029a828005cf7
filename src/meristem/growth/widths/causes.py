"""Why a growth does not keep the function although it should, if that is known: what the class computes from
its width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.plans.upcycle_plan import UpcyclePlan
from meristem.growth.structure.differences import INERT

# Modules that compute something from the width which copies of the units do not have: class name, what it is.
COMPUTED = (
    (r"Sinusoid|SinePosition|ScaledPositionalEncoding", "positions are sinusoids computed from the width"),
    (r"Fourier", "a Fourier transform mixes over the width itself"),
)


REMOVE = (
    "Take it off in the network and in the function that builds it (torch.nn.utils.parametrize.remove_parametrizations(module, "
    '"weight"), or torch.nn.utils.remove_weight_norm and remove_spectral_norm), grow, and apply it again'
)


def computed_weight(model: nn.Module) -> str | None:
    """The weight that is computed from the norm of other tensors (weight norm, spectral norm), if there is
    one.
    """
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        old = next((leaf.removesuffix(end) for leaf in own for end in ("_orig", "_g") if leaf.endswith(end)), None)
        if old is not None and (f"{old}_orig" in own or f"{old}_v" in own) and not isinstance(module, nn.RNNBase):
            return f"{name}.{old} is computed from {name}.{old}_* by a norm of the whole matrix, which copies change".lstrip(
                "."
            )
        if parametrize.is_parametrized(module):
            chain = next(iter(module.parametrizations.items()))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            kind = type(chain[1][0]).__name__.strip("_")
            return f"{name}.{chain[0]} is computed from {name}.parametrizations.{chain[0]}.* by {kind}, which copies change"
    return None


def known_cause(model: nn.Module, plans: tuple[GrowthPlan, ...]) -> str | None:
    """One sentence about the first thing in the network that the config of a mixture cannot state, or that a
    wider stream does not keep. None if nothing is known.
    """
    lost = next((_lost(plan) for plan in plans if isinstance(plan, UpcyclePlan) and _lost(plan)), None)
    if lost is not None:
        return lost
    computed = computed_weight(model)
    if computed is not None:
        return f"{computed}. {REMOVE}"
    widened = [axis for plan in plans for axis in plan.maps if plan.source.axes[axis].kind == "hidden"]
    return of_width(model, plans[0].source.sizes[widened[0]]) if widened else None


def of_width(model: nn.Module, width: int, wider: nn.Module | None = None) -> str | None:
    """The same for a network whose width grows.

    Args:
        model: the network.
        width: its width.
        wider: what its class builds with a larger width, if that is known, possibly on the meta device. A
            part that has the same sizes there does not depend on this width (RT-DETR's encoder has its own).
    """
    found = next(_computed(model, width, wider), None)
    if found is None:
        return None
    return (
        f"{found}, so a wider network computes others and no widening of hidden_size keeps the function; intermediate_size and the "
        "depth can grow"
    )


def _lost(plan: UpcyclePlan) -> str | None:
    """What the config of the dense network states besides the defaults of its class, and that of its mixture
    cannot.
    """
    dense, mixture = (getattr(builder, "config", None) for builder in (plan.source.builder, plan.target))
    if dense is None or mixture is None:
        return None
    known, usual = mixture.to_dict(), type(dense)().to_dict()
    lost = [
        f"{entry}={value!r}"
        for entry, value in dense.to_dict().items()
        if entry not in known and not INERT.fullmatch(entry) and _kinds(value) != _kinds(usual.get(entry))
    ]
    if not lost:
        return None
    return f"{plan.target.model_type} has no such config entry as {', '.join(lost)}, which changes what this {plan.source.builder.model_type} computes"


def _kinds(value: object) -> object:
    """The values that occur in a list with an entry for each layer."""
    return set(map(str, value)) if isinstance(value, list | tuple) else value


def _computed(model: nn.Module, width: int, wider: nn.Module | None) -> Iterator[str]:
    others = dict(wider.named_modules()) if wider is not None else {}
    for name, module in model.named_modules():
        stays = name in others and _sizes(others[name]) == _sizes(module) != []
        for pattern, what in COMPUTED:
            if re.search(pattern, type(module).__name__) and not stays and not any(True for _ in module.parameters()):
                yield f"{what} ({name}: {type(module).__name__})"
        unsaved = {buffer: module._buffers[buffer] for buffer in module._non_persistent_buffers_set}
        for attribute, value in {
            **vars(module),
            **unsaved,
        }.items():  # a table outside of the checkpoint (CTRL, VideoMAE)
            is_table = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            if is_table and value.shape[-1] == width and "pos" in attribute and not stays:
                yield f"{COMPUTED[0][1]} ({name}.{attribute})"


def _sizes(module: nn.Module) -> list[object]:
    """The integers and the shapes of tables of a module. The sizes of the network are among them."""
    numbers = sorted((n, v) for n, v in vars(module).items() if isinstance(v, int) and v > 1 and not n.startswith("_"))
    tables = {**vars(module), **module._buffers}
    return [*numbers, *((n, tuple(t.shape)) for n, t in tables.items() if isinstance(t, Tensor))]
