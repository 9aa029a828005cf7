"""Networks whose weights are computed only while a block needs them: read from disk, or grown from what is
read there.

A streamed network is an instance of its own stock class. Its parameters are placeholders on the meta device.
A mapping computes each tensor when it is needed. The network is called like any other. It loads the weights
of one block at a time and frees them afterwards. Tensors outside blocks stay for the whole pass. So a network
of any size can be planned, grown and measured in little memory. The few architectures that use the weights of
a block without calling the block run with all their weights (`run_whole`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.lockstep import side_by_side, take_turns
from meristem.anatomy.numbers import check_numbers
from meristem.anatomy.widened import widened
from meristem.block_count import block_reached, expect_blocks


@dataclass(frozen=True)
class Span:
    """Bytes in a file that are exactly a tensor."""

    file: Path
    start: int
    bytes: int


Piece = tuple[list[int], Tensor | Span]


class Weights(Mapping[str, Tensor]):
    """Tensors by name, computed when they are needed and never kept.

    Args:
        dtypes: the dtype of every tensor, by the names of a state dict.
        make: a function that returns the tensor of a name.
        pieces: a function that yields it in pieces of whole rows, for users who do not need the whole tensor
            (see `growth.pieces.grow_pieces`).
        span: a function that says where it is stored unchanged, if it is.
    """

    def __init__(
        self,
        dtypes: Mapping[str, torch.dtype],
        make: Callable[[str], Tensor],
        pieces: Callable[[str], Iterator[tuple[list[int], Tensor]]] | None = None,
        span: Callable[[str], Span | None] | None = None,
    ) -> None:
        self.dtypes, self._make = dict(dtypes), make
        self._pieces = pieces or (lambda name: iter([([0], make(name))]))
        self._span = span or (lambda _: None)
        self._takers, self._tell = 1, None
        self._kept: dict[str, tuple[Tensor, int]] = {}  # what further takers will ask for, and how many

    def span(self, name: str) -> Span | None:
        """Where its bytes are in a file, in its dtype and order. None if they have to be computed."""
        return self._span(name)

    def pieces(self, name: str) -> Iterator[tuple[list[int], Tensor]]:
        """(first rows of all its places, rows) until the tensor is complete."""
        return self._pieces(name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.dtypes:
            raise KeyError(name)
        tensor, takers = self._kept.pop(name, (None, self._takers))
        if tensor is None:
            tensor = self._make(name)
            if self._tell is not None:
                self._tell(name, tensor)
        if takers > 1:
            self._kept[name] = (tensor, takers - 1)
        return tensor

    def lent(self, name: str) -> Tensor:
        """A tensor for what is made of it: one that is kept for others, who still get it, or one that is made
        now.
        """
        return self._kept[name][0] if name in self._kept else self._make(name)

    @contextlib.contextmanager
    def shared(self, takers: int) -> Iterator[None]:
        """A context in which each tensor is kept until it has been read `takers` times."""
        self._takers = takers
        try:
            yield
        finally:
            self._takers = 1
            self._kept.clear()

    @contextlib.contextmanager
    def told(self, tell: Callable[[str, Tensor], None]) -> Iterator[None]:
        """A context in which `tell` is called with each tensor that is computed."""
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)

    def __deepcopy__(self, memo: dict) -> Weights:
        return self  # what it makes never changes


class _Stream:
    """The source of a streamed network's weights, which all its stations use."""

    def __init__(self, weights: Weights, checked: bool) -> None:
        self.weights = weights
        self.checked = checked
        self.whole = False


def is_streamed(model: nn.Module) -> bool:
    """Whether the weights of this network are computed while it runs."""
    return isinstance(getattr(model, "stream", None), _Stream)


def run_whole(model: nn.Module) -> None:
    """Let every later call of this streamed network load all its weights at once."""
    model.stream.whole = True  # type: ignore[union-attr]


def weights_of(model: nn.Module) -> Mapping[str, Tensor]:
    """The tensors of any network by their names in the state dict. Those of a streamed network are computed
    one at a time.
    """
    return model.stream.weights if is_streamed(model) else model.state_dict()  # type: ignore[union-attr, return-value]


def streamed(skeleton: nn.Module, weights: Weights, checked: bool = False) -> nn.Module:
    """Make a streamed network from `skeleton`, whose parameters are on the meta device, and return it.

    The elements of outermost module lists (blocks) load all their weights when they are called. The network
    itself loads all others.

    Args:
        skeleton: the network.
        weights: its weights.
        checked: raise MeristemError for a parameter that is not finite, when a module takes it.
    """
    stream = _Stream(weights, checked)
    skeleton.stream = stream  # type: ignore[assignment]
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        parameter.data = parameter.data.to(weights.dtypes[name])
    stations = _stations(skeleton)
    everything = [(path, leaf, name) for name in skeleton.state_dict() for path, _, leaf in [name.rpartition(".")]]
    for module, entries in stations:
        is_network = module is skeleton
        station = _Station(stream, entries, everything if is_network else [], is_network)
        module.register_forward_pre_hook(station.arrive)
        module.register_forward_hook(station.leave, always_call=True)
    return skeleton.eval()


