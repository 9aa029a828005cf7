"""All generated pages of studies and trials, and what `meristem plan` knows of them, from rows alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.catalogue import studies
from benchmarks.studies.evidence import write_evidence
from benchmarks.studies.page import study_page, summary
from benchmarks.studies.picture import draw
from benchmarks.studies.results import findings
from benchmarks.trials.catalogue import trials
from benchmarks.trials.page import summary_rows, trial_page
from benchmarks.trials.results import found_of

HEAD = "<!-- Written by `python -m benchmarks report` from results/studies/*.jsonl; do not edit. -->\n\n"


def write_pages(root: Path) -> None:
    """`docs/studies.md`, `docs/studies/NAME.md`, `results/studies/NAME.SETTING.png`, and the package's evidence.json."""
    rows, docs = root / "results" / "studies", root / "docs" / "studies"
    docs.mkdir(parents=True, exist_ok=True)
    found = {study.name: findings(study, rows) for study in studies().values()}
    for study in studies().values():
        for finding in found[study.name]:
            draw(finding, rows / f"{study.name}.{finding.name}.png")
        page = study_page(study, found[study.name], docs, rows)
        (docs / f"{study.name}.md").write_text(HEAD + page, encoding="utf-8")
    tried = {trial.name: found_of(trial, rows) for trial in trials().values()}
    for trial in trials().values():
        (docs / f"{trial.name}.md").write_text(HEAD + trial_page(trial, tried[trial.name]), encoding="utf-8")
    more = [line for trial in trials().values() for line in summary_rows(trial, tried[trial.name])]
    (root / "docs" / "studies.md").write_text(HEAD + summary(found, more), encoding="utf-8")
    write_evidence(found, root)
