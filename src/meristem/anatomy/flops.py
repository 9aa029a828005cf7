"""Counted floating-point operations: of one training step, and of every block, from shapes alone.

The network runs on tensors that have a shape and no numbers (torch's fake tensors), so a count costs neither the network's memory nor its
time, draws no random number, and is the same on every machine. A network whose own code looks at values (a mixture that loops over its
experts, a block that is dropped by a draw) is really run instead.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

from meristem.anatomy.flop_formulas import PRODUCTS, grouped_shape, more_formulas
from meristem.anatomy.inputs import example_inputs
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
_VALUES_WANTED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def training_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of forward and backward on a batch with its labels: every matrix product and attention.

    Attention on a CPU, which torch 2.13 counts as nothing, counts by the formula of flash attention, as on a GPU; so do the grouped
    products of mixtures. What activation checkpointing computes again is counted, where the model has it switched on. Causal masking is not
    discounted, and the optimizer's elementwise work is not counted.

    Raises:
        MeristemError: for an operator whose cost is not known.
    """
    return training_flops_by_module(model, inputs, ())[0]


def training_flops_by_module(
    model: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]
) -> tuple[int, list[int]]:
    """As `training_flops`; and the share of it that is spent inside the modules of these paths."""
    return _counted(model, inputs, paths, _TrainingStep)


def forward_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """FLOPs of a forward pass in evaluation mode. Raises as `training_flops`."""
    return _counted(model, inputs, (), _Forward)[0]


def block_flops(model: nn.Module, prefixes: Sequence[str], inputs: Mapping[str, Tensor] | None = None) -> list[int]:
    """FLOPs of the forward pass in each block of these lists, one list after the other.

    Args:
        prefixes: of the lists of blocks, such as "model.layers".
        inputs: what the network is run on; one short random input by default.

    Raises:
        MeristemError: as `training_flops`; and if there are no inputs and none can be guessed.
    """
    chosen = inputs if inputs is not None else example_inputs(model, batch_size=1, sequence_length=16)
    paths = [f"{prefix}.{name}" for prefix in prefixes for name, _ in model.get_submodule(prefix).named_children()]
    return _counted(model, chosen, paths, _Forward)[1]


class _TrainingStep(nn.Module):
    """Forward and backward as one call, so that the exchanged parameters are there for both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> None:
        self.model(**inputs).loss.backward()


class _Forward(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> None:
        with torch.no_grad():
            self.model(**inputs)


def _counted(
    model: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str], step: Callable[[nn.Module], nn.Module]
) -> tuple[int, list[int]]:
    whole = step(model)
    modes = {module: module.training for module in whole.modules()}
    whole.train(step is _TrainingStep)
    for module in modes:
        if isinstance(module, _NormBase):  # it counts nothing; its statistics have to stay, and one example has none
            module.eval()
    try:
        counter = _by_shapes(whole, inputs, paths) or _by_running(whole, inputs, paths)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.total, [counter.inside[path] for path in paths]


def _by_shapes(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter | None:
    """Counted without any numbers; None for a network that wants to see some."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
            for name, tensor in (*step.named_parameters(), *step.named_buffers())
        }
        own = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in inputs.items()}
    try:
        with _quiet(), mode, _counting(step.get_submodule("model"), paths) as counter:
            functional_call(step, state, (), own)
    except _VALUES_WANTED:
        return None
    except RuntimeError as error:
        if re.search(
            "device|swap", str(error)
        ):  # a tensor that is neither parameter nor buffer elsewhere than on the CPU; a module that casts itself
            return None
        raise
    return counter


def _by_running(step: nn.Module, inputs: Mapping[str, Tensor], paths: Sequence[str]) -> FlopCounter:
    device = next(step.parameters()).device
    gpus = [device] if device.type == "cuda" else []
    kept = {name: parameter.grad for name, parameter in step.named_parameters()}
    with torch.random.fork_rng(gpus), _counting(step.get_submodule("model"), paths) as counter:
        step(**{name: tensor.to(device) for name, tensor in inputs.items()})
    for name, parameter in step.named_parameters():
        parameter.grad = kept[name]
    return counter


@contextlib.contextmanager
def _counting(model: nn.Module, paths: Sequence[str]) -> Iterator[FlopCounter]:
    """Within this context, operators are counted; those inside the modules at `paths` also by module."""
    counter = FlopCounter(paths)
    with contextlib.ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            enter, leave = functools.partial(counter.enter, path), functools.partial(counter.leave, path)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(more_formulas())
        yield stack.enter_context(counter)


class FlopCounter(TorchDispatchMode):
    """Counts operators by torch's formulas and the few more of this file.

    A backward operator belongs to the module in which the forward operator ran whose gradient it computes: autograd numbers its nodes in the
    order in which they are made, so each call of a module owns an interval of numbers.

    Args:
        paths: of the modules whose own share is kept in `inside`.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(
        cls,
    ) -> bool:  # torch would switch its compiler off and on in every call; `_counting` does it once
        return False

    def __init__(self, paths: Sequence[str] = ()) -> None:
        super().__init__()
        self.total, self.inside = 0, dict.fromkeys(paths, 0)
        self._running: list[str] = []
        self._calls: list[tuple[int, int, str]] = []  # first node, node behind the last, path
        self._begun: list[int] = []

    def enter(self, path: str, *_: Any) -> None:
        """A call of this module begins."""
        self._running.append(path)
        self._begun.append(torch._C._autograd._get_sequence_nr())  # pyright: ignore[reportAttributeAccessIssue]

    def leave(self, path: str, *_: Any) -> None:
        """It has ended."""
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
        higher = isinstance(func, torch._ops.HigherOrderOperator)
        packet = func if higher else func._overloadpacket
        if packet not in flop_counter.flop_registry:
            if not higher and _is_composite(func):
                with self:
                    return func.decompose(*args, **kwargs)
            if not _is_free(func):
                raise MeristemError(
                    f"the FLOPs of operator {func.name()} are not known; register a formula for it with "
                    "torch.utils.flop_counter.register_flop_formula"
                )
            return func(*args, **kwargs)
        if packet is aten._grouped_mm and isinstance(args[0], FakeTensor):
            ends = args[2] if len(args) > 2 else kwargs.get("offs")
            output = args[0].new_empty(grouped_shape(args[0].shape, args[1].shape, ends))
        else:
            output = func(*args, **kwargs)
        self._add(flop_counter.flop_registry[packet](*args, **kwargs, out_val=output))
        return output


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether torch takes this operator apart into others."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore[reportAttributeAccessIssue]
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def _is_free(func: Any) -> bool:
    """Whether an operator without a formula works entry by entry, so that it costs nothing that is counted."""
    name = func.name()
    namespace = "higher_order" if isinstance(func, torch._ops.HigherOrderOperator) else func.namespace
    return namespace in _FREE_NAMESPACES and not PRODUCTS.search(name.partition("::")[2].partition(".")[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own account of an operator that wants numbers, for which there is a second way."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
