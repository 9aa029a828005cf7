"""Count floating-point operations, operator by operator, while a network runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from meristem.anatomy.flop_formulas import PRODUCTS, grouped_shape, more_formulas
from meristem.errors import MeristemError

aten = torch.ops.aten

_QUESTIONS = {
    aten.sym_is_contiguous.default, aten.is_contiguous.default, aten.is_contiguous.memory_format,
    aten.is_strides_like_format.default, aten.is_non_overlapping_and_dense.default, aten.size.default,
    aten.sym_size.default, aten.stride.default, aten.sym_stride.default, aten.storage_offset.default,
    aten.sym_storage_offset.default, aten.numel.default, aten.sym_numel.default, aten.dim.default,
    torch.ops.prim.layout.default,
}  # fmt: skip
_FREE_NAMESPACES = {"aten", "prim", "prims", "c10d", "_c10d_functional", "debug", "profiler", "inductor", "streams"}
_META = torch.device("meta")


@contextlib.contextmanager
def counting(model: nn.Module, paths: Sequence[str], *, only_meta: bool = False) -> Iterator[FlopCounter]:
    """A context in which operators are counted. Those inside the modules at `paths` are also counted by
    module.
    """
    counter = FlopCounter(paths, only_meta=only_meta)
    with contextlib.ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            enter, leave = functools.partial(counter.enter, path), functools.partial(counter.leave, path)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(more_formulas())
        yield stack.enter_context(counter)


class FlopCounter(TorchDispatchMode):
    """Counts operators by torch's formulas and those of `flop_formulas`.

    A backward operator belongs to the module in which its forward operator ran. Autograd numbers its nodes in
    the order in which they are made, so each call of a module has an interval of numbers.

    Args:
        paths: the modules whose own share is kept in `inside`.
        only_meta: refuse an operator that makes a tensor with numbers (RuntimeError).
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(
        cls,
    ) -> bool:  # torch would switch its compiler off and on in every call
        return False

    def __init__(self, paths: Sequence[str] = (), *, only_meta: bool = False) -> None:
        super().__init__()
        self._only_meta = only_meta
        self.total, self.inside = 0, dict.fromkeys(paths, 0)
        self._running: list[str] = []
        self._calls: list[tuple[int, int, str]] = []  # first node, node after the last, path
        self._begun: list[int] = []
        self._known: dict[Any, tuple[int, Outputs]] = {}  # of operators on tensors without numbers, by their shapes

    def enter(self, path: str, *_: Any) -> None:
        """A call of this module begins."""
        self._running.append(path)
        self._begun.append(torch._C._autograd._get_sequence_nr())  # pyright: ignore[reportAttributeAccessIssue]

    def leave(self, path: str, *_: Any) -> None:
        """A call of this module has ended."""
        self._running.pop()
        self._calls.append((self._begun.pop(), torch._C._autograd._get_sequence_nr(), path))  # pyright: ignore[reportAttributeAccessIssue]

    def _add(self, flops: int) -> None:
        self.total += flops
        for path in self._owners():
            self.inside[path] += flops

    def _owners(self) -> Iterable[str]:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._running
        number = node._sequence_nr()
        return {path for first, end, path in self._calls if first <= number < end}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and type(args[0]) is FakeTensor:  # asked twice for every operator
            return _META if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        if func in _QUESTIONS:
            return NotImplemented
        kwargs = kwargs or {}
        key = _shapes_key(func, args, kwargs)
        if key in self._known:
            flops, outputs = self._known[key]
            if flops:
                self._add(flops)
            return outputs.made()
        if _is_composite(func) and func._overloadpacket not in flop_counter.flop_registry:
            with self:
                return func.decompose(*args, **kwargs)
        flops, output = _run_operator(func, args, kwargs)
        if self._only_meta and any(isinstance(one, Tensor) and not one.is_meta for one in pytree.tree_leaves(output)):
            raise RuntimeError(f"{func} made a tensor with numbers")
        if flops:
            self._add(flops)
        if key is not None and (outputs := Outputs.of(output)):
            self._known[key] = flops, outputs
        return output


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether torch decomposes this operator into others."""
    if isinstance(func, torch._ops.HigherOrderOperator):
        return False
    key = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore[reportAttributeAccessIssue]
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _is_free(func: Any) -> bool:
    """Whether an operator without a formula works entry by entry, so that nothing is counted for it."""
    name = func.name()
    namespace = "higher_order" if isinstance(func, torch._ops.HigherOrderOperator) else func.namespace
    return namespace in _FREE_NAMESPACES and not PRODUCTS.search(name.partition("::")[2].partition(".")[0])


def _run_operator(func: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
    """The FLOPs of an operator that is not decomposed, and its result."""
    packet = func if isinstance(func, torch._ops.HigherOrderOperator) else func._overloadpacket
    if packet not in flop_counter.flop_registry:
        if not _is_free(func):
            raise MeristemError(
                f"the FLOPs of operator {func.name()} are not known; register a formula for it with "
                "torch.utils.flop_counter.register_flop_formula"
            )
        return 0, func(*args, **kwargs)
    if packet is aten._grouped_mm and (args[0].is_meta or isinstance(args[0], FakeTensor)):
        ends = args[2] if len(args) > 2 else kwargs.get("offs")
        output = args[0].new_empty(grouped_shape(args[0].shape, args[1].shape, ends))
    else:
        output = func(*args, **kwargs)
    return flop_counter.flop_registry[packet](*args, **kwargs, out_val=output), output


@dataclass(frozen=True)
class Outputs:
    """The results of an operator on the meta device: the layout of each tensor, or None."""

    layouts: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype] | None, ...]
    alone: bool

    @classmethod
    def of(cls, output: Any) -> Outputs | None:
        """None if the result is anything but tensors on the meta device."""
        several = output if isinstance(output, tuple | list) else (output,)
        if not all(one is None or (type(one) is Tensor and one.is_meta) for one in several):
            return None
        layouts = tuple(None if one is None else (one.shape, one.stride(), one.dtype) for one in several)
        return cls(layouts, alone=several is not output)

    def made(self) -> Any:
        """New tensors of these layouts."""
        made = [
            None if layout is None else torch.empty_strided(*layout[:2], dtype=layout[2], device=_META)
            for layout in self.layouts
        ]
        return made[0] if self.alone else tuple(made)


def _shapes_key(func: Any, args: Any, kwargs: Any) -> Any:
    """What the result of an operator on meta tensors depends on. None if it may depend on more, or if the
    operator changes or shares a tensor.
    """
    if not _makes_anew(func):
        return None
    try:
        key = (func, _layouts(args), _layouts(tuple(kwargs.items())))
        hash(key)
    except (TypeError, RuntimeError):  # another kind of tensor; what cannot be hashed
        return None
    return key


def _layouts(values: Sequence[Any]) -> tuple[Any, ...]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_meta or type(value) not in (Tensor, nn.Parameter):
                raise TypeError("not a tensor on the meta device")
            found.append((value.shape, value.stride(), value.dtype))
        else:
            found.append(_layouts(value) if isinstance(value, list | tuple) else (type(value), value))
    return tuple(found)


@functools.cache
def _makes_anew(func: Any) -> bool:
    """Whether an operator leaves its inputs unchanged and returns new tensors."""
    schema = getattr(func, "_schema", None)
    return schema is not None and not schema.is_mutable and not any(one.alias_info for one in schema.returns)
