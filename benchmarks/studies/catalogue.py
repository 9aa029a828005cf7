"""All studies, by name."""

from __future__ import annotations

from importlib import import_module

from benchmarks.studies.study import Study

NAMES = ("growth", "best", "best_six", "fusion", "depth", "depth_eight", "raptr", "raptr_deep", "targets", "mixture")


def studies() -> dict[str, Study]:
    """Each is one file of this folder, which names it STUDY."""
    return {name: import_module(f"benchmarks.studies.{name}").STUDY for name in NAMES}
