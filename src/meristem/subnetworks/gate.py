"""Training a sub-network for one step: blocks are stepped over in place, outside of everything that wraps them.

A block that does not run is never called: no computation, no activations, no all-gather under FSDP2, and gradients
that stay None, so that optimizers leave its parameters alone. The gate stands in front of `Module.__call__` (the block's class
is exchanged for a subclass while the context lasts), hence outside of gradient checkpointing, of `block.compile()` (one
graph, whatever the paths) and of FSDP2's hooks; the list keeps its order, so layers keep their `layer_types`.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.modes import evaluating
from meristem.subnetworks.blocks import Blocks, lists_of_blocks, with_schedules
from meristem.subnetworks.path import Path
from meristem.subnetworks.ranks import check_ranks_agree
from meristem.subnetworks.schedule import Schedule
from meristem.subnetworks.width import sliced

Schedules = Schedule | Mapping[str, Schedule]


@contextlib.contextmanager
def subnetwork(
    model: nn.Module,
    schedule: Schedules,
    step: int,
    *,
    anatomy: Anatomy | None = None,
    check_ranks: bool = False,
) -> Iterator[dict[str, Path]]:
    """Within this context, `model` in training mode is the sub-network of optimizer step `step`.

        for step, batch in enumerate(loader):
            with ms.subnetwork(model, schedule, step):
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    In evaluation mode it stays the full network. Gradients of skipped blocks are None; keep them so with
    `zero_grad(set_to_none=True)`, PyTorch's default, since Adam moves parameters whose gradient is zero.

    Args:
        model: a transformers model, or any network with its `anatomy`; DDP, FSDP2 and compiled networks too. Under DDP, wrap
            with `find_unused_parameters=True`.
        schedule: for all lists of blocks, or one for each axis of depth ({"encoder_layers": ..., "decoder_layers": ...}).
        step: the global optimizer step; all micro-batches of a step share its path.
        check_ranks: compare paths over all processes first: an error instead of a hang if they differ.

    Yields:
        The path of every list of blocks, by its name.

    Raises:
        MeristemError: for a schedule of another depth, or one that would skip a block that others need.
    """
    chosen = with_schedules(schedule, lists_of_blocks(model, anatomy))
    paths = {blocks.name: its.path(step, blocks.name) for blocks, its in chosen}
    if check_ranks:
        check_ranks_agree(paths, step)
    with along(model, paths, anatomy=anatomy):
        yield paths


@contextlib.contextmanager
def along(model: nn.Module, paths: Mapping[str, Path], *, anatomy: Anatomy | None = None) -> Iterator[None]:
    """As `subnetwork`, with explicit paths by the names of the lists of blocks."""
    with contextlib.ExitStack() as stack:
        for blocks in lists_of_blocks(model, anatomy):
            if blocks.name in paths:
                stack.enter_context(sliced(blocks, paths[blocks.name]))
                stack.enter_context(_gated(blocks, paths[blocks.name]))
        yield


@dataclass
class _Gate:
    """What a block's gate knows while the context lasts."""

    blocks: Blocks
    active: bool
    scale: float
    frozen: bool
    layer: int


@contextlib.contextmanager
def _gated(blocks: Blocks, path: Path) -> Iterator[None]:
    classes = [type(module) for module in blocks.modules]
    for layer, module in enumerate(blocks.modules):
        gate = _Gate(blocks, path.active[layer], path.scales[layer], layer in path.frozen, layer)
        module.__dict__["_meristem_gate"] = gate
        module.__class__ = _gated_class(type(module))
    try:
        yield
    finally:
        for module, original in zip(blocks.modules, classes, strict=True):
            module.__class__ = original
            del module.__dict__["_meristem_gate"]
        if blocks.extras is not None:
            blocks.extras = (None,) * len(blocks.extras)  # no step's tensors outlive it


@functools.cache
def _gated_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose calls pass the gate first; named like the original, which some models look at."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate: _Gate = self.__dict__["_meristem_gate"]
        run = functools.partial(original.__call__, self)
        if not self.training:
            return run(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if not gate.active and not _reshapes(gate, self, run, hidden, args, kwargs):
            if not gate.blocks.seen:
                with torch.no_grad(), _own_random_numbers(hidden):  # what do its blocks return? Once in its life.
                    _remember(gate.blocks, run(*args, **kwargs))
            return hidden if gate.blocks.extras is None else (hidden, *gate.blocks.extras)
        with torch.no_grad() if gate.frozen else contextlib.nullcontext():
            output = run(*args, **kwargs)
        _remember(gate.blocks, output)
        return _rescaled(hidden, output, gate.scale) if gate.scale != 1 and gate.active else output

    def reduce(self: nn.Module, protocol: Any) -> Any:
        """A copy that is made while the context lasts is a block of its own class, without a gate."""
        state = {name: value for name, value in self.__dict__.items() if name != "_meristem_gate"}
        return copyreg.__newobj__, (original,), state  # pyright: ignore[reportAttributeAccessIssue]

    own = {"__call__": call, "__module__": original.__module__, "__reduce_ex__": reduce}
    return type(original.__name__, (original,), own)


def _reshapes(
    gate: _Gate, block: nn.Module, run: Callable[..., Any], hidden: Tensor, args: tuple, kwargs: dict
) -> bool:
    """Whether the block gives out another shape than it takes in, so that it has to run. A suspect is asked once."""
    known, layer = gate.blocks.reshaping, gate.layer
    if layer in gate.blocks.suspects and layer not in known:
        with torch.no_grad(), _own_random_numbers(hidden), evaluating(block):
            output = run(*args, **kwargs)
        known[layer] = (output if isinstance(output, Tensor) else output[0]).shape != hidden.shape
        if known[layer]:
            warnings.warn(
                f"block {layer} of {gate.blocks.name} changes the shape of what it takes in, so it always runs; name it in "
                "fixed_layers to count it in the expected depth",
                stacklevel=2,
            )
    return known.get(layer, False)


def _own_random_numbers(hidden: Tensor) -> contextlib.AbstractContextManager[None]:
    """The step's random numbers (dropout) are those that it draws without the look: a resumed run looks at another step."""
    return torch.random.fork_rng([hidden.device] if hidden.device.type == "cuda" else [])


def _remember(blocks: Blocks, output: Any) -> None:
    """A skipped block hands on what came behind the hidden states of the last one that ran."""
    blocks.extras = None if isinstance(output, Tensor) else tuple(output[1:])
    blocks.seen = True


def _rescaled(hidden: Tensor, output: Any, scale: float) -> Any:
    """The block's whole update times `scale`: attention and feed-forward have one gate. Where the shape changes, there is none."""
    if (output if isinstance(output, Tensor) else output[0]).shape != hidden.shape:
        return output
    if isinstance(output, Tensor):
        return hidden + scale * (output - hidden)
    return (hidden + scale * (output[0] - hidden), *output[1:])
