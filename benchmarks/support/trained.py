"""What benchmarks of trained networks share: where the results lie, a small llama, and how a learning rate is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def llama(hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 11 * hidden_size // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
    }


def total_curve(nodes: dict[str, Any]) -> list[dict[str, float]]:
    """The last node's curve, with what came before it added."""
    *before, last = nodes.values()
    past = {cost: sum(getattr(node, cost) for node in before) for cost in ("flops", "seconds")}
    return [{**p, "flops": p["flops"] + past["flops"], "seconds": p["seconds"] + past["seconds"]} for p in last.curve]


def best_rate(
    loss: Callable[[float], float], start: tuple[float, float] = (1e-3, 2e-3)
) -> tuple[float, dict[str, float]]:
    """The rate of the lowest loss, and the losses of all rates tried: two, then on by factors of two in the better direction until
    the loss rises."""
    low, high = start
    losses = {low: loss(low), high: loss(high)}
    factor = 2.0 if losses[high] < losses[low] else 0.5
    best = high if factor == 2.0 else low
    while True:
        following = best * factor
        losses[following] = loss(following)
        if not losses[following] < losses[best]:  # a rate that diverges is no better either
            return best, {f"{rate:g}": losses[rate] for rate in sorted(losses)}
        best = following
