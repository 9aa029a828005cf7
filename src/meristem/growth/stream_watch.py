"""One short pass that shows what is added to what: the stream of a network.

Parameters and the outputs of norms give their name to what they make, sums join names, products by numbers pass them on,
anything else forgets them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from meristem.anatomy import Anatomy
from meristem.anatomy.conventions import NORM_CLASS
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.norms import is_norm
from meristem.anatomy.trace import Inputs, run_watched
from meristem.errors import MeristemError
from meristem.growth.stream import Stream, hidden_axes

# Operators that add their arguments up, or lay them side by side.
SUMS = frozenset([
    "add", "sub", "rsub", "cat", "stack", "where", "masked_fill", "masked_scatter", "index_put", "index_add",
    "scatter_add", "copy", "lerp",
])  # fmt: skip
# Operators that keep the values of their first argument and only move them about.
MOVES = frozenset([
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "slice",
    "select", "index", "index_select", "gather", "clone", "_to_copy", "detach", "unsqueeze", "squeeze", "alias",
    "roll", "split", "split_with_sizes", "unbind", "chunk", "embedding", "neg", "flip", "constant_pad_nd",
    "unfold", "dropout", "native_dropout", "mean", "sum", "avg_pool1d", "avg_pool2d", "repeat", "contiguous",
    "lift_fresh", "narrow", "as_strided", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "flatten", "slice_scatter", "select_scatter", "im2col", "diagonal", "cumsum",
])  # fmt: skip
PRODUCTS = frozenset(["mul", "div"])
CONTRACTIONS = frozenset(
    ["mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution", "mv", "addmv", "dot", "_grouped_mm", "einsum"]
)
ATTENTION = "scaled_dot_product"


class _Watch(TorchDispatchMode):
    """Names on tensors, carried from operator to operator."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._parameters = WeakIdKeyDictionary()  # tensor -> name of the parameter that it is or views
        self._made_of = WeakIdKeyDictionary()  # tensor -> names of what it is made of

    def hooks(self, model: nn.Module, anatomy: Anatomy) -> Iterator[Any]:
        """What tells this watch about parameters and norms as they are called."""
        for name, parameter in model.named_parameters():  # those of lists of parameters, which are never called
            tensor = anatomy.tensors.get(name)
            if tensor is not None and not parameter.is_meta:
                self._parameters[parameter] = tensor.tied_to or tensor.name
        for path, module in model.named_modules():
            yield module.register_forward_pre_hook(self._names_parameters(path, anatomy))
            if is_norm(module) or _is_plain_norm(module):
                yield module.register_forward_pre_hook(self._measures(path), with_kwargs=True)
                yield module.register_forward_hook(self._normed(path))

    def _names_parameters(self, path: str, anatomy: Anatomy):
        def hook(module: nn.Module, _: tuple) -> None:
            for name, parameter in module.named_parameters(
                remove_duplicate=False
            ):  # also of parts that are never called
                tensor = anatomy.tensors.get(f"{path}.{name}" if path else name)
                if tensor is not None:
                    self._parameters[parameter] = tensor.tied_to or tensor.name

        return hook

    def _measures(self, path: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if first is not None:
                self._stream.measured.setdefault(path, set()).update(self._made(first))

        return hook

    def _normed(self, path: str):
        def hook(module: nn.Module, _: tuple, output: Any) -> None:
            names = [f"{path}.{leaf}" for leaf, parameter in module._parameters.items() if parameter is not None]
            if not names:  # no gain that could change the amplitude
                names = [path]
                self._stream.measured.setdefault(path, set()).add(path)
            self._stream.names.join(names)
            for tensor in (value for value in tree_iter(output) if isinstance(value, Tensor)):
                self._made_of[tensor] = set(names)

        return hook

    def _made(self, tensor: Tensor) -> set[str]:
        parameter = self._parameters.get(tensor)
        return {parameter} if parameter is not None else self._made_of.get(tensor) or set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].removesuffix("_")
        operands = [value for value in tree_iter((args, kwargs or {})) if isinstance(value, Tensor)]
        made = self._result(name, operands)
        for tensor in (value for value in tree_iter(output) if isinstance(value, Tensor)):
            if isinstance(made, str):
                self._parameters[tensor] = made
            elif made:
                self._made_of[tensor] = made
        return output

    def _result(self, name: str, operands: list[Tensor]) -> set[str] | str:
        """What an operator's output is made of; a string: it is (a view of) that parameter."""
        if name in MOVES and operands:
            if name != "embedding" and operands[0] in self._parameters:
                return self._parameters[operands[0]]
            return self._made(operands[0])
        if name in SUMS:
            return self._sum(operands)
        if name in CONTRACTIONS:
            return self._contraction(operands)
        if name in PRODUCTS:
            return self._product(operands)
        return self._made(operands[2]) if ATTENTION in name and len(operands) > 2 else set()

    def _sum(self, operands: list[Tensor]) -> set[str]:
        names = set().union(*(self._made(operand) for operand in operands))
        widths = {operand.shape[-1] for operand in operands if operand.dim() and self._made(operand)}
        for other in (o for o in operands if names and o.is_floating_point() and o.dim() > 1 and not self._made(o)):
            if other.shape[-1] in widths and bool(other.any()):
                self._stream.foreign.append(f"foreign {len(self._stream.foreign)}")
                names.add(self._stream.foreign[-1])
        return self._joined(names)

    def _joined(self, names: set[str]) -> set[str]:
        self._stream.names.join(names)
        return names

    def _contraction(self, operands: list[Tensor]) -> set[str]:
        parameters = [operand for operand in operands if operand in self._parameters]
        taken = set().union(*(self._made(o) for o in operands if o not in self._parameters))
        if not parameters:
            alone = [o for o in operands if self._made(o)]
            return self._made(alone[0]) if len(alone) == 1 else set()
        matrices = {self._parameters[parameter] for parameter in parameters if parameter.dim() > 1}
        for matrix in matrices:  # of two, one is a learned query
            self._stream.taken.setdefault(matrix, set()).update(taken | (matrices - {matrix}))
        return self._joined({self._parameters[parameter] for parameter in parameters})

    def _product(self, operands: list[Tensor]) -> set[str]:
        named = [operand for operand in operands if self._made(operand)]
        if len(named) == 1:
            return self._made(named[0])
        gains = [self._parameters[operand] for operand in named if operand in self._parameters]
        if len(named) != 2 or len(gains) != 1:
            return set()
        other = next(operand for operand in named if operand not in self._parameters)
        self._stream.taken.setdefault(gains[0], set()).update(self._made(other))
        self._stream.gains.add(gains[0])
        return {gains[0]}


def _is_plain_norm(module: nn.Module) -> bool:
    """A normalisation without weights, such as OLMo's."""
    has_weights = any(parameter is not None for parameter in module._parameters.values())
    return not has_weights and not list(module.children()) and bool(re.search(NORM_CLASS, type(module).__name__))


_WATCHED: WeakKeyDictionary[nn.Module, tuple[Inputs, Stream]] = (
    WeakKeyDictionary()
)  # a pass is made once for each network


def stream_of(model: nn.Module, anatomy: Anatomy, inputs: Inputs = None) -> Stream:
    """What a pass on `inputs` (random ones by default) shows; for a network whose inputs cannot be guessed, what most do:
    everything on the hidden axis is written into the stream, and norms feed readers."""
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
