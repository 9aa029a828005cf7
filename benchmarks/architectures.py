"""Which architectures can be grown? Every class of transformers' auto mappings, tiny and random, put to the proof.

    python benchmarks/architectures.py                             # all of them, about two hours on one core; goes on where it stopped
    python benchmarks/architectures.py --classes LlamaModel CLIPModel   # these, anew
    python benchmarks/architectures.py --again fail                # those that failed before, anew
    python benchmarks/architectures.py --unaided 6 --seed 0        # six random classes, with the table of overrides emptied
    python benchmarks/architectures.py --page results/architectures.json   # only the page, from what was measured

For each: a tiny model with random weights; clone it x2 in width, prove every output (1e-4 of its largest value, float32 or
better), save, reload with stock transformers, prove again; then the same with identity blocks in depth. One row each: pass,
or why not. Rows are kept in build/architectures.jsonl as they come; at the end, or when it is interrupted,
results/architectures.json and the table in docs/architectures.md are written, which say how many classes have not been judged yet.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "build" / "architectures.jsonl"
TOLERANCE = 1e-4


def tiny_model(model_type: str, class_name: str):
    """The first tiny model of this class that runs, and inputs for it. Raises what stood in the way."""
    import transformers
    from support.tiny import randomise, tiny_models
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from meristem.anatomy.inputs import example_inputs, outputs_of

    model_class = getattr(transformers, class_name)
    failure: Exception = RuntimeError("no candidate")
    default = CONFIG_MAPPING[model_type]()
    if not isinstance(default, model_class.config_class):  # a part of a composite
        default = model_class.config_class()
    for model in tiny_models(model_class, default):
        try:
            randomise(model.eval())
            inputs = example_inputs(model)
            if any(bool(output.isnan().any()) for output in outputs_of(model, inputs).values()):
                raise RuntimeError("the tiny model's outputs are not finite")
            return model, inputs
        except Exception as error:
            failure = error
    raise failure


def examine(name: str, model_type: str) -> dict[str, Any]:
    """One row: can it be built, cloned, deepened, and reloaded by stock transformers?"""
    from meristem.anatomy import Anatomy
    from meristem.growth import HyperCloning, IdentityBlocks

    try:
        model, inputs = tiny_model(model_type, name)
    except Exception as error:
        return {"outcome": "not built", "why": _line(error)}
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "inputs": sorted(inputs)}
    try:
        anatomy = Anatomy.of(model)
    except Exception as error:
        no_width = "has no width field" in str(error)
        return {**row, "outcome": "no width" if no_width else "fail", "stage": "anatomy", "why": _line(error)}
    for axis, method in (("width", HyperCloning(width=2, noise=0.0)), ("depth", IdentityBlocks(depth=2))):
        try:
            row[axis] = _proof(model, anatomy, inputs, method)
        except Exception as error:
            if os.environ.get("TRACE"):
                traceback.print_exc()
            if axis == "depth" and "no list of repeated blocks" in str(error):
                row[axis] = "no list of blocks"
                continue
            no_width = axis == "width" and "nothing to grow" in str(error)
            return {**row, "outcome": "no width" if no_width else "fail", "stage": axis, "why": _line(error)}
    if isinstance(row["width"], str):  # a width that is not promised is none that can be grown
        return {**row, "outcome": "fail", "stage": "width", "why": row.pop("width")}
    return {**row, "outcome": "pass"}


def _proof(model, anatomy, inputs, method) -> float | str:
    """Grow, verify, save, reload with stock transformers, verify again; the larger relative error of the two."""
    import torch

    from meristem.certificates import verify
    from meristem.growth import Growth
    from meristem.growth.proofs.expected import expected_outputs
    from meristem.growth.widths.obstacles import obstacles

    growth = Growth.of(model, method, anatomy=anatomy, inputs=inputs)
    if sum(p.numel() for p in growth.model.parameters()) <= sum(p.numel() for p in model.parameters()):
        raise RuntimeError("nothing grew")
    if not growth.plans[0].preserves_function:
        if not growth.plans[0].maps:
            return "not promised"  # identity blocks after a norm on the stream itself (post-norm)
        why = obstacles(anatomy, growth.plans[0].maps, model, inputs)
        return "not promised: " + "; ".join(f"{axis}: {cause}" for axis, cause in why.items())
    with tempfile.TemporaryDirectory() as folder:
        growth.model.save_pretrained(folder)
        again, report = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if lost:
        raise RuntimeError(f"stock transformers does not load every tensor: {lost[:3]}")
    expected = functools.partial(expected_outputs, growth.plans)
    reloaded = verify(model, again.eval(), inputs, expected=expected)
    error = max(growth.certificate.relative_error, reloaded.relative_error)
    if error > TOLERANCE:
        raise RuntimeError(f"relative error {error:.1e} after saving and reloading")
    return error


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def unaided(count: int, seed: int, limit: float) -> list[dict[str, Any]]:
    """Random classes whose type no override mentions, until `count` of them could be built, with the overrides emptied."""
    from support.auto_classes import auto_classes
    from support.processes import judge_all

    import meristem.anatomy.infer as infer
    from meristem.anatomy.overrides import OVERRIDES

    types = {c.name: c.model_type for c in auto_classes() if c.model_type not in OVERRIDES}
    infer.OVERRIDES = {}  # type: ignore[misc]
    names = random.Random(seed).sample(sorted(types), len(types))
    path, found = ROWS.with_name("architectures_unaided.jsonl"), []
    for row in judge_all(names, lambda name: examine(name, types[name]), path, 1, limit):
        found += [row] if row["outcome"] in ("pass", "fail") else []
        if len(found) == count:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the whole registry is the small setting")
    parser.add_argument("--classes", nargs="+", help="judge these anew")
    parser.add_argument(
        "--again", nargs="+", metavar="OUTCOME", default=[], help="judge those anew that had this outcome"
    )
    parser.add_argument("--unaided", type=int, help="this many random classes, without overrides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept as they come")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "architectures.json")
    parser.add_argument("--page", type=Path, help="only write the page again, from this JSON")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from support.architecture_page import report, write_page

    page = ROOT / "docs" / "architectures.md"
    if arguments.page:
        found = json.loads(arguments.page.read_text(encoding="utf-8"))
        write_page(page, found["rows"], found["classes"])
        return
    import torch
    import transformers
    from support.auto_classes import auto_classes
    from support.processes import judge_all, judged

    from meristem.checkpoints.write import write_json
    from meristem.cli.machine import machine

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if arguments.unaided:
        rows = unaided(arguments.unaided, arguments.seed, arguments.limit)
        name = arguments.out.with_name("architectures_unaided.json")
        write_json(name, {"machine": machine(), "seed": arguments.seed, "rows": rows})
        return
    classes = {c.name: c for c in auto_classes()}
    done = published(arguments.out) | judged(arguments.rows)  # rows are there if a sweep was killed
    waiting = arguments.classes or [n for n in classes if n not in done or done[n]["outcome"] in arguments.again]
    random.Random(0).shuffle(waiting)  # what was judged when a sweep stops is a fair sample
    if len(waiting) > 9:
        examine("LlamaModel", "llama")  # what everything imports is imported once, before the processes are forked
    judge = functools.partial(_judge, {name: entry.model_type for name, entry in classes.items()})
    try:
        for row in judge_all(waiting, judge, arguments.rows, arguments.workers, arguments.limit):
            print(*row.values(), flush=True)
    except KeyboardInterrupt:  # what has been judged is published
        print("stopped", file=sys.stderr)
    done |= judged(arguments.rows)
    rows = [{**done[name], "tasks": entry.tasks} for name, entry in classes.items() if name in done]
    content = {"machine": machine(), "transformers": transformers.__version__, "tolerance": TOLERANCE}
    write_json(arguments.out, {**content, "classes": len(classes), "rows": rows})
    arguments.rows.unlink(missing_ok=True)  # they stand in the JSON now
    write_page(page, rows, len(classes))
    print(report(rows, len(classes)))


def published(path: Path) -> dict[str, dict[str, Any]]:
    """{class: row} of an earlier sweep's results."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["name"]: row for row in rows if "name" in row}


def _judge(types: dict[str, str], name: str) -> dict[str, Any]:
    return examine(name, types[name])


if __name__ == "__main__":
    main()
