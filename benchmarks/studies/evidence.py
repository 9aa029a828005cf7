"""What `meristem plan` says of a method: each claim's figures at every budget, as data beside the package's code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.results import Finding
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
    """One entry for each side of a study, at one setting, of which something is claimed: the first claim, preferably one against the baseline,
    and the figures against the baseline.
    """
    entries = []
    first: dict[str, Claim] = {}
    for claim in sorted(finding.study.claims_of(finding.setting), key=lambda claim: claim.versus is not None):
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
                    "text": finding.setting.data,
                    "parameters": _parameters(finding, claim.side),
                    "target_parameters": _parameters_of_target(finding),
                    "networks": _networks(finding),
                    "verdict": finding.verdict(claim),
                    "gates": {f"{budget:g}": passes for budget, passes in finding.gates.items()},
                    "budgets": {f"{budget:g}": figures for budget, figures in budgets.items()},
                }
            )
    return entries


def _parameters(finding: Finding, side: str) -> int:
    """Of the network that a side ends with."""
    return next(row["parameters"] for row in finding.rows if row["side"] == side and "parameters" in row)


def _parameters_of_target(finding: Finding) -> int:
    """Of the network whose parameters are the unit of the budgets."""
    ends = [side.name for side in finding.study.sides if side.stages[-1].network == finding.setting.target]
    return next(row["parameters"] for row in finding.rows if row["side"] in ends and "parameters" in row)


def _at(finding: Finding, side: str, budget: float) -> dict[str, Any] | None:
    gap = finding.gap(side, budget)
    if gap is None or gap.seeds < LEAST_SEEDS:
        return None
    return {"loss": [round(x, 4) for x in (gap.mean, gap.low, gap.high)], "saved": str(finding.saved(side, budget))}


def _networks(finding: Finding) -> str:
    return ", ".join(
        f"{name} {model.get('model_type')} {layers_of(model)} x {model.get('hidden_size', '?')}"
        for name, model in finding.setting.networks.items()
    )
