"""What `meristem plan` says of a method: each claim's figures at every budget, as data beside the package's code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.results import Finding
from benchmarks.studies.rows import Row
from benchmarks.studies.statistics import LEAST_SEEDS
from benchmarks.studies.study import Claim, layers_of

PLACE = Path("src") / "meristem" / "recipes" / "evidence.json"
METHODS = {
    "copies": "upcycle",
    "drop_upcycled": "upcycle",
    "gradual": "gradual_stacking",
    "shrink_perturb": "shrink_zero_pad_perturb",
    "stacking_2x": "stacking",
    "stacking_4x": "stacking",
    "upcycled": "upcycle",
}  # where a side is not named as its method


def evidence_of(found: Mapping[str, Sequence[Finding]]) -> str:
    """All claims that are measured on enough seeds, as JSON."""
    rows = [row for findings in found.values() for finding in findings for row in evidence(finding)]
    return json.dumps(rows, indent=1) + "\n"


def evidence(finding: Finding) -> list[dict[str, Any]]:
    """One entry for each side of a study, at one setting, of which something is claimed: the first claim, preferably one against the baseline
    with everything counted, and the figures against the baseline.
    """
    entries = []
    first: dict[str, Claim] = {}
    for claim in sorted(finding.study.claims_of(finding.setting), key=lambda own: (own.versus is not None, own.given)):
        first.setdefault(claim.side, claim)
    for claim in first.values():
        budgets = {
            budget: figures for budget in finding.setting.budgets if (figures := _at(finding, claim.side, budget))
        }
        if budgets:
            method, _, moment = claim.side.partition("@")
            entries.append(
                {
                    "study": finding.study.name,
                    "setting": finding.name,
                    "side": method,
                    "method": METHODS.get(method, method),
                    "grown_at": float(moment) if moment else None,
                    "claim": claim.says,
                    "versus": claim.versus,
                    "given": claim.given,
                    "text": finding.setting.data,
                    "networks": _networks(finding),
                    "verdict": finding.verdict(claim),
                    "small_ahead": _small_ahead(finding),
                    "gates": {f"{budget:g}": passes for budget, passes in finding.gates.items()},
                    "budgets": {f"{budget:g}": figures for budget, figures in budgets.items()},
                }
            )
    return entries


def _small_ahead(finding: Finding) -> list[float]:
    """The budgets at which a small network is shown to be ahead of the large one."""
    gate = finding.study.gate
    gaps = {b: [finding.gap(gate.better, b, to=other) for other in gate.worse] for b in finding.setting.budgets}
    return [budget for budget, own in gaps.items() if any(gap is not None and gap.is_above for gap in own)]


def _at(finding: Finding, side: str, budget: float) -> dict[str, Any] | None:
    gap = finding.gap(side, budget)
    if gap is None or gap.seeds < LEAST_SEEDS:
        return None
    return {
        "bytes": round(_bytes(finding, side, budget), 1),
        "loss": [round(x, 4) for x in (gap.mean, gap.low, gap.high)],
        "saved": str(finding.saved(side, budget)),
    }


def _bytes(finding: Finding, side: str, budget: float) -> float:
    """For each parameter of the network that the side ends with, if it read them from random numbers on, with the budget's compute. Another
    network's parameters may be the unit of the budget: the dense one's, where a mixture is grown from it.
    """
    target, ends = finding.setting.target, finding.study.side(side).stages[-1].network
    if ends == target:
        return budget

    def measured(name: str) -> Row:
        return next(r for r in finding.rows if (r["side"], r["budget"]) == (name, budget) and r["loss"] is not None)

    unit = measured(next(own.name for own in finding.study.sides if [s.network for s in own.stages] == [target]))
    row = measured(side)
    tokens = row["tokens"] - row["parents_flops"] / (unit["flops"] / unit["tokens"])
    price = (row["flops"] - row["parents_flops"]) / tokens
    return row["flops"] / price / row["parameters"]


def _networks(finding: Finding) -> str:
    return ", ".join(
        f"{name} {model.get('model_type')} {layers_of(model)} x {model.get('hidden_size', '?')}"
        for name, model in finding.setting.networks.items()
    )
