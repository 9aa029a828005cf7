"""All trials, by name."""

from __future__ import annotations

from importlib import import_module

from benchmarks.trials.trial import Trial

NAMES = ("majority", "majority_text", "incubation", "adanet", "energynet", "likelihood")


def trials() -> dict[str, Trial]:
    """Each is one file of this folder, which names it TRIAL."""
    return {name: import_module(f"benchmarks.trials.{name}").TRIAL for name in NAMES}
