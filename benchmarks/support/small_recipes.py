"""The recipes of docs/recipes.md, each in a size that runs in seconds: the same graph, methods and shares, less data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
AMOUNTS = ("tokens", "examples", "at", "keep_every", "checkpoint_every")
SEQUENCE, BATCH = 32, 4
STEPS = 16  # of the node with the largest budget, about
LARGEST = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
FEED_FORWARD = 96  # of a model that names none


def published() -> dict[str, dict[str, Any]]:
    """The recipes of the page by their number and the names of their nodes, as they stand there."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    recipes = [content for content in map(yaml.safe_load, blocks) if "nodes" in content]
    return {f"{number}-{'-'.join(content['nodes'])}": content for number, content in enumerate(recipes, start=1)}


def small(content: dict[str, Any], processes: int = 1) -> dict[str, Any]:
    """The same recipe with shares of its budgets, small networks, one seed and no GPU.

    Args:
        processes: that each train node is shared by, where the recipe does not say so itself.
    """
    from meristem.recipes.specs.data_specs import parse_count

    nodes = {name: dict(node) for name, node in content["nodes"].items()}
    budgets = [
        parse_count(own[key]) for node in nodes.values() for own in node.values() for key in AMOUNTS if key in own
    ]
    images = content.get("data", {}).get("task") == "image-classification"
    unit = BATCH if images else BATCH * SEQUENCE
    for name, node in nodes.items():
        nodes[name] = {kind: _less(own, max(budgets), unit) for kind, own in node.items() if kind != "resources"}
        train = nodes[name].get("train")
        if train:
            train["batch_size"] = BATCH
            if "model" in train and "intermediate_size" not in train["model"]:
                less = {key: min(train["model"][key], most) for key, most in LARGEST.items()}
                train["model"] = {**train["model"], **less, "intermediate_size": FEED_FORWARD}
            if processes > 1 or "resources" in node:
                nodes[name]["resources"] = {"processes": 2}
    data = {**content.get("data", {"source": "python-stdlib"}), **({} if images else {"sequence_length": SEQUENCE})}
    if "sources" in data:
        data["sources"] = [{**source, "source": "python-stdlib"} for source in data["sources"]]
    data |= {"eval_examples": 32} if images else {"eval_sequences": 8}
    return {"data": data, "nodes": nodes}


def _less(own: dict[str, Any], most: int, unit: int) -> dict[str, Any]:
    from meristem.recipes.specs.data_specs import parse_count

    fewer = {key: dict(value) if isinstance(value, dict) else value for key, value in own.items()}
    for key in AMOUNTS:
        if key in own and not (key == "examples" and "adanet_lambda" in own):
            fewer[key] = max(1, round(parse_count(own[key]) / most * STEPS)) * unit
    if "tune" in fewer:
        tune = fewer["tune"]
        on = tune.pop("on", tune.pop(True, {}))  # YAML 1.1 takes a bare `on` for a truth value
        tune["on"] = {key: (unit * STEPS // 4 if key in AMOUNTS else value) for key, value in on.items()}
    if "tokens" in fewer or ("examples" in fewer and "adanet_lambda" not in own):
        fewer["evaluations"] = 4
    return fewer
