"""The mean of several networks, which a fusion is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from meristem.certificates import Certificate, error_in_high_precision, stored_dtype, verify
from meristem.growth.plans.plan import GrowthPlan
from meristem.growth.tensors.build import in_float32
from meristem.growth.tensors.rounding import is_half


class MeanOfParents(nn.Module):
    """The weighted mean of the logits of several networks, as one network. A fusion is measured against it.

    Networks without logits are averaged in every output. A mean of log-probabilities is normalised again, as
    the output of a fused network is.
    """

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.models, self.shares = nn.ModuleList(models), tuple(weights)

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        from meristem.anatomy.inputs import outputs_of

        found = [outputs_of(model, inputs) for model in self.models]
        names = ["logits"] if all("logits" in outputs for outputs in found) else list(found[0])
        return {name: self._mean([outputs[name] for outputs in found]) for name in names if _alike(name, found)}

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        mean = sum(share * output for share, output in zip(self.shares, outputs, strict=True))
        assert isinstance(mean, Tensor)
        return mean.log_softmax(-1) if all(map(_are_log_probabilities, outputs)) else mean


def _alike(name: str, found: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether the outputs of this name have one shape in all parents. Hidden states have the width of their
    network.
    """
    return len({outputs[name].shape if name in outputs else None for outputs in found}) == 1


def _are_log_probabilities(output: Tensor) -> bool:
    if not output.dim() or output.shape[-1] < 2 or bool((output > 0).any()):
        return False
    total = output.double().logsumexp(-1)
    return bool((total.abs() < 1e-4).all())


def certify(
    plans: Sequence[GrowthPlan],
    models: Sequence[nn.Module],
    weights: Sequence[float],
    fused: nn.Module,
    inputs: Mapping[str, Tensor] | None,
    fuse_again: Callable[[Sequence[nn.Module]], nn.Module],
) -> Certificate:
    """As `growth.certify`: measure the stored weights and, if they are in half precision, the same fusion
    without rounding.
    """
    certificate = verify(MeanOfParents(models, weights), fused, inputs)
    if not is_half(stored_dtype(fused)) or certificate.holds_as_stored:
        return certificate
    unrounded = {id(model): in_float32(plan.source, model) for plan, model in zip(plans, models, strict=True)}
    exact = [unrounded[id(model)] for model in models]
    error, tolerance = error_in_high_precision(MeanOfParents(exact, weights), fuse_again(exact), inputs)
    return replace(certificate, unrounded_relative_error=error, unrounded_tolerance=tolerance)
