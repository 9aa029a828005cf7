"""How an instance computes differently from what its class builds from its config, although its tensors have
the same names and shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.instances import constructor_of
from meristem.anatomy.streamed import is_streamed
from meristem.anatomy.uninitialised import uninitialised
from meristem.certificates import Certificate
from meristem.errors import PreservationError

NAMED = 3
LARGEST = 500_000_000  # parameters of a network that is built once more, to look at tables that no checkpoint holds
CLOSE = 1e-2  # relative, of such tables: a network in half precision holds them rounded
OF_PLACES = ("torch.distributed", "accelerate")  # whose hooks move weights and inputs
OF_A_RUN = frozenset(("training", "gradient_checkpointing", "layer_idx", "p"))


def changed_since(model: nn.Module) -> str | None:
    """What a network has that its class does not build from its config: other modules, hooks, its own
    forward, other numbers in a module, other tables, weights that are or are not tied. None if nothing is
    found, and for a streamed network.
    """
    if is_streamed(model):
        return None
    hooked = [n or "the network" for n, m in model.named_modules() if _has_hook(m)]
    patched = [n or "the network" for n, m in model.named_modules() if "forward" in vars(m) and not _placed(m)]
    made = _made(model)
    said = list(_differences(model, made)) if made is not None else []
    said += [f"{hooked[0]} has a hook"] if hooked else []
    said += [f"{patched[0]} has a forward of its own"] if patched else []
    return "; ".join([*said[:NAMED], *(["and more"] if len(said) > NAMED else [])]) or None


def check_instances(parents: Sequence[nn.Module], certificate: Certificate) -> None:
    """For networks whose fusion is not their mean.

    Raises:
        PreservationError: naming the first that differs from what its class builds, and how: the fused
            network does not.
    """
    for number, parent in enumerate(parents, start=1):
        changed = changed_since(parent)
        if changed:
            raise PreservationError(
                f"network {number} differs from what its class builds from its config, and only that can be fused: {changed}. The fused "
                f"network does not compute the mean ({certificate.summary()}). Pass allow_differences=True to fuse it as its class is"
            )


def _has_hook(module: nn.Module) -> bool:
    """Whether something is called with it that may change what it computes; sharding and placing do not."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith(OF_PLACES) for hook in hooks)


def _placed(module: nn.Module) -> bool:
    """Whether accelerate has put its own forward in front, which moves tensors between devices and dtypes."""
    return hasattr(module, "_hf_hook") or hasattr(module, "_original_forward")


def _made(model: nn.Module) -> nn.Module | None:
    """What its class builds from its config. None for a network outside transformers, which cannot be
    compared.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) <= LARGEST
    try:
        with torch.device("cpu" if small else "meta"):
            made = uninitialised(functools.partial(constructor_of(model), model.config))  # pyright: ignore[reportArgumentType]
        if hasattr(made, "tie_weights"):
            made.tie_weights()  # pyright: ignore[reportCallIssue]
    except Exception:
        return None
    return made


def _differences(model: nn.Module, made: nn.Module) -> Iterator[str]:
    """The first few of each kind."""
    theirs = dict(made.named_modules())
    for name, module in model.named_modules():
        other = theirs.get(name)
        if other is None:
            continue
        if name and type(other).__name__ not in {c.__name__ for c in type(module).__mro__}:
            yield f"{name} is a {type(module).__name__} and not a {type(other).__name__}"
        settings = settings_of(other, bool, int, float)
        for attribute, value in settings_of(module, bool, int, float).items():
            usual = settings.get(attribute, value)
            if value != usual:
                yield f"{name}.{attribute}".lstrip(".") + f" is {value!r} and not {usual!r}"
        for attribute in module._non_persistent_buffers_set:
            if _differ(module._buffers.get(attribute), other._buffers.get(attribute)):
                yield f"{name}.{attribute}".lstrip(".") + " holds other numbers than its config gives"
    ours, usual = _tied(model), _tied(made)
    for pair in sorted(ours ^ usual):
        yield f"{pair[0]} and {pair[1]} are {'one tensor' if pair in ours else 'two tensors'}, and the config says otherwise"


def settings_of(module: nn.Module, *kinds: type) -> Mapping[str, Any]:
    """The attributes of these kinds that a module computes with besides its tensors."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, kinds) and not name.startswith("_") and name not in OF_A_RUN and "drop" not in name
    }


def _differ(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None or theirs.is_meta or not ours.is_floating_point() or ours.shape != theirs.shape:
        return False
    return not torch.allclose(ours.cpu().double(), theirs.double(), rtol=CLOSE, atol=0)


def _tied(model: nn.Module) -> set[tuple[str, str]]:
    """Pairs of names of one parameter."""
    first: dict[int, str] = {}
    names = ((name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False))
    return {(first[key], name) for name, key in names if first.setdefault(key, name) != name}