def with_weights(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in evaluation mode with `change(name, tensor)` for each of its weights, of the same
    shape.
    """
    changed = copy.deepcopy(model).eval()
    if is_streamed(changed):
        weights: Weights = changed.stream.weights  # type: ignore[union-attr, assignment]
        changed.stream.weights = Weights(weights.dtypes, lambda name: change(name, weights[name]))  # type: ignore[union-attr]
    else:
        for name, tensor in changed.state_dict().items():
            tensor.copy_(change(name, tensor))
    return changed


Entries = list[tuple[str, str, str]]  # (path of the owner below the station, parameter, name in the state dict)


class _Station:
    """Loads weights before one module is called, and frees them afterwards."""

    def __init__(self, stream: _Stream, entries: Entries, entries_if_whole: Entries, is_network: bool) -> None:
        self._stream, self._entries, self._entries_if_whole = stream, entries, entries_if_whole
        self._is_network = is_network
        self._placeholders: list[tuple[dict[str, Any], str, Tensor]] = []

    def arrive(self, module: nn.Module, _: tuple) -> None:
        take_turns()
        if self._is_network:
            expect_blocks(_block_count(module))
        else:
            block_reached()
        made: dict[int, nn.Parameter] = {}  # tied ones are one
        for path, leaf, name in self._entries_if_whole if self._stream.whole else self._entries:
            owner = module.get_submodule(path)
            held: dict[str, Any] = owner._buffers if leaf in owner._buffers else owner._parameters
            placeholder = held[leaf]
            self._placeholders.append((held, leaf, placeholder))
            if id(placeholder) in made:
                held[leaf] = made[id(placeholder)]
                continue
            found = self._stream.weights[name]
            if self._stream.checked and held is owner._parameters:
                check_numbers(name, found)
            tensor = widened(found, placeholder.dtype)
            held[leaf] = tensor if held is owner._buffers else nn.Parameter(tensor, requires_grad=False)
            if held is owner._parameters:
                made[id(placeholder)] = held[leaf]

    def leave(self, module: nn.Module, _: tuple, __: Any) -> None:
        while self._placeholders:
            held, leaf, placeholder = self._placeholders.pop()
            held[leaf] = placeholder


def _stations(model: nn.Module) -> list[tuple[nn.Module, Entries]]:
    """Each block of an outermost list with everything in it, and the network with everything that is in
    none.
    """
    kept = model.state_dict().keys()
    stations: dict[nn.Module, Entries] = {model: []}

    def own(module: nn.Module, path: str, below: str) -> Entries:
        leaves = [*module._parameters, *module._buffers]
        return [(below, leaf, name) for leaf in leaves if (name := _joined(path, leaf)) in kept]

    def visit(module: nn.Module, path: str) -> None:
        stations[model] += own(module, path, path)
        for child_name, child in module.named_children():
            child_path = _joined(path, child_name)
            if not isinstance(module, nn.ModuleList | nn.Sequential) or isinstance(child, nn.ModuleList):
                visit(child, child_path)  # a list of lists is never called itself
            elif child not in stations:  # a block that is used in two places is one
                stations[child] = [
                    entry
                    for below, part in child.named_modules()
                    for entry in own(part, _joined(child_path, below), below)
                ]

    visit(model, "")
    return [(module, entries) for module, entries in stations.items() if entries or module is model]


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def run_together(networks: Sequence[nn.Module], calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of the calls, or the exceptions that they raise. The calls are passes through these
    networks, or through copies of them in other precisions, one after another. Passes through streamed
    networks run side by side, equally many through each network, and each weight is computed once.
    """
    if not all(is_streamed(network) for network in networks):
        return [_outcome(call) for call in calls]
    with contextlib.ExitStack() as stack:
        for weights in {id(network.stream.weights): network.stream.weights for network in networks}.values():  # type: ignore[union-attr]
            times = sum(network.stream.weights is weights for network in networks)  # type: ignore[union-attr]
            stack.enter_context(weights.shared(times * len(calls) // len(networks)))  # type: ignore[union-attr]
        return side_by_side(calls)


def _block_count(network: nn.Module) -> int:
    """How many modules of a streamed network load weights of their own, without the network itself."""
    hooks = (hook for module in network.modules() for hook in module._forward_pre_hooks.values())
    return sum(isinstance(getattr(hook, "__self__", None), _Station) for hook in hooks) - 1


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the caller judges it
        return error
