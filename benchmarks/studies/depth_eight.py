"""Study 2, at eight layers."""

from __future__ import annotations

from benchmarks.studies.depth import networks, study
from benchmarks.studies.study import Setting, Tune

STUDY = study(
    "depth_eight",
    "Growth in depth, eight layers",
    8,
    settings={
        "medium": Setting(
            networks=networks(64, 2, 8), budgets=(10, 20), tune=Tune(budget=20, seeds=(100,)), sequence_length=128
        ),
        "large": Setting(
            networks=networks(192, 4, 8), budgets=(10, 20), tune=Tune(budget=20, seeds=(100,)), sequence_length=256,
            batch_size=64, trainer={"bf16": True}, sides=("stacking_4x", "gradual_stacking"),
        ),
    },
)  # fmt: skip
