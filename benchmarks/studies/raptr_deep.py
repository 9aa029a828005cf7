"""Study 5, at the depth of the paper: twelve layers."""

from __future__ import annotations

from benchmarks.studies.raptr import networks, study
from benchmarks.studies.study import Setting, Tune, llama

STUDY = study(
    "raptr_deep",
    "RAPTR, twelve layers",
    [6, 8, 10, 12],
    settings={
        "medium": Setting(
            networks=networks(llama, 64, 2, 12), budgets=(10, 20), tune=Tune(budget=10, seeds=(100,)), sequence_length=128
        ),
        "large": Setting(
            networks=networks(llama, 192, 4, 12), budgets=(5, 10, 20), tune=Tune(budget=10, seeds=(100,)), sequence_length=256,
            batch_size=64, trainer={"bf16": True},
        ),
    },
)  # fmt: skip
