"""Pages from rows alone: one summary table over all studies, and a page for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.catalogue import studies
from benchmarks.studies.nodes import is_readable
from benchmarks.studies.results import Finding
from benchmarks.studies.statistics import LEAST_SEEDS
from benchmarks.studies.study import Claim, Study, layers_of
from benchmarks.support.markdown import table

PROTOCOL = """\
Every side spends the same counted FLOPs, all of its parents included. The learning rate is constant, and falls to zero over the last
{decay:.0%} of the budget (1 - sqrt). Each figure is therefore that of a finished network, and one stable run serves all budgets. Every side's rate comes
from the same search, at a budget of {tune_budget:g}, on seed{s} {tune_seeds} and on a split that no result uses: {rates}, then further by factors of two at
either edge while the edge is best. The cost of the search ({tune_flops:.1f} TFLOPs in all) is not counted in the sides' compute. {again}
Parents train at the rate that was found for their own side at {tune_budget:g}.{shared} Reported seeds: {seeds}.
Sides of one seed share their parents and the order of the data, so that their effects are correlated.
A budget of b means b tokens for each parameter of the target network (`{target}`), trained from random numbers ({unit:.3f} TFLOPs for each
unit of b).

Data: `{data}`, {task}, bytes, sequences of {length}, batches of {batch}. Networks: {networks}."""


def summary(found: dict[str, list[Finding]], more: Iterable[Sequence[str]] = ()) -> str:
    """Claim, gate, effect, verdict: one line for each claim of each study, at the largest setting that has a result; `more` lines of trials."""
    lines = [
        "# Studies: what is claimed, and what we measured",
        "",
        "Each line is a published claim. It is tested where its gate passes: the gate is the condition without which the claim can be neither",
        "confirmed nor refuted.",
        "",
        "- *Effect*: the loss minus the baseline's at equal compute, with the bootstrap's interval over seeds. Below zero is better.",
        "- *Saved*: the share of the baseline's compute that is saved to the same loss.",
        "",
        "Compute includes all parents. Budgets are in bytes for each parameter of the target. With three seeds the interval reaches roughly from",
        "the lowest to the highest of the three differences. Read it as the spread of the seeds, not as a level of 95 %. An effect is shown where the",
        "interval leaves out zero and, of up to five seeds, all have the same sign and a one-sided t-test says p < 0.05. The held-out text is the same for",
        "all, and no interval contains its sampling error: read an effect of a few thousandths of a nat as none. Sides of one study share seeds and",
        "parents, so that their effects are correlated: a study is one piece of evidence, not one for each line.",
        "",
        "A verdict is about the claim: against the side, in the direction and of the size that it names. *In part* is a lower loss that saves less than",
        "is claimed: the interval of the saving ends below the claim.",
        "",
        "A study is one file in `benchmarks/studies/`: question, gate, sides (stages that are recipe nodes), settings. Its results are the rows of",
        "`results/studies/NAME.SETTING.jsonl`, one for each side, seed, budget and rate. `python -m benchmarks run NAME` measures the missing rows, and",
        "never measures an existing row again, on any machine. `python -m benchmarks report` writes these pages.",
        "",
        "A trial trains to the end instead. Its file is in `benchmarks/trials/`. Its effect is the difference in the named figure, usually the test",
        "error, and it has no compute to save.",
        "",
        *table(
            ["study", "claim", "gate", "effect", "saved", "verdict"],
            sorted([*_summary_rows(found), *more], key=_untested),
        ),
    ]
    return "\n".join(lines) + "\n"


def _untested(row: Sequence[str]) -> int:
    """0 for what was tested, 1 for what its gate does not allow to test, 2 for what was not measured: the order of the summary."""
    return 2 if row[-1] in ("not run yet", "not measured yet") else int(row[-1].startswith("not testable"))


def _summary_rows(found: dict[str, list[Finding]]) -> Iterable[list[str]]:
    for study in studies().values():
        link = f"[{study.title}](studies/{study.name}.md)"
        if not found[study.name]:
            yield [link, "", "not measured", "", "", "not run yet"]
        for finding in found[study.name]:
            where = f"{link} ({finding.name})"
            if finding.tested_at is None:
                failed = finding.gate_is_measured
                gate = f"{study.gate.says}: fails" if failed else "not measured yet"
                said = "not testable at this size" if failed else "not measured yet"
                yield [where, f"{len(study.claims_of(finding.setting))} claims", gate, "", "", said]
                continue
            for claim in study.claims_of(finding.setting):
                yield [
                    where,
                    f"`{claim.side}`: {claim.says}",
                    finding.gate_in_words(),
                    *_effect(finding, claim),
                    finding.verdict(claim),
                ]


def _effect(finding: Finding, claim: Claim) -> list[str]:
    budget = finding.tested_at
    gap = finding.effect_of(claim, budget) if budget is not None else None
    if budget is None or gap is None:
        return ["", ""]
    saved = "" if claim.versus else str(finding.saved(claim.side, budget).counting(claim.given))
    how = f", against `{claim.versus}`" if claim.versus else ", parents given" if claim.given else ""
    return [f"{gap} at {budget:g}{how}", saved]


def study_page(study: Study, found: Sequence[Finding], docs: Path, rows: Path) -> str:
    """Question, gate, protocol, table, verdict, limits; the largest setting first."""
    parts = [
        f"# {study.title}",
        "",
        f"**Question.** {study.question}",
        "",
        f"**Gate.** {study.gate.says[0].upper()}{study.gate.says[1:]}.",
    ]
    if not found:
        parts += ["", "Not run yet."]
    for finding in found:
        parts += ["", f"## Setting `{finding.name}`", "", _protocol(finding), "", *_gatetable(finding)]
        if finding.gate_is_measured and finding.tested_at is None:
            parts += ["", "**Not testable at this size.**"]
            continue
        picture = os.path.relpath(rows / f"{study.name}.{finding.name}.png", docs)
        parts += [
            "",
            f"![loss against compute]({picture})",
            "",
            *_results(finding),
            *_given(finding),
            "",
            *_verdicts(finding),
        ]
    return "\n".join([*parts, "", "**Limits.** " + " ".join(study.limits), ""])


def _protocol(finding: Finding) -> str:
    setting, tune = finding.setting, finding.setting.tune
    tuning = sum(row.get("flops", 0) for row in finding.rows if row["split"] == "tune") / 1e12
    units = [r["flops"] / r["budget"] for r in finding.rows if r["side"] == finding.study.baseline and r.get("flops")]
    return PROTOCOL.format(
        target=setting.target, decay=setting.decay, tune_budget=tune.budget, s="s" * (len(tune.seeds) > 1), tune_seeds=_listed(tune.seeds),
        shared=_shared(finding), again=_again(finding), rates=_listed(f"{rate:g}" for rate in tune.rates), tune_flops=tuning, seeds=_listed(setting.seeds),
        unit=sum(units) / max(1, len(units)) / 1e12, data=setting.data, task=setting.task, length=setting.sequence_length,
        batch=setting.batch_size, networks="; ".join(_network(name, entries) for name, entries in setting.networks.items()),
    )  # fmt: skip


def _again(finding: Finding) -> str:
    """What was done about longer budgets than the search's."""
    longer = finding.setting.tune.again
    if longer is None:
        return "At longer budgets than the search's, another rate may be better, for any side."
    return (
        f"At a budget of {longer:g} the rate found is held against its half, and so on down while the half is better. Shorter budgets are read at the rate "
        "that this leaves."
    )


