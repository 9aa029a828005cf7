"""`meristem plan` as advice: the method that suits, what was measured of it, and what to be wary of."""

from __future__ import annotations

import json
from pathlib import Path

import pico
import pytest
from command_line import here

import meristem as ms
from benchmarks.studies.evidence import PLACE
from meristem.recipes.advice import advise, suggested
from meristem.recipes.costs import NetworkCost, routes

ROOT = Path(__file__).parents[2]


def advice(methods, sizes, tokens, parameters=(25_000, 100_000), unit="tokens", moment=None):
    costs = [NetworkCost(n, 6.0 * n, 16 * n) for n in parameters]
    return advise(methods, "", sizes, parameters, tokens, routes(*costs, tokens, moment), unit, moment is not None)


@pytest.mark.parametrize(
    "options, method",
    [
        ({"width": 2}, "hypercloning"),
        ({"depth": 2}, "stacking"),
        ({"num_hidden_layers": 6}, "stacking"),
        ({"width": 2, "depth": 2}, "hypercloning,stacking"),
        ({"hidden_size": 48}, "lemon"),
        ({"hidden_size": 48, "num_hidden_layers": 6}, "lemon"),
        ({"num_experts": 8}, "upcycle"),
    ],
)
def test_the_method_follows_from_the_target(options, method):
    assert suggested(options)[0] == method


def test_warnings_name_factors_lengths_and_what_is_lost():
    told = advice([ms.Stacking(depth=4)], {"layers": (2, 8), "hidden": (32, 64)}, 3_000_000).warnings
    assert len(told) == 3
    assert "a factor above 2: layers 2 -> 8 (4x)." in told[0]
    assert told[1].startswith("30 tokens for each parameter: beyond about 20")
    assert told[2].startswith("stacking does not keep the function")
    assert (
        advice([ms.HyperCloning(width=2)], {"hidden": (32, 64)}, 2_000_000).warnings == ()
    )  # 20 exactly, and a factor of 2
    (short,) = advice([ms.HyperCloning(width=2)], {}, 1_000_000).warnings
    assert short.startswith("10 tokens for each parameter: at 10 and below, the small network trained on was better")
    (other,) = advice([ms.Upcycle(num_experts=2)], {}, 9_000_000, unit="examples").warnings
    assert "this network reads examples" in other


def test_the_moment_is_the_laws_or_the_users():
    free, fixed = (advice([ms.HyperCloning(width=2)], {}, 2_000_000, moment=moment) for moment in (None, 500_000))
    assert free.when.startswith("after 1,000,000 tokens of the small network, 50% of the budget (G_stack's law")
    assert "at most half of the budget" in free.when
    assert fixed.when == "after 500,000 tokens of the small network, 25% of the budget, as asked for"


def test_rates_follow_the_least_careful_method():
    exact, both = advice([ms.IdentityBlocks(num_hidden_layers=4)], {}, 10**6), advice([ms.HyperCloning(width=2), ms.Stacking(depth=2)], {}, 10**6)  # fmt: skip
    assert (exact.rate, exact.warmup) == ("the last one of the run", "short")
    assert (both.rate, both.warmup) == ("as from scratch", "as from scratch")


def test_the_evidence_is_that_of_the_nearest_length_whose_gate_passes():
    """The growth study's rows of HyperCloning, grown at 8: budgets 40 and 60 pass the gate, 10 and 20 do not."""
    (row,) = [
        e for e in json.loads((ROOT / PLACE).read_text()) if (e["method"], e["study"]) == ("hypercloning", "growth")
    ]
    for tokens, budget in ((600_000, "40"), (3_600_000, "40"), (10**8, "60")):
        (said,) = advice([ms.HyperCloning(width=2)], {}, tokens).evidence
        assert f"{budget} bytes for each parameter: loss {row['budgets'][budget]['loss'][0]:+.4f}" in said
        assert row["budgets"][budget]["saved"] in said
    (none,) = advice([ms.AKI(width=2)], {}, 10**6).evidence
    assert none.startswith("aki: no Meristem study has a result for it yet")


def test_the_evidence_of_a_method_is_that_of_all_sides_that_use_it():
    """The study of depth stacks by four and by two, that of mixtures upcycles in three ways."""
    for method, sides in (
        (ms.Stacking(depth=4), ["stacking_4x", "stacking_2x"]),
        (ms.Upcycle(num_experts=4), ["upcycled", "upcycled", "drop_upcycled", "copies"]),
    ):
        found = advice([method], {}, 10**6).evidence[0].splitlines()
        assert [line.partition(":")[0] for line in found] == [f"{method.name} ({side})" for side in sides]


def test_the_command_line_advises(tmp_path, capsys):
    pico.build("llama").save_pretrained(tmp_path / "small")
    assert here("plan", tmp_path / "small", "--depth", 3, "--tokens", "3M") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "method: stacking: copies of the blocks learn fastest" in said
    assert "warning: a factor above 2: layers 2 -> 6 (3x)" in said
    assert here("plan", tmp_path / "small", "--num-experts", 4, "--tokens", "1M", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["advice"]["method"] == "upcycle"
    assert answer["large"]["parameters"] > answer["small"]["parameters"]
    assert here("plan", tmp_path / "small", "--width", 2, "--tokens", "1M", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sizes"]["hidden"] == [32, 64]
    assert answer["large"]["parameters"] == 67264


def test_a_mixture_reads_its_study_at_its_own_bytes_for_each_parameter():
    """The study's budgets count the dense network's parameters: 80 for each of its 26,232 are about 38 for each of the mixture's 54,264. A
    token of whole copies costs more, and there are more of them.
    """
    rows = {entry["side"]: entry for entry in json.loads((ROOT / PLACE).read_text()) if entry["study"] == "mixture"}
    assert rows["drop_upcycled"]["budgets"]["80"]["bytes"] == pytest.approx(38, abs=1)
    assert rows["copies"]["budgets"]["80"]["bytes"] == pytest.approx(17.0, abs=0.2)
    said = advice([ms.Upcycle(num_experts=8)], {}, 3_800_000).evidence[0].splitlines()
    (line,) = [line for line in said if "(drop_upcycled)" in line]
    assert f"bytes for each parameter: loss {rows['drop_upcycled']['budgets']['80']['loss'][0]:+.4f}" in line
