"""The advice of `meristem plan`: the method, when to grow, the learning rate and warm-up, the evidence, and
warnings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from meristem.growth.methods.method import Method
from meristem.recipes.costs import Route

FACTOR = 2  # of an axis: beyond it, little is published
LONG = 20  # tokens for each parameter: beyond it, published gains shrink
ONE_RATE = (
    "search around the small network's rate, from 1/n of it to twice it, for a width of n times; "
    "grow_optimizer(scale_learning_rate=True) keeps the small network's trajectory instead"
)
RATES = {
    "width": (ONE_RATE, "none, with the optimizer's state carried"),
    "exact depth": ("the last one of the run", "short"),
    "new start": ("as from scratch", "as from scratch"),
}
KINDS = {
    **dict.fromkeys(("hypercloning", "net2net", "lemon", "zero_padding", "shrink_zero_pad_perturb"), "width"),
    **dict.fromkeys(("identity_blocks", "upcycle", "more_experts", "grow_dont_overwrite"), "exact depth"),
}  # of all others, which do not keep the function and start again


@dataclass(frozen=True)
class Advice:
    """Advice as sentences. `evidence` has one for each method and study. `warnings` are the likely reasons
    for a failure of the plan.
    """

    method: str
    why: str
    when: str
    rate: str
    warmup: str
    evidence: tuple[str, ...]
    warnings: tuple[str, ...]


def suggested(options: Mapping[str, Any]) -> tuple[str, str]:
    """The method names for a target that is given without a method, and the reason.

    Args:
        options: the target, by the names of the command line: width, depth, hidden_size, num_experts, ...
    """
    deeper = bool({"depth", "num_hidden_layers", "depths"} & set(options))
    if "num_experts" in options:
        return "upcycle", "a dense model becomes a mixture of experts, and computes the same at first"
    wider = set(options) & {
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sizes",
    }
    if wider:
        return "lemon", "it reaches any width and depth, and keeps the function of pre-norm networks"
    if deeper and "width" in options:
        return (
            "hypercloning,stacking",
            "whole multiples: width is cloned, which is exact; copies of the blocks learn fastest",
        )
    if deeper:
        return "stacking", "copies of the blocks learn fastest; identity_blocks would keep the function instead"
    return "hypercloning", "whole multiples of the width are exact, and the optimizer's state can be carried"


def advise(
    methods: Sequence[Method],
    why: str,
    sizes: Mapping[str, tuple[int, int]],
    parameters: tuple[int, int],
    tokens: float,
    routes: Sequence[Route],
    unit: str = "tokens",
    given_moment: bool = False,
) -> Advice:
    """Advice on one plan.

    Args:
        methods: the methods in their order.
        why: the reason for the method, if it was chosen here.
        sizes: the sizes before and after, by axis or list of blocks.
        parameters: the numbers of parameters of the small and the large network.
        tokens: the budget with which the large network would be trained from scratch.
        routes: the result of `costs.routes`.
        unit: "tokens", or "examples" for networks that read no tokens.
        given_moment: whether the user has chosen when to grow.
    """
    names = [method.name for method in methods]
    kinds = [KINDS.get(name, "new start") for name in names]
    rate, warmup = RATES[next((kind for kind in ("new start", "width", "exact depth") if kind in kinds), "new start")]
    density = tokens / parameters[1]
    return Advice(
        ", ".join(names),
        why or "as asked for",
        _moment(routes, tokens, unit, given_moment),
        rate,
        warmup,
        tuple(_evidence(name, density, unit) for name in dict.fromkeys(names)),
        tuple(_warnings(methods, sizes, parameters, density, unit)),
    )


def _moment(routes: Sequence[Route], tokens: float, unit: str, given: bool) -> str:
    before = next(route.small_tokens for route in routes if route.small_tokens)
    share = f"after {before:,.0f} {unit} of the small network, {before / tokens:.0%} of the budget"
    if given:
        return f"{share}, as asked for"
    capped = "; the law asks for more, and a plan uses at most half of the budget" if before >= tokens / 2 else ""
    return f"{share} (G_stack's law, arXiv:2405.15319, fitted for 410M to 7B at a growth factor of 4{capped})"


def _evidence(name: str, density: float, unit: str) -> str:
    found = [entry for entry in _measured() if entry["method"] == name]
    if not found:
        return f"{name}: no Meristem study has a result for it yet; its card cites the published ones"
    lines = []
    for entry in found:
        passing = {b: f for b, f in entry["budgets"].items() if entry["gates"].get(b)}
        figures = min((passing or entry["budgets"]).values(), key=lambda own: abs(own["bytes"] - density))
        mean, low, high = figures["loss"]
        side = f" ({entry['side']})" if entry["side"] != name else ""
        side += ", of language models" if unit != "tokens" else ""
        moment = f" grown at {entry['grown_at']:g}," if entry["grown_at"] is not None else ""
        against = (
            f", against {entry['versus']}" if entry["versus"] else ", the small network given" if entry["given"] else ""
        )
        gate = "" if passing else "; its gate fails, so it does not test the claim"
        lines.append(
            f"{name}{side}:{moment} {figures['bytes']:.3g} bytes for each parameter: loss {mean:+.4f} [{low:+.4f}, {high:+.4f}] against "
            f"scratch at equal compute, compute saved: {figures['saved']}{gate} (study {entry['study']} on {entry['text']}, "
            f"{entry['networks']}; the claim: {entry['claim']}{against}: {entry['verdict']})"
        )
    return "\n".join(lines)


def _warnings(
    methods: Sequence[Method],
    sizes: Mapping[str, tuple[int, int]],
    parameters: tuple[int, int],
    density: float,
    unit: str,
) -> list[str]:
    told = []
    far = {axis: (old, new) for axis, (old, new) in sizes.items() if new > FACTOR * old}
    if far:
        axes = ", ".join(f"{axis} {old} -> {new} ({new / old:.3g}x)" for axis, (old, new) in far.items())
        told.append(
            f"a factor above {FACTOR}: {axes}. Most published gains are measured at {FACTOR}; grow in several steps"
        )
    if unit != "tokens":
        told.append("the rules on tokens for each parameter are those of language models; this network reads examples")
    elif density > LONG:
        told.append(f"{density:.3g} tokens for each parameter: beyond about {LONG}, published gains shrink")
    ahead = _small_is_ahead_at()
    if unit == "tokens" and ahead is not None and density <= ahead:
        told.append(
            f"{density:.3g} tokens for each parameter: at {ahead:g} and below, the small network trained on was better than the "
            "large one in our studies (byte-level models); check that the large one pays at all"
        )
    broken = [method.name for method in methods if method.name not in KINDS]
    if broken:
        told.append(f"{', '.join(dict.fromkeys(broken))} does not keep the function: the loss rises at the growth")
    if parameters[1] <= parameters[0]:
        told.append("the target is not larger than the source")
    return told


def _small_is_ahead_at() -> float | None:
    """The largest budget at which the study of width shows a small network ahead of the large one."""
    return max((b for entry in _measured() if entry["study"] == "growth" for b in entry["small_ahead"]), default=None)


@cache
def _measured() -> list[dict[str, Any]]:
    """The results of the studies, which `python -m benchmarks report` writes."""
    return json.loads((Path(__file__).parent / "evidence.json").read_text(encoding="utf-8"))