def _shared(finding: Finding) -> str:
    """Which sides have no search of their own."""
    sides = [side for side in finding.study.sides_of(finding.setting) if side.rate_of]
    said = [f"`{side.name}` that of `{side.rate_of}`" for side in sides]
    return f" Without a search of its own, each takes the rate of another: {', '.join(said)}." if said else ""


def _network(name: str, entries: Any) -> str:
    width = next(entries[key] for key in ("hidden_size", "d_model") if key in entries)
    return f"{name}, {entries['model_type']} of {layers_of(entries)} layers x {width} wide"


def _gatetable(finding: Finding) -> list[str]:
    gate, rows = finding.study.gate, []
    for budget, passes in finding.gates.items():
        gaps = [finding.gap(gate.better, budget, to=other) for other in gate.worse]
        if all(gaps):
            seeds = min(gap.seeds for gap in gaps if gap)
            says = "passes" if passes else "fails" if seeds >= LEAST_SEEDS else "open"
            rows.append([f"{budget:g}", *map(str, gaps), str(seeds), says])
    return table(["budget", *(f"{gate.better} minus {other}" for other in gate.worse), "seeds", "gate"], rows)


def _results(finding: Finding) -> list[str]:
    """Loss minus the baseline's, and compute saved, by side and budget; bold where the gate passes."""
    budgets, base = finding.setting.budgets, finding.study.baseline
    lines = []
    for side in finding.study.sides:
        cells = []
        for budget in budgets:
            gap = finding.gap(side.name, budget)
            if gap is None:
                cells.append("" if is_readable(finding.setting, side, budget) else "-")
            elif side.name == base:
                own = [
                    r["loss"]
                    for r in finding.rows
                    if r["side"] == base and r["budget"] == budget and r["split"] == "eval"
                ]
                cells.append(f"loss {sum(own) / len(own):.4f}")
            else:
                seeds = f" ({gap.seeds} seeds)" if gap.seeds < 3 else ""
                cells.append(f"{gap}, {finding.saved(side.name, budget)}{seeds}")
        rates = sorted(
            {f"{row['rate']:g}" for row in finding.rows if row["side"] == side.name and row["split"] == "eval"}
        )
        if any(cells) and rates:
            lines.append([f"`{side.name}`", ", ".join(rates), *cells])
    head = [f"budget {budget:g}" + ("" if finding.gates[budget] else " (gate not passed)") for budget in budgets]
    return table(["side", "rate", *head], lines)


