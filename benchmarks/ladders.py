"""From each size of a public family to the next: which rungs grow exactly, and why the others do not.

    python benchmarks/ladders.py                    # all families, a few minutes on one core
    python benchmarks/ladders.py --small            # three of them
    python benchmarks/ladders.py --families Qwen3 T5             # only these; with --update their rows replace the known ones

Sizes are those of the published configs, widths and layers divided by numbers that the table states, numbers of heads as they
are, weights random. Each rung grows to the next one's config (`ms.grow(model, like=config)`), is saved, loaded by stock
transformers, and compared in float32: exact means 1e-5 of the largest logit. Writes results/ladders.json and docs/ladders.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import textwrap
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
SMALL = ("SmolLM2", "Qwen3", "ViT")
# The proofs of docs/theory.md, section 7: (words of a reason, letter, what it is about), the first that fits.
PROOFS = (
    (r"(word_embeddings_layernorm|pre_layrnorm) subtracts the mean", "B", "the output of a norm is the stream"),
    (r"\(post-norm\), so no padding of it is silent", "A", "post-norm, no whole multiple"),
    (r"through a nonlinearity or a table", "D", "the output of a nonlinearity is the stream"),
    (r"by the angle of their outputs", "E", "towers compared by angle"),
    (r"does not hold the frequencies", "F", "rotary frequencies"),
)


def model_of(family: str, rung: str):
    """The small network of a rung, with random weights everywhere, and inputs for it."""
    import torch
    import transformers
    from support.published import FAMILIES, small_config
    from support.tiny import randomise

    from meristem.anatomy.inputs import example_inputs

    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[family][0])(small_config(family, rung)).eval()
    randomise(model)
    inputs = example_inputs(model)
    if family == "Whisper":
        inputs["decoder_input_ids"] = torch.arange(3, 11).repeat(2, 1)
    return model, inputs


def measure(family: str, rung: str, following: str) -> dict[str, Any]:
    """One row: what growing `rung` to `following` gives."""
    from support.published import small_config

    from meristem.anatomy.inputs import logits_of
    from meristem.certificates import verify
    from meristem.errors import MeristemError
    from meristem.growth import Growth
    from meristem.growth.like.config import like, rows
    from meristem.growth.proofs.expected import expected_outputs

    start = time.perf_counter()
    row: dict[str, Any] = {"family": family, "from": rung, "to": following}
    small, inputs = model_of(family, rung)
    target = small_config(family, following)
    try:
        found = like(small, target)
        growth = Growth.of(small, found.methods, inputs=inputs)
    except MeristemError as error:
        outcome = "shrinks" if "smaller on some axes" in str(error) else "refused"
        return {**row, "outcome": outcome, "reason": str(error)}
    with tempfile.TemporaryDirectory() as directory:
        growth.model.save_pretrained(directory)
        again = type(small).from_pretrained(directory).eval()
    if small.config.model_type.endswith(
        ("_text_model", "_vision_model")
    ):  # no logits: the stream, mapped to its new width
        error = verify(small, again, inputs, expected=partial(expected_outputs, growth.plans)).relative_error
    else:
        a, b = logits_of(small, inputs), logits_of(again, inputs)
        error = float((a - b).abs().max() / a.abs().max())
    expected = {name: tuple(tensor.shape) for name, tensor in type(small)(target).state_dict().items()}
    obstacles = [f"{r.axis}: {r.obstacle}" for r in rows(growth.plans[0], small, inputs) if r.obstacle]
    return {
        **row,
        "outcome": "exact" if error <= TOLERANCE else "inexact",
        "error": error,
        "promised": growth.plans[0].preserves_function,
        "targets_tensors": {name: tuple(t.shape) for name, t in again.state_dict().items()} == expected,
        "other_fields": sorted(found.fields),
        "reason": "; ".join(obstacles),
        "seconds": time.perf_counter() - start,
    }


def proof_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The letter and the subject of the proof that rules a rung out."""
    return next(((letter, about) for words, letter, about in PROOFS if re.search(words, row["reason"])), None)


