"""From a plan to a module: the large network, filled tensor by tensor."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.inputs import device_of
from meristem.anatomy.streamed import Span, Weights, is_streamed, streamed, weights_of
from meristem.anatomy.structure import folded
from meristem.anatomy.uninitialised import tied, uninitialised, without_initial_weights
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.tensors.pieces import Look, grow_pieces, grow_whole, is_copy

LARGE = (
    (1 << 10, 1 << 20),
    (1 << 22, 1 << 62),
)  # entries of tensors without values, and of zeros and ones, for `LargeOnMeta`


def in_float32(anatomy: Anatomy, model: nn.Module) -> nn.Module:
    """The same network with its weights in float32 and its constants (rotary tables, embedding scales)
    unrounded.
    """
    weights = weights_of(model)

    def exact(name: str) -> Tensor:
        tensor = weights[name]
        return tensor.float() if tensor.is_floating_point() else tensor

    dtypes = {n: torch.float32 if t.is_floating_point() else t.dtype for n, t in model.state_dict().items()}
    return filled(anatomy.builder, Weights(dtypes, exact), like=model, rounded=False).eval()


def build(plan: GrowthPlan, model: nn.Module, look: Look | None = None) -> nn.Module:
    """The large network of `plan`, with weights from `model`. Each tensor keeps the dtype, device and
    `requires_grad` of its source.

    It is never initialised with random numbers. If `model` is streamed, the result is streamed too, and grows
    each tensor when it is read.

    Args:
        plan: the plan.
        model: the small network.
        look: a function that is called with each piece of a streamed network's weight when it is computed for
            writing.
    """
    return with_flags(filled(plan.target, grown_weights(plan, model, look), like=model), [plan], [model])


def with_flags(grown: nn.Module, plans: Sequence[GrowthPlan], models: Sequence[nn.Module]) -> nn.Module:
    """The network that these have become, with their settings for training. Tensors that all of them have
    frozen are frozen. If one of them uses activation checkpointing, so does the result.
    """
    trained = [{n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)} for model in models]
    for name, parameter in grown.named_parameters():
        own = [of.get(plan.origin(name), parameter.requires_grad) for plan, of in zip(plans, trained, strict=True)]
        parameter.requires_grad_(any(own) and parameter.is_floating_point())
    if any(getattr(model, "is_activation_checkpointing", False) for model in models):
        grown.activation_checkpointing_enable()  # pyright: ignore[reportCallIssue]: of every transformers model that has the flag
    return grown


def grown_weights(plan: GrowthPlan, model: nn.Module, look: Look | None = None) -> Weights:
    """The tensors of the large network by every name in its state dict, with tied ones, computed on
    demand.
    """
    weights = weights_of(model)
    fetch = weights.lent if isinstance(weights, Weights) else weights.__getitem__

    def grown(name: str) -> Tensor:
        return grow_whole(plan.tensors[plan.own_names[name]], fetch)

    def pieces(name: str) -> Iterator[tuple[list[int], Tensor]]:
        return grow_pieces(plan.tensors[plan.own_names[name]], fetch, look)

    def span(name: str) -> Span | None:
        tensor = plan.tensors[plan.own_names[name]]
        return weights.span(tensor.terms[0].source) if isinstance(weights, Weights) and is_copy(tensor) else None

    return Weights(grown_dtypes(plan, model), grown, pieces, span)


def grown_dtypes(plan: GrowthPlan, model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every tensor of the large network: that of its (first) source."""
    stored = model.state_dict()
    return {name: stored[plan.tensors[own].terms[0].source].dtype for name, own in plan.own_names.items()}


def filled(target: Builder, weights: Mapping[str, Tensor], like: nn.Module, rounded: bool = True) -> nn.Module:
    """The network of the target with these weights. Its mode and generation config are those of `like`, and
    it is streamed if that is. With `rounded`, constants that no checkpoint holds have the dtype that they
    have in `like`.
    """
    make = functools.partial(target.build, target.sizes, target.depths)
    if is_streamed(like):
        assert isinstance(weights, Weights)
        grown = streamed(skeleton(make), weights)
    else:
        grown = uninitialised(make)
        made: dict[int, nn.Parameter] = {}
        for name, held in grown.state_dict(keep_vars=True).items():
            _put(grown, name, held, weights, made)
        _follow_buffers(grown, like, rounded)
    if getattr(grown, "_keys_to_ignore_on_save", None):  # tables that stock code would compute again, for another width
        grown._keys_to_ignore_on_save = None  # type: ignore[assignment]
    generation_config = getattr(like, "generation_config", None)
    if generation_config is not None:
        grown.generation_config = copy.deepcopy(generation_config)
    return grown.train(like.training)


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` builds, with its parameters on the meta device, its buffers real, and its ties."""
    from accelerate import init_empty_weights

    def made(large: AbstractContextManager[Any]) -> nn.Module:
        with init_empty_weights(include_buffers=False), without_initial_weights(), large:
            return make()

    for entries in LARGE:
        model = made(LargeOnMeta(*entries))
        if not any(buffer.is_meta for buffer in model.buffers()):
            return tied(model)  # outside: what is registered inside is never shared
    return tied(made(contextlib.nullcontext()))  # a large buffer is filled after it is made


class LargeOnMeta(TorchFunctionMode):
    """Large tensors that are made without values, as all large parameters are, get no memory. The experts of
    one layer may be larger than the memory of the machine, and memory that is allocated and freed in
    pieces stays with the process. Buffers are made with values, and stay real.

    Args:
        entries: the number of entries from which a tensor is large.
        filled: the same for a tensor of zeros or ones, because some classes make their parameters so.
    """

    def __init__(self, entries: int, filled: int) -> None:
        super().__init__()
        self._large = {torch.empty: entries, torch.zeros: filled, torch.ones: filled}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self._large and kwargs.get("device") is None:
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            if math.prod(kwargs.get("size", sizes)) > self._large[func]:
                kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _put(
    model: nn.Module, name: str, held: Tensor, weights: Mapping[str, Tensor], made: dict[int, nn.Parameter]
) -> None:
    """Put the weight of this name in its place. Tied names share the parameter, which is made once."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = weights[name]
        return
    if id(held) not in made:
        made[id(held)] = nn.Parameter(weights[name], requires_grad=held.requires_grad)
    owner._parameters[leaf] = made[id(held)]


def _follow_buffers(grown: nn.Module, like: nn.Module, rounded: bool) -> None:
    """Buffers that no checkpoint holds (rotary tables) are on the device of those of `like` and, with
    `rounded`, in their dtype.
    """
    device, kept = device_of(like), grown.state_dict().keys()
    sources = {folded(name): buffer for name, buffer in like.named_buffers()}
    for name, buffer in grown.named_buffers(remove_duplicate=False):
        if name in kept:
            continue
        source = sources.get(folded(name))
        follows = rounded and source is not None and buffer.is_floating_point()
        dtype = source.dtype if follows and source is not None else buffer.dtype
        path, _, leaf = name.rpartition(".")
        grown.get_submodule(path)._buffers[leaf] = buffer.to(source.device if source is not None else device, dtype)
