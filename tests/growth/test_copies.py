"""Copies of units separate in training: twins that start equal and are read alike get equal gradients, and stay twins for good."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms

METHODS = {"net2net": ms.Net2Net, "hypercloning": ms.HyperCloning, "lemon": ms.LEMON, "aki": ms.AKI, "ligo": ms.LiGO}
CYCLIC = {"duplication": "cyclic"}


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = [torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return [{"input_ids": t, "labels": t} for t in tokens]


def closest_halves(model: torch.nn.Module) -> float:
    """The smallest relative distance between the two halves of a matrix, along rows or columns that have doubled."""
    gaps = []
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            for dimension in (0, 1):
                first, second = weight.detach().chunk(2, dimension)
                gaps.append(float((first - second).abs().max() / weight.detach().abs().max()))
    return min(gaps)


@pytest.mark.parametrize("name, options, separate", [
    ("net2net", CYCLIC, True), ("hypercloning", {}, True), ("lemon", {}, True), ("aki", CYCLIC, True), ("ligo", {}, True),
    ("net2net", {**CYCLIC, "noise": 0.0}, False), ("hypercloning", {"noise": 0.0}, False), ("ligo", {"noise": 0.0}, False),
])  # fmt: skip
def test_copies_separate_unless_noise_is_refused(name, options, separate):
    small = pico.build("llama")
    method = METHODS[name](width=2, **options, **({"steps": 8} if name == "ligo" else {}))
    if name == "ligo":
        method = method.fit(small, batches(8))
    big = ms.grow(small, method).train()
    optimizer = torch.optim.AdamW(big.parameters(), lr=1e-3)
    for batch in batches(8):
        optimizer.zero_grad()
        big(**batch).loss.backward()
        optimizer.step()
    assert closest_halves(big) > 0.005 if separate else closest_halves(big) < 1e-5
