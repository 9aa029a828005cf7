"""Which architectures can be grown? Every model type of transformers' auto mappings, tiny and random, put to the proof.

    python benchmarks/architectures.py                       # the whole registry (two processes, about half an hour)
    python benchmarks/architectures.py --types llama t5      # some of it
    python benchmarks/architectures.py --unaided 6 --seed 0  # six random families, with the table of overrides emptied

For each: a tiny model with random weights; clone it x2 in width, prove the function (1e-4 of the largest logit, float32 or
better), save, reload with stock transformers, prove again; then the same with identity blocks in depth. One row each: pass,
or why not. Writes results/architectures.json and the table in docs/architectures.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}


def registry() -> list[tuple[str, str, str]]:
    """(task, model type, class name) for every entry of the auto mappings."""
    from transformers.models.auto import modeling_auto

    rows = []
    for task, mapping in TASKS.items():
        for model_type, classes in getattr(modeling_auto, mapping).items():
            rows.append((task, model_type, classes if isinstance(classes, str) else classes[0]))
    return rows


def tiny_model(model_type: str, class_name: str):
    """The first tiny model of this class that runs, and inputs for it. Raises what stood in the way."""
    import transformers
    from support.tiny import randomise, tiny_models
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from meristem.anatomy.inputs import example_inputs, logits_of

    model_class = getattr(transformers, class_name)
    failure: Exception = RuntimeError("no candidate")
    default = CONFIG_MAPPING[model_type]()
    if not isinstance(default, model_class.config_class):  # the language model alone, out of a composite
        default = model_class.config_class()
    for model in tiny_models(model_class, default):
        try:
            randomise(model.eval())
            inputs = example_inputs(model)
            if not logits_of(model, inputs).isfinite().all():
                raise RuntimeError("the tiny model's logits are not finite")
            return model, inputs
        except Exception as error:
            failure = error
    raise failure


def examine(model_type: str, class_name: str) -> dict[str, Any]:
    """One row: can it be built, cloned, deepened, and reloaded by stock transformers?"""
    try:
        model, inputs = tiny_model(model_type, class_name)
    except Exception as error:
        return {"outcome": "not built", "why": _line(error)}
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    from meristem.growth import HyperCloning, IdentityBlocks

    for axis, method in (("width", HyperCloning(width=2)), ("depth", IdentityBlocks(depth=2))):
        try:
            row[axis] = _proof(model, inputs, method)
        except Exception as error:
            if os.environ.get("TRACE"):
                traceback.print_exc()
            if axis == "depth" and "no list of repeated blocks" in str(error):
                row[axis] = "no list of blocks"
                continue
            no_width = axis == "width" and ("nothing to grow" in str(error) or "has no width field" in str(error))
            return {**row, "outcome": "no width" if no_width else "fail", "stage": axis, "why": _line(error)}
    return {**row, "outcome": "pass"}


def _proof(model, inputs, method) -> float | str:
    """Grow, verify, save, reload with stock transformers, verify again; the larger relative error of the two."""
    import torch

    import meristem as ms
    from meristem.growth import Growth

    growth = Growth.of(model, method, inputs=inputs)
    if sum(p.numel() for p in growth.model.parameters()) <= sum(p.numel() for p in model.parameters()):
        raise RuntimeError("nothing grew")
    if not growth.plans[0].preserves_function:
        return "not promised"  # identity blocks after a norm on the stream itself (post-norm)
    with tempfile.TemporaryDirectory() as folder:
        growth.model.save_pretrained(folder)
        again, report = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if lost:
        raise RuntimeError(f"stock transformers does not load every tensor: {lost[:3]}")
    error = max(growth.certificate.relative_error, ms.verify(model, again.eval(), inputs).relative_error)
    if error > TOLERANCE:
        raise RuntimeError(f"relative error {error:.1e} after saving and reloading")
    return error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _work(row: tuple[str, str, str], without_overrides: bool, pipe) -> None:
    """In a forked process of its own: whatever happens there, the sweep goes on."""
    if without_overrides:
        import meristem.anatomy.infer as infer

        infer.OVERRIDES = {}  # type: ignore[misc]
    if not os.environ.get("TRACE"):
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
    pipe.send(examine(row[1], row[2]))


def sweep(
    rows: list[tuple[str, str, str]], without_overrides: bool, workers: int, limit: float
) -> list[dict[str, Any]]:
    """All rows, `workers` at a time, each in a fresh process with `limit` seconds."""
    fork = multiprocessing.get_context("fork")
    waiting, running, done = list(rows), {}, {}
    while waiting or running:
        while waiting and len(running) < workers:
            row = waiting.pop(0)
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(row, without_overrides, theirs))
            process.start()
            theirs.close()
            running[row] = (process, ours, time.monotonic())
        for row, (process, pipe, start) in list(running.items()):
            outcome = None
            if pipe.poll(0.02):
                try:
                    outcome = pipe.recv()
                except EOFError:
                    outcome = {"outcome": "fail", "stage": "crash", "why": "the process died"}
            elif time.monotonic() - start > limit:
                process.kill()
                outcome = {"outcome": "fail", "stage": "time", "why": f"not done after {limit:g} s"}
            if outcome is not None:
                process.join()
                seconds = round(time.monotonic() - start, 1)
                done[row] = {"task": row[0], "model_type": row[1], **outcome, "seconds": seconds}
                print(*done[row].values(), flush=True)
                del running[row]
    return [done[row] for row in rows]


SINUSOIDS = "positions are sinusoids of the width, computed and not stored: no checkpoint can hold the small network's"
CAUSES = {  # of what is known to fail
    **dict.fromkeys(("ctrl", "fsmt", "m2m_100", "nllb-moe", "pegasus_x", "marian", "xglm", "musicgen"), SINUSOIDS),
    **dict.fromkeys(("musicgen_melody", "seamless_m4t", "seamless_m4t_v2"), SINUSOIDS),
    "fnet": "a Fourier transform mixes over the width itself",
    "perceiver": "the embedding is the output's head as well (no tied parameter says so), and no norm stands before it",
    "prophetnet": "the code pairs relative positions of the predicted streams with other heads and places (reshaped in another "
    "order than its buckets), so heads cannot be cloned",
}


def report(results: list[dict[str, Any]]) -> str:
    """The counts and tables as Markdown."""
    count = Counter(row["outcome"] for row in results)
    judged = count["pass"] + count["fail"]
    lines = [
        f"Of {len(results)} entries, {judged} could be built at toy size and have a width to grow: **{count['pass']} pass "
        f"({count['pass'] / max(judged, 1):.1%})**, {count['fail']} fail; {count['no width']} have no width that a config sets, "
        f"{count['not built']} were not built.",
        "",
        "| task | pass | fail | no width | not built |",
        "|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in results):
        per = Counter(row["outcome"] for row in results if row["task"] == task)
        lines.append(f"| {task} | {per['pass']} | {per['fail']} | {per['no width']} | {per['not built']} |")
    lines += ["", "### What fails, and why", "", "| task | type | stage | why |", "|---|---|---|---|"]
    for row in (row for row in results if row["outcome"] == "fail"):
        why = CAUSES.get(row["model_type"], row["why"][:160])
        lines.append(f"| {row['task']} | {row['model_type']} | {row['stage']} | {why.replace('|', '/')} |")
    lines += ["", "### What was not judged", "", "| task | type | why |", "|---|---|---|"]
    for row in (row for row in results if row["outcome"] in ("no width", "not built")):
        lines.append(f"| {row['task']} | {row['model_type']} | {row['why'][:110].replace('|', '/')} |")
    lines += ["", "### What passes: relative error after reloading, width x2 and depth x2", ""]
    for task in dict.fromkeys(row["task"] for row in results):
        passed = [row for row in results if row["task"] == task and row["outcome"] == "pass"]
        cells = [f"{row['model_type']} ({_figure(row['width'])}, {_figure(row['depth'])})" for row in passed]
        lines += [f"**{task}**: {', '.join(cells)}", ""]
    return "\n".join(lines)


def _figure(error: float | str) -> str:
    return f"{error:.0e}" if isinstance(error, float) else error


def write_page(results: list[dict[str, Any]]) -> None:
    """Replace everything below the marker in docs/architectures.md."""
    page = ROOT / "docs" / "architectures.md"
    head, marker, _ = page.read_text(encoding="utf-8").partition("<!-- written by benchmarks/architectures.py -->")
    page.write_text(f"{head}{marker}\n\n{report(results)}\n", encoding="utf-8")


def unaided(count: int, seed: int, limit: float) -> list[dict[str, Any]]:
    """Random types that no override mentions, until `count` of them could be built, with the table of overrides emptied."""
    from meristem.anatomy.overrides import OVERRIDES

    rows = [row for row in registry() if row[1] not in OVERRIDES]
    random.Random(seed).shuffle(rows)
    judged: list[dict[str, Any]] = []
    for row in rows:
        result = sweep([row], True, 1, limit)[0]
        judged += [result] if result["outcome"] in ("pass", "fail") else []
        if len(judged) == count:
            break
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the whole registry is the small setting")
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--unaided", type=int, help="this many random families, without overrides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "architectures.json")
    parser.add_argument("--page", type=Path, help="only write the page again, from this JSON")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"

    if arguments.page:
        write_page(json.loads(arguments.page.read_text(encoding="utf-8"))["rows"])
        return
    import torch
    import transformers

    import meristem.growth  # noqa: F401  (imported once, before the processes are forked)
    from meristem.checkpoints.write import write_json
    from meristem.cli.commands import machine

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if arguments.unaided:
        results = unaided(arguments.unaided, arguments.seed, arguments.limit)
        name = arguments.out.with_name("architectures_unaided.json")
        write_json(name, {"machine": machine(), "seed": arguments.seed, "rows": results})
        return
    whole = not arguments.types and set(arguments.tasks) == set(TASKS)
    rows = [row for row in registry() if row[0] in arguments.tasks]
    rows = [row for row in rows if row[1] in arguments.types] if arguments.types else rows
    results = sweep(rows, False, arguments.workers, arguments.limit)
    print(report(results))
    if whole:
        content = {"machine": machine(), "transformers": transformers.__version__, "tolerance": TOLERANCE}
        write_json(arguments.out, {**content, "rows": results})
        write_page(results)


if __name__ == "__main__":
    main()
