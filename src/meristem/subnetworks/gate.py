"""Train a sub-network for one step: blocks are skipped in place, outside everything that wraps them.

A block that does not run is never called. It has no computation, no activations and no all-gather under
FSDP2. Its gradients stay None, so optimizers do not change its parameters. The gate is in front of
`Module.__call__`: the class of the block is replaced by a subclass during the context. It is therefore
outside gradient checkpointing, `block.compile()` (one graph for all paths) and the hooks of FSDP2. The list
keeps its order, so layers keep their `layer_types`.
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
    """A context in which `model`, in training mode, is the sub-network of optimizer step `step` (RAPTR,
    arXiv:2402.05913).

        for step, batch in enumerate(loader):
            with ms.subnetwork(model, schedule, step):
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    In evaluation mode it stays the full network. Gradients of skipped blocks are None. Keep them None with
    `zero_grad(set_to_none=True)`, the default of PyTorch, because Adam moves parameters whose gradient is
    zero.

    Args:
        model: a transformers model, or any network with its `anatomy`, also inside DDP, FSDP2 or
            torch.compile. DDP needs `find_unused_parameters=True`.
        schedule: one schedule for all lists of blocks, or one for each axis of depth ({"encoder_layers": ...,
            "decoder_layers": ...}).
        step: the number of the optimizer step. All micro-batches of a step use its path.
        anatomy: the result of `Anatomy.infer`. Networks outside transformers need it.
        check_ranks: compare the paths of all processes first. If they differ, there is an error instead of a
            deadlock.

    Yields:
        The path of every list of blocks, by its name.

    Raises:
        MeristemError: if the schedule has another depth than the network, if it skips a block that others
            need, or if processes have different paths.
    """
    chosen = with_schedules(schedule, lists_of_blocks(model, anatomy))
    paths = {blocks.name: its.path(step, blocks.name) for blocks, its in chosen}
    if check_ranks:
        check_ranks_agree(paths, step)
    with along(model, paths, anatomy=anatomy):
        yield paths


@contextlib.contextmanager
def along(model: nn.Module, paths: Mapping[str, Path], *, anatomy: Anatomy | None = None) -> Iterator[None]:
    """As `subnetwork`, with given paths by the names of the lists of blocks."""
    with contextlib.ExitStack() as stack:
        for blocks in lists_of_blocks(model, anatomy):
            if blocks.name in paths:
                stack.enter_context(sliced(blocks, paths[blocks.name]))
                stack.enter_context(_gated(blocks, paths[blocks.name]))
        yield


@dataclass
class _Gate:
    """What the gate of a block knows during the context."""

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
    """A subclass whose calls pass the gate first. It has the name of the original, because some models check
    that.
    """

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
    """Whether the output of the block has another shape than its input, so that it has to run. A suspect is
    tried once.
    """
    known, layer = gate.blocks.reshaping, gate.layer
    if layer in gate.blocks.suspects and layer not in known:
        with torch.no_grad(), _own_random_numbers(hidden), evaluating(block):
            output = run(*args, **kwargs)
        known[layer] = (output if isinstance(output, Tensor) else output[0]).shape != hidden.shape
        if known[layer]:
            warnings.warn(
                f"block {layer} of {gate.blocks.name} changes the shape of its input, so it always runs; name it in "
                "fixed_layers to count it in the expected depth",
                stacklevel=2,
            )
    return known.get(layer, False)


def _own_random_numbers(hidden: Tensor) -> contextlib.AbstractContextManager[None]:
    """Keep the random numbers of the step (dropout) as they are without the trial. A resumed run makes the
    trial at another step.
    """
    return torch.random.fork_rng([hidden.device] if hidden.device.type == "cuda" else [])


def _remember(blocks: Blocks, output: Any) -> None:
    """A skipped block returns what the last block that ran returned after its hidden states."""
    blocks.extras = None if isinstance(output, Tensor) else tuple(output[1:])
    blocks.seen = True


def _rescaled(hidden: Tensor, output: Any, scale: float) -> Any:
    """The whole update of the block times `scale`. Attention and feed-forward share one gate. If the shape
    changes, nothing is scaled.
    """
    if (output if isinstance(output, Tensor) else output[0]).shape != hidden.shape:
        return output
    if isinstance(output, Tensor):
        return hidden + scale * (output - hidden)
    return (hidden + scale * (output[0] - hidden), *output[1:])
