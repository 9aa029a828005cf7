"""One short pass that shows what is added to what: the stream of a network.

Parameters and the outputs of norms give their names to what is computed from them. Sums join names, products
with numbers pass them on, and any other operator drops them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from meristem.anatomy import Anatomy
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.norms import is_norm, is_plain_norm
from meristem.anatomy.trace import Inputs, run_watched
from meristem.errors import MeristemError
from meristem.growth.structure.named_pass import ATTENTION, CONTRACTIONS, PRODUCTS, NamedPass
from meristem.growth.structure.stream import Stream, hidden_axes


class _Watch(NamedPass):
    """The names of parameters and norms. What is measured, read and scaled is recorded in a `Stream`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def hooks(self, model: nn.Module, anatomy: Anatomy) -> Iterator[Any]:
        """Hooks that tell this watch about parameters and norms when they are called."""
        for name, parameter in model.named_parameters():  # those of lists of parameters, which are never called
            tensor = anatomy.tensors.get(name)
            if tensor is not None and not parameter.is_meta:
                self.parameters[parameter] = tensor.tied_to or tensor.name
        for path, module in model.named_modules():
            yield module.register_forward_pre_hook(self._names_parameters(path, anatomy))
            if is_norm(module) or is_plain_norm(module):
                yield module.register_forward_pre_hook(self._measures(path), with_kwargs=True)
                yield module.register_forward_hook(self._normed(path))

    def _names_parameters(self, path: str, anatomy: Anatomy):
        def hook(module: nn.Module, _: tuple) -> None:
            for name, parameter in module.named_parameters(
                remove_duplicate=False
            ):  # also of parts that are never called
                tensor = anatomy.tensors.get(f"{path}.{name}" if path else name)
                if tensor is not None:
                    self.parameters[parameter] = tensor.tied_to or tensor.name

        return hook

    def _measures(self, path: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if first is not None:
                self._stream.measured.setdefault(path, set()).update(self.made(first))

        return hook

    def _normed(self, path: str):
        def hook(module: nn.Module, _: tuple, output: Any) -> None:
            names = [f"{path}.{leaf}" for leaf, parameter in module._parameters.items() if parameter is not None]
            if not names:  # no gain that could change the amplitude
                names = [path]
                self._stream.measured.setdefault(path, set()).add(path)
            self._stream.names.join(names)
            for tensor in (value for value in tree_iter(output) if isinstance(value, Tensor)):
                self.made_of[tensor] = set(names)

        return hook

    def other(self, name: str, operands: list[Tensor]) -> set[str]:
        if name in CONTRACTIONS:
            return self._contraction(operands)
        if name in PRODUCTS:
            return self._product(operands)
        return self.made(operands[2]) if ATTENTION in name and len(operands) > 2 else set()

    def sum(self, operands: list[Tensor]) -> set[str]:
        names = set().union(*(self.made(operand) for operand in operands))
        widths = {operand.shape[-1] for operand in operands if operand.dim() and self.made(operand)}
        for other in (o for o in operands if names and o.is_floating_point() and o.dim() > 1 and not self.made(o)):
            if other.shape[-1] in widths and bool(other.any()):
                self._stream.foreign.append(f"foreign {len(self._stream.foreign)}")
                names.add(self._stream.foreign[-1])
        return self._joined(names)

    def _joined(self, names: set[str]) -> set[str]:
        self._stream.names.join(names)
        return names

    def _contraction(self, operands: list[Tensor]) -> set[str]:
        parameters = [operand for operand in operands if operand in self.parameters]
        taken = set().union(*(self.made(o) for o in operands if o not in self.parameters))
        if not parameters:
            alone = [o for o in operands if self.made(o)]
            return self.made(alone[0]) if len(alone) == 1 else set()
        matrices = {self.parameters[parameter] for parameter in parameters if parameter.dim() > 1}
        for matrix in matrices:  # of two, one is a learned query
            self._stream.taken.setdefault(matrix, set()).update(taken | (matrices - {matrix}))
        return self._joined({self.parameters[parameter] for parameter in parameters})

    def _product(self, operands: list[Tensor]) -> set[str]:
        named = [operand for operand in operands if self.made(operand)]
        if len(named) == 1:
            return self.made(named[0])
        gains = [self.parameters[operand] for operand in named if operand in self.parameters]
        if len(named) != 2 or len(gains) != 1:
            return set()
        other = next(operand for operand in named if operand not in self.parameters)
        self._stream.taken.setdefault(gains[0], set()).update(self.made(other))
        self._stream.gains.add(gains[0])
        return {gains[0]}


_WATCHED: WeakKeyDictionary[nn.Module, tuple[Inputs, Stream]] = (
    WeakKeyDictionary()
)  # a pass is made once for each network


def stream_of(model: nn.Module, anatomy: Anatomy, inputs: Inputs = None) -> Stream:
    """What a pass on `inputs` (random ones by default) shows. If the inputs of the network cannot be guessed,
    what holds for most networks: everything on the hidden axis is written into the stream, and norms feed
    readers.
    """
    if model not in _WATCHED or _WATCHED[model][0] is not inputs:
        _WATCHED[model] = (inputs, _watched(model, anatomy, inputs))
    return _WATCHED[model][1]


def _watched(model: nn.Module, anatomy: Anatomy, inputs: Inputs) -> Stream:
    stream = Stream()
    try:
        chosen = inputs if inputs is not None else example_inputs(model, batch_size=1, sequence_length=16)
        with _Watch(stream) as watch:
            run_watched(model, lambda: watch.hooks(model, anatomy), chosen)
    except MeristemError:
        return _usual(anatomy)
    return stream


def _usual(anatomy: Anatomy) -> Stream:
    hidden = hidden_axes(anatomy)
    writes = [(t.name, d) for t in anatomy.tensors.values() for d in t.dimensions if d.role == "write"]
    writers = {name for name, dimension in writes if anatomy.axes_of(dimension.layout) & hidden}
    norms = [path for path in anatomy.norms if anatomy.axes_over(path) & hidden]
    return Stream(measured=dict.fromkeys(norms, writers))
