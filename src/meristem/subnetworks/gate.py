"""Train a sub-network for one step: blocks are skipped in place, outside everything that wraps them.

A block that does not run is never called. It has no computation, no activations and no all-gather under
FSDP2. Its gradients stay None, so optimizers do not change its parameters. The gate is in front of
`Module.__call__`: the class of the block is replaced by a subclass during the context. It is therefore
outside gradient checkpointing, `block.compile()` (one graph for all paths) and the hooks of FSDP2. The list
keeps its order, so layers keep their `layer_types`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy
from meristem.anatomy.builder import FunctionBuilder
from meristem.anatomy.modes import evaluating
from meristem.errors import MeristemError
from meristem.subnetworks.blocks import Blocks, check_no_dropping, lists_of_blocks, with_schedules
from meristem.subnetworks.path import Path
from meristem.subnetworks.ranks import check_ranks_agree
from meristem.subnetworks.schedule import Schedule
from meristem.subnetworks.width import sliced, whole

Schedules = Schedule | Mapping[str, Schedule]
GATE = "_meristem_gate"  # the attribute of a block that is gated


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
        model: a transformers model, or a network of your own with its `anatomy`, also inside DDP, FSDP2 or
            torch.compile. A block's first argument is the hidden state, a tensor, and what it returns
            replaces it (its residual is added inside). DDP needs `find_unused_parameters=True`.
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
            need, if the network drops layers itself or is a sub-network already, if blocks cannot be skipped,
            or if processes have different paths.
    """
    check_no_dropping(model)
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
    if any(GATE in vars(module) for module in blocks.modules):
        raise MeristemError(
            f"{blocks.name} is in a sub-network already; leave that context first. A Trainer that was interrupted leaves one: call "
            "close() of its RaptrCallback, or ms.subnetworks.gate.ungate(model)"
        )
    gates: list[tuple[nn.Module, type[nn.Module], _Gate]] = []
    for layer, module in enumerate(blocks.modules):
        gate = _Gate(blocks, path.active[layer], path.scales[layer], layer in path.frozen, layer)
        gates.append((module, type(module), gate))
        vars(module)[GATE] = gate
        module.__class__ = _gated_class(type(module))
    try:
        yield
    finally:
        for module, original, gate in gates:
            if vars(module).get(GATE) is gate:  # and not that of a later context, after `ungate`
                object.__setattr__(module, "__class__", original)
                del vars(module)[GATE]
        if blocks.extras is not None:
            blocks.extras = (None,) * len(blocks.extras)  # no step's tensors outlive it
        blocks.passed = None


def ungate(model: nn.Module) -> None:
    """Make the network whole again where a context was never left, as after an interrupted Trainer."""
    for module in model.modules():
        if GATE in vars(module):
            module.__class__ = type(module).__bases__[0]
            del vars(module)[GATE]
    whole(model)


@functools.cache
def _gated_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose calls pass the gate first. It has the name of the original, because some models check
    that.
    """

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate: _Gate = vars(self)[GATE]
        run = functools.partial(original.__call__, self)
        if not self.training:
            return run(*args, **kwargs)
        hidden = _hidden_state(gate.blocks, args, kwargs)
        if not gate.active and not _reshapes(gate, self, run, hidden, args, kwargs):
            if not gate.blocks.seen:
                with torch.no_grad(), _own_random_numbers(hidden):  # what do its blocks return? Once in its life.
                    _remember(gate.blocks, run(*args, **kwargs))
            _pass_on(gate.blocks, hidden, hidden)
            return hidden if gate.blocks.extras is None else (hidden, *gate.blocks.extras)
        with torch.no_grad() if gate.frozen else contextlib.nullcontext():
            output = run(*args, **kwargs)
        _remember(gate.blocks, output)
        output = _rescaled(hidden, output, gate.scale) if gate.scale != 1 and gate.active else output
        _pass_on(gate.blocks, hidden, output)
        return output

    def reduce(self: nn.Module, protocol: Any) -> Any:
        """A copy that is made while the context lasts is a block of its own class, without a gate."""
        return _empty, (original,), {name: value for name, value in vars(self).items() if name != GATE}

    own = {"__call__": call, "__module__": original.__module__, "__reduce_ex__": reduce}
    return type(original.__name__, (original,), own)


def _empty(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _hidden_state(blocks: Blocks, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first argument of a block, if blocks can be skipped: that is the hidden state, a tensor, and a
    block's output replaces it. Networks outside transformers are observed until one block has passed its
    output on.

    Raises:
        MeristemError: if not.
    """
    hidden = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(hidden, Tensor):
        raise MeristemError(
            f"the first argument of a block of {blocks.name} is a {type(hidden).__name__}; blocks that are skipped take the hidden state, "
            "a tensor, as their first argument"
        )
    if blocks.passed is None or torch.compiler.is_compiling():
        return hidden
    (before, after), blocks.passed = blocks.passed, None
    if hidden is after:
        blocks.chained = True
    elif any(other is after for other in (*args, *kwargs.values())):
        raise MeristemError(
            f"the first argument of a block of {blocks.name} is not what the block before returned, another one is; blocks that are "
            "skipped take the hidden state as their first argument"
        )
    elif hidden.shape == after.shape == before.shape and torch.equal(hidden, before + after):
        raise MeristemError(
            f"the residual of {blocks.name} is added outside the blocks (x = x + block(x)), so that a skipped block would double the hidden "
            "state; add it inside the blocks' forward"
        )
    return hidden


def _pass_on(blocks: Blocks, hidden: Tensor, output: Any) -> None:
    """Remember what a block was given and returns, until the next one shows what became of it."""
    own = isinstance(blocks.anatomy.builder, FunctionBuilder)
    if own and not blocks.chained and isinstance(output, Tensor) and not torch.compiler.is_compiling():
        blocks.passed = (hidden.detach(), output)


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
