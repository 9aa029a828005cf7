"""A forward pass that tracks names. Parameters have their names, and rules for operators say which names
their outputs have.

Each watch (`stream_watch.py`, `silence.py`) adds the rules for sums, products and other operators.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

# Operators that add or concatenate their arguments.
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


class NamedPass(TorchDispatchMode):
    """The names of tensors, passed from operator to operator."""

    forgets: ClassVar[bool] = False  # an operator that gives no names takes those away that its output had (in place)

    def __init__(self) -> None:
        super().__init__()
        self.parameters = WeakIdKeyDictionary()  # tensor -> name of the parameter that it is or views
        self.made_of = WeakIdKeyDictionary()  # tensor -> names of what it is made of

    def made(self, tensor: Tensor) -> set[str]:
        """The names of a tensor. A parameter has its own name."""
        parameter = self.parameters.get(tensor)
        return {parameter} if parameter is not None else self.made_of.get(tensor) or set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].removesuffix("_")
        operands = [value for value in tree_iter((args, kwargs or {})) if isinstance(value, Tensor)]
        made = self._result(name, operands)
        for tensor in (value for value in tree_iter(output) if isinstance(value, Tensor)):
            if isinstance(made, str):
                self.parameters[tensor] = made
            elif made or self.forgets:
                self.made_of[tensor] = made
        return output

    def _result(self, name: str, operands: list[Tensor]) -> set[str] | str:
        """The names that the output of an operator has. A string if it is (a view of) that parameter."""
        if name in MOVES and operands:
            if name != "embedding" and operands[0] in self.parameters:
                return self.parameters[operands[0]]
            return self.made(operands[0])
        return self.sum(operands) if name in SUMS else self.other(name, operands)

    @abstractmethod
    def sum(self, operands: list[Tensor]) -> set[str]:
        """The names of a sum."""

    @abstractmethod
    def other(self, name: str, operands: list[Tensor]) -> set[str]:
        """The names of the output of any other operator."""