def kind_of(row: dict[str, Any]) -> str:
    """What became of a rung: "exact", "cannot be exact" (docs/theory.md, section 7), "open", or "shrinks"."""
    if row["outcome"] in ("exact", "shrinks"):
        return row["outcome"]
    return "cannot be exact" if proof_of(row) else "open"


def counts(found: list[dict[str, Any]]) -> str:
    """How many rungs are exact, ruled out by which proof, and open."""
    count = Counter(kind_of(row) for row in found)
    grow = len(found) - count["shrinks"]
    allowed = grow - count["cannot be exact"]
    by_proof = Counter(proof_of(row) for row in found if kind_of(row) == "cannot be exact")
    told = (
        f"{len(found)} adjacent rungs of {len({row['family'] for row in found})} families; in {count['shrinks']} some axis shrinks. "
        f"**Of the {grow} that grow, {count['exact']} are exact ({count['exact'] / grow:.0%}), {count['cannot be exact']} are ruled out by "
        f"proof, {count['open']} are open: of the {allowed} that no proof rules out, {count['exact'] / allowed:.0%} are exact.** "
        "Ruled out means that no growth that keeps the old units in their places is exact."
    )
    lines = [
        textwrap.fill(told, 110),
        "",
        "| proof ([theory](theory.md#7-what-cannot-be-exact)) | about | rungs |",
        "|---|---|---|",
    ]
    lines += [f"| {letter} | {about} | {number} |" for (letter, about), number in sorted(by_proof.items())]  # pyright: ignore
    return "\n".join(lines)


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with the totals above."""
    from support.published import FAMILIES

    lines = [
        counts(found),
        "",
        "| family (widths, layers divided by) | rung | outcome | relative logit error | proof | why not |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        _, _, width, depth, _, _ = FAMILIES[row["family"]]
        error = f"{row['error']:.1e}" if "error" in row else ""
        reason = row["reason"].replace("|", "/") if row["outcome"] != "exact" else ""
        proof = (proof_of(row) or ("", ""))[0] if kind_of(row) == "cannot be exact" else ""
        lines.append(
            f"| {row['family']} ({width}, {depth}) | {row['from']} -> {row['to']} | {kind_of(row)} | {error} | {proof} | {reason} |"
        )
    return "\n".join(lines)


def merged(found: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The known rows with those of the families that were measured in their places."""
    from support.published import FAMILIES

    measured = {row["family"] for row in found}
    rows = [row for row in known if row["family"] not in measured] + found
    return sorted(rows, key=lambda row: list(FAMILIES).index(row["family"]))


def between(page: str, name: str, text: str) -> str:
    """The page with `text` between the two comments of this name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    from support.published import FAMILIES
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), help="only these; nothing is written")
    parser.add_argument(
        "--update", action="store_true", help="write the rows of --families beside those that are known"
    )
    parser.add_argument("--page", action="store_true", help="only the page, from results/ladders.json")
    parser.add_argument("--small", action="store_true", help="three families; nothing is written")
    arguments = parser.parse_args()
    results, page = ROOT / "results" / "ladders.json", ROOT / "docs" / "ladders.md"
    if arguments.page:
        page.write_text(between(page.read_text(), "table", table(json.loads(results.read_text()))))
        return
    chosen = arguments.families or (SMALL if arguments.small else list(FAMILIES))
    found = []
    for family in chosen:
        for rung, following in itertools.pairwise(FAMILIES[family][5]):
            found.append(measure(family, rung, following))
            row = found[-1]
            print(
                f"{family:10} {rung:>6} -> {following:<6} {row['outcome']:8} {row.get('error', '')} {row['reason']}",
                flush=True,
            )
    if (arguments.families and not arguments.update) or arguments.small:
        return
    if arguments.update:
        found = merged(found, json.loads(results.read_text()))
    results.write_text(json.dumps(found, indent=1) + "\n")
    page.write_text(between(page.read_text(), "table", table(found)))


if __name__ == "__main__":
    main()
