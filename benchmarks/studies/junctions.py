"""The warm-up that `meristem diagnose` proposes, for stages whose `train` says `warmup: junction`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.nodes import warmup_share
from benchmarks.studies.perform import perform_recipe

JUNCTION = "junction"


def without_warmups(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recipe with no warm-up in their place, and the names of the nodes that ask for one."""
    nodes = {name: dict(node) for name, node in content["nodes"].items()}
    asking = [name for name, node in nodes.items() if node.get("train", {}).get("warmup") == JUNCTION]
    for name in asking:
        nodes[name] = {"train": {**nodes[name]["train"], "warmup": 0.0}}
    return {**content, "nodes": nodes}, asking


def with_warmups(content: Mapping[str, Any], out: Path, task: Any, seed: int, split: str) -> dict[str, Any] | None:
    """The recipe with a number for every such warm-up: a share of the node's own steps.

    The nodes before a junction run first; what is finished in `out` is not run again. None if one of them diverged.
    """
    from meristem.recipes.diagnose import diagnose_seed
    from meristem.recipes.node import load_result
    from meristem.recipes.specs.schema import parse_recipe

    found, asking = without_warmups(content)
    for name in asking:
        train = found["nodes"][name]["train"]
        recipe = parse_recipe(found)
        before = {own: found["nodes"][own] for own in recipe.ancestors(train["from"])}
        jobs = perform_recipe({**content, "nodes": before}, out, task, seed, split)
        if jobs is None:
            return None
        done = {own: load_result(job.directory) for own, job in jobs.items()}
        said = diagnose_seed(recipe, train["from"], seed, done, out, task)
        steps = train["tokens"] // (train["batch_size"] * content["data"]["sequence_length"])
        train["warmup"] = warmup_share(said.warmup[name], steps)
    return found
