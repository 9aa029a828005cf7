"""Where two networks first differ: the first module whose input or output is not what the growth says it
should be.

Both networks run, in float64 if they can. Every module that holds a weight knows the layouts of its input and
output. So the activations of the large network can be compared with the mapped ones of the small network, in
the order of computation. The first one that differs shows the cause. If it differs by a number, some constant
in the forward pass (a factor sqrt(hidden_size), a division by it) has changed by that number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meristem.algebra import UnitMap
from meristem.anatomy import TensorAnatomy
from meristem.anatomy.inputs import logits_of, outputs_of
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.proofs.expected import expected_outputs

CLOSE = 1e-4


@dataclass(frozen=True)
class Parting:
    """The first activation that is not the mapped one. `ratio`: new = ratio . mapped, or None if no number
    fits. `module` is "" if only an output of the whole network differs; `before` then ends in its name.
    """

    module: str
    side: Literal["input", "output"]
    ratio: float | None
    error: float
    before: tuple[str, ...]  # modules with weights that had run by then

    def resolves(self, earlier: Parting) -> bool:
        """Whether the networks, which differ here, agree where they differed before."""
        return (self.module, self.side) != (earlier.module, earlier.side) and self.before == (
            *earlier.before,
            *self.before[len(earlier.before) :],
        )

    def __str__(self) -> str:
        by = f"is {self.ratio:.6g} times" if self.ratio is not None else f"differs (by {self.error:.1e}) from"
        return (
            f"the {self.side} of {self.module} {by} the mapped one"
            if self.module
            else f"output {self.before[-1]} {by} the mapped one"
        )


def first_parting(plan: GrowthPlan, model: nn.Module, grown: nn.Module, inputs: Mapping[str, Tensor]) -> Parting | None:
    """The first activation of `grown` that is not that of `model` mapped by `plan`. None if all are.

    Args:
        plan: the plan. It adds no layers.
        model: the small network, in evaluation mode.
        grown: the large network, in evaluation mode and the same dtype.
        inputs: keyword arguments of forward.
    """
    ours, theirs = _record(model, inputs), _record(grown, inputs)
    before: list[str] = []
    for (name, side), old in ours.items():
        new = theirs.get((name, side))
        tensor = plan.source.tensors.get(f"{name}.weight")
        if side == "input" and tensor is not None and tensor.tied_to is not None:
            continue  # the norm before a tied head carries the head's factor
        expected = _expected(plan, tensor, side, old) if tensor is not None and new is not None else None
        if expected is not None and new is not None and expected.shape == new.shape:
            ratio, error = _compare(new.double(), expected.double())
            scale = plan.scales.get(tensor.name, 1.0) if tensor is not None else 1.0
            taken_up = scale if side == "output" else 1 / scale  # the weight makes up for a factor outside
            if error > CLOSE or min(abs(ratio - 1), abs(ratio - taken_up)) > CLOSE:
                return Parting(name, side, ratio if error <= CLOSE else None, error, tuple(before))
        if side == "output":
            before.append(name)
    return _parting_outputs(plan, model, grown, inputs, before)


def _parting_outputs(
    plan: GrowthPlan, model: nn.Module, grown: nn.Module, inputs: Mapping[str, Tensor], before: list[str]
) -> Parting | None:
    """The first output that differs although every module agrees. If it differs by a number, it is a product
    of two features that have both grown. Otherwise a module that runs several times computed it in a later
    call.
    """
    ours, theirs = outputs_of(model, dict(inputs)), outputs_of(grown, dict(inputs))
    wanted = expected_outputs([plan], ours, theirs)
    for number, (name, output) in enumerate(wanted.items(), start=1):
        if name in theirs and output.shape == theirs[name].shape:
            a, b, upto = theirs[name].double(), output.double(), (*before, *list(wanted)[:number])
            plain, shifted = (
                _compare(a - c * a.mean(), b - c * b.mean()) for c in (0.0, 1.0)
            )  # a scalar bias added afterwards
            for ratio, error in (plain, shifted):
                if error <= CLOSE < abs(ratio - 1):
                    return Parting("", "output", ratio, error, upto)
            if min(plain[1], shifted[1]) > CLOSE:
                return Parting("", "output", None, plain[1], upto)
    return None


def _record(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[tuple[str, Literal["input", "output"]], Tensor]:
    """First input and output of every module that holds a weight of its own, in the order of computation."""
    seen: dict[tuple[str, Literal["input", "output"]], Tensor] = {}

    def before(name: str):
        def hook(_: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                seen.setdefault((name, "input"), args[0].detach().clone())

        return hook

    def after(name: str):
        def hook(_: nn.Module, __: tuple, output) -> None:
            if isinstance(output, Tensor):
                seen.setdefault((name, "output"), output.detach().clone())

        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        logits_of(model, dict(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _expected(plan: GrowthPlan, tensor: TensorAnatomy, side: str, old: Tensor) -> Tensor | None:
    """The activation of the small network as the large one should have it. None if the weight does not show
    it.
    """
    wanted = ("read", "gain") if side == "input" else ("write", "gain")
    position = next((i for i, d in enumerate(tensor.dimensions) if d.role in wanted), None)
    if position is None:
        return None
    size = tensor.shape[position]
    channels = 1 if len(tensor.shape) > 2 or (old.dim() == 4 and old.shape[-1] != size) else old.dim() - 1
    if old.shape[channels] != size:
        return None
    dimension = tensor.dimensions[position]
    axes = dimension.layout.axes()
    axis_map = dimension.layout.expand({axis: plan.axis_map(axis) for axis in axes}) if axes else None
    unit_map: UnitMap | None = axis_map.write if axis_map is not None else None
    if unit_map is not None and bool(unit_map.sourceless().any()):
        return None  # the units between the old ones are not known (sinusoidal positions)
    mapped = unit_map.apply(old, channels) if unit_map is not None else old
    return mapped * plan.scales.get(tensor.name, 1.0) if side == "output" and dimension.role == "gain" else mapped


def _compare(new: Tensor, expected: Tensor) -> tuple[float, float]:
    """(ratio, error): the best factor, and the largest remainder relative to the largest entry."""
    finite = torch.isfinite(new) & torch.isfinite(expected)
    new, expected = torch.where(finite, new, 0), torch.where(finite, expected, 0)
    norm = float((expected * expected).sum())
    ratio = float((new * expected).sum()) / norm if norm else 1.0
    largest = float(new.abs().max())
    return ratio, float((new - ratio * expected).abs().max()) / largest if largest else 0.0
