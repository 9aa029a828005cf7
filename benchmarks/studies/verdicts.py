"""A claim against its measured effect, in a few words."""

from __future__ import annotations

from benchmarks.studies.statistics import LEAST_SEEDS, Saving
from benchmarks.studies.study import Claim
from benchmarks.support.statistics import Effect

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "no difference shown"
UNMEASURED = "not measured yet"


def verdict(claim: Claim, gap: Effect | None, below: str, above: str, saved: Saving | None = None) -> str:
    """Whether the claim holds.

    Args:
        gap: the side's figure minus that of the side it is held against; lower is better.
        below, above: what the side has then: "a lower loss", "a higher loss".
        saved: what the side saves, for a claim of a saving. The claim holds where the interval reaches the share that is claimed.
    """
    if gap is None or gap.seeds < LEAST_SEEDS:
        return UNMEASURED
    if not (gap.is_below or gap.is_above):
        return OPEN
    found = below if gap.is_below else above
    if gap.is_below == (claim.direction == "behind"):
        return f"{FAILS}: {found}"
    if gap.is_above and claim.direction == "equal":
        return f"{FAILS}: {found}"
    own = None if saved is None else saved.counting(claim.given).effect
    if claim.saves is not None and (own is None or own.mean < claim.saves):
        if own is not None and saved is not None and saved.is_bound:
            return f"in part: {found}; at least {own.mean:.0%} of the compute saved, the {claim.saves:.0%} that are claimed not shown"
        much = "an unknown share" if own is None else f"{own.mean:.0%}"
        how = HOLDS if own is not None and own.high >= claim.saves else "in part"
        return f"{how}: {found}, {much} of the compute saved where {claim.saves:.0%} is claimed"
    return f"{HOLDS}: {found}"
