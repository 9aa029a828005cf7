"""What was measured of two networks, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """The measurement of two networks. `holds` compares `relative_error` with `tolerance`.

    Attributes:
        absolute_error: max |difference| of the output that differs most, with the stored weights, computed in
            `dtype`.
        relative_error: max |difference| / max |value| of that output.
        kl_divergence: KL(small || big) of the logits in nats, a mean over positions. The loss is higher by it
            on texts that the small network writes. None for networks without logits.
        top1_agreement: the share of positions with the same argmax. None for networks without logits.
        dtype: the dtype in which both networks computed.
        tolerance: the bound for `relative_error`: that of `dtype`, plus `rounding_allowance`.
        inputs: which inputs were used, and whether they were given or random.
        device: the device on which both ran.
        stored_dtype: the dtype of the weights.
        rounding_allowance: the error that rounding weights to a half-precision `stored_dtype` may cause. 0
            for other dtypes, and if the stored weights agree without it.
        own_dtype_relative_error: the relative error with both networks computing in `stored_dtype`. None if
            that cannot run.
        unrounded_relative_error: the relative error of the same growth with weights that are not rounded,
            judged by `unrounded_tolerance`. None if the stored weights agree already, or if only the two
            stored networks are known.
        unrounded_tolerance: the bound for `unrounded_relative_error`.
        blocks: None if both networks ran whole. Otherwise the blocks of the small network that ran, by the
            path of their list, with the blocks of the large one that are made from them. Every tensor was
            then checked by itself (`growth.sampled`).
        new_tokens: the number of tokens (or other classes) that only the large network has. `relative_error`
            leaves them out. None if it has no more.
        new_token_probability: the probability that the large network gives to all new tokens together, a mean
            over positions. Each position's raises its loss by -log(1 - probability), which `kl_divergence`
            counts.
    """

    absolute_error: float
    relative_error: float
    kl_divergence: float | None
    top1_agreement: float | None
    dtype: str
    tolerance: float
    inputs: str
    device: str
    stored_dtype: str
    rounding_allowance: float = 0.0
    own_dtype_relative_error: float | None = None
    unrounded_relative_error: float | None = None
    unrounded_tolerance: float | None = None
    blocks: Mapping[str, list[int]] | None = None
    new_tokens: int | None = None
    new_token_probability: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the networks agree as far as their dtype allows, and give finite results in it."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        return (
            self.relative_error <= self.tolerance
            and (own is None or math.isfinite(own))
            and (unrounded is None or self.unrounded_tolerance is None or unrounded <= self.unrounded_tolerance)
        )

    @property
    def holds_as_stored(self) -> bool:
        """Whether the stored weights agree without an allowance for rounding. Nothing is then left to prove
        without rounding.
        """
        return self.relative_error <= self.tolerance - self.rounding_allowance

    @property
    def holds_unrounded(self) -> bool:
        """Whether the growth agrees before its weights are rounded to the stored dtype, if that was
        measured.
        """
        error, tolerance = self.unrounded_relative_error, self.unrounded_tolerance
        return error is not None and tolerance is not None and error <= tolerance

    def summary(self) -> str:
        """One line for people."""
        own, unrounded = self.own_dtype_relative_error, self.unrounded_relative_error
        stored = f", weights in {self.stored_dtype}" if self.rounding_allowance else ""
        what = "output" if self.kl_divergence is None else "logit"
        line = f"relative {what} error {self.relative_error:.1e} (tolerance {self.tolerance:.0e}, {self.dtype}{stored})"
        if self.kl_divergence is not None:
            line += f", KL {self.kl_divergence:.1e}, top-1 agreement {self.top1_agreement:.1%}"
        if self.new_tokens is not None:
            line += f"; {self.new_tokens} new tokens, not compared, take {self.new_token_probability:.2%} of the probability"
        if unrounded is not None:
            line += f"; before rounding, {unrounded:.1e} (tolerance {self.unrounded_tolerance:.0e})"
        if self.blocks is not None:
            some = "; ".join(f"{', '.join(map(str, blocks))} of {path}" for path, blocks in self.blocks.items())
            line += f"; of blocks {some}, and every tensor by algebra"
        if own is not None and not math.isfinite(own):
            line += f"; run in {self.stored_dtype}, a network gives results that are not finite"
        return line

    def as_dict(self) -> dict[str, Any]:
        """All fields and the verdict, for JSON."""
        return {"holds": self.holds, **asdict(self)}