def _given(finding: Finding) -> list[str]:
    """The same losses where the parents cost nothing, against the baseline after as much training as the side had without them."""
    budgets = finding.setting.budgets
    sides = [side.name for side in finding.study.sides if side.has_parents]
    gaps = {side: [finding.given(side, budget) for budget in budgets] for side in sides}
    lines = [[f"`{side}`", *("" if gap is None else str(gap) for gap in own)] for side, own in gaps.items() if any(own)]
    if not lines:
        return []
    head = ["with the parents given", *(f"budget {budget:g}" for budget in budgets)]
    return ["", "If the parents are there already and cost nothing:", "", *table(head, lines)]


def _verdicts(finding: Finding) -> list[str]:
    budget = finding.tested_at
    if budget is None:
        return ["**Verdict.** None yet: the gate is not measured on three seeds."]
    said = [_said(finding, claim, budget) for claim in finding.study.claims_of(finding.setting)]
    return [
        f"**Verdict** at {budget:g} bytes for each parameter, the largest budget at which the gate passes:",
        "",
        *said,
    ]


def _said(finding: Finding, claim: Claim, budget: float) -> str:
    """One line: the claim, the verdict, the effect, the saving, and that with parents given."""
    line, saved = f"- `{claim.side}` ({claim.says}): **{finding.verdict(claim)}**", finding.saved(claim.side, budget)
    gap, given = finding.gap(claim.side, budget), finding.given(claim.side, budget)
    if gap is None:
        return line
    told = [f"loss {gap}, saved: {saved}"]
    if claim.versus and (other := finding.effect_of(claim, budget)):
        told.insert(0, f"against `{claim.versus}` {other}")
    if given and finding.study.side(claim.side).has_parents:
        share = f", saved: {saved.given.mean:.0%}" if saved.given else ""
        told.append(f"with the parents given {given}{share}")
    return "; ".join([line, *told])


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
