"""All generated pages of studies and trials, and what `meristem plan` knows of them, from rows alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.studies.catalogue import studies
from benchmarks.studies.evidence import PLACE, evidence_of
from benchmarks.studies.page import study_page, summary
from benchmarks.studies.picture import draw
from benchmarks.studies.results import Finding, findings
from benchmarks.trials.catalogue import trials
from benchmarks.trials.page import summary_rows, trial_page
from benchmarks.trials.results import found_of

ROWS = Path("results") / "studies"
HEAD = "<!-- Written by `python -m benchmarks report` from results/studies/*.jsonl; do not edit. -->\n\n"


def measured(root: Path) -> dict[str, list[Finding]]:
    """What the rows of `root` say of each study."""
    return {name: findings(study, root / ROWS) for name, study in studies().items()}


def pages(root: Path, found: dict[str, list[Finding]]) -> dict[Path, str]:
    """`docs/studies.md`, `docs/studies/NAME.md`, and the package's evidence.json, as the rows of `root` would have them now."""
    rows, docs = root / ROWS, root / "docs" / "studies"
    tried = {trial.name: found_of(trial, rows) for trial in trials().values()}
    made = {docs / f"{name}.md": study_page(study, found[name], docs, rows) for name, study in studies().items()}
    made |= {docs / f"{name}.md": trial_page(trial, tried[name]) for name, trial in trials().items()}
    more = [line for name, trial in trials().items() for line in summary_rows(trial, tried[name])]
    made[root / "docs" / "studies.md"] = summary(found, more)
    return {file: HEAD + page for file, page in made.items()} | {root / PLACE: evidence_of(found)}


def write_pages(root: Path) -> None:
    """Write `pages`, and the pictures `results/studies/NAME.SETTING.png`."""
    (root / "docs" / "studies").mkdir(parents=True, exist_ok=True)
    found = measured(root)
    for file, text in pages(root, found).items():
        file.write_text(text, encoding="utf-8")
    for name, own in found.items():
        for finding in own:
            draw(finding, root / ROWS / f"{name}.{finding.name}.png")
