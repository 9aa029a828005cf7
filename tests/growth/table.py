"""The table that every growth method joins by adding a row: the method, and whether it promises to keep the function.

Sizes fit the pico models: hidden 32, 4 heads of 8, feed-forward 44 (gpt2: 128), 2 layers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import meristem as ms
from meristem.anatomy.inputs import example_inputs

FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen3", "bert", "t5", "vit")
POST_NORM = {"bert"}

WIDER = {"hidden_size": 48, "num_attention_heads": 6}  # a ratio of 1.5
METHODS: dict[str, tuple[object, bool | set[str]]] = {  # row -> (method, promises; a set: everywhere but in these families)
    "hypercloning": (ms.HyperCloning(width=2, noise=0.2), True),
    "net2net inner": (ms.Net2Net(intermediate_size=176, noise=0.2), True),
    "net2net cyclic": (ms.Net2Net(width=2, duplication="cyclic"), True),
    "net2net uneven": (ms.Net2Net(**WIDER), False),
    "aki": (ms.AKI(width=2), False),
    "lemon any ratio": (ms.LEMON(**WIDER), POST_NORM),
    "lemon double": (ms.LEMON(width=2), True),
    "lemon width and depth": (ms.LEMON(**WIDER, num_hidden_layers=5), POST_NORM),
    "zero padding": (ms.ZeroPadding(**WIDER, intermediate_size=176), POST_NORM),
    "shrink, zero-pad, perturb": (ms.ShrinkZeroPadPerturb(**WIDER), False),
    "ligo": (ms.LiGO(width=2, depth=2, steps=2), False),
    "stacking": (ms.Stacking(depth=2), False),
    "interpolation": (ms.Stacking(depth=2, order="interpolate"), False),
    "gradual stacking": (ms.GradualStacking(layers=1), False),
    "midas": (ms.MIDAS(layers=1), False),
    "identity blocks": (ms.IdentityBlocks(depth=2), True),
    "weight selection": (ms.WeightSelection(hidden_size=16, num_attention_heads=2, num_hidden_layers=1), False),
    "magnitude selection": (ms.WeightSelection(intermediate_size=22, selection="magnitude"), False),
    "prune": (ms.Prune(intermediate_size=22, num_hidden_layers=1), False),
    "grow, don't overwrite": (ms.GrowDontOverwrite(noise=0.2), True),
    "width then depth": ([ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)], True),
}  # fmt: skip


def labelled(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs with labels, so that the output has a loss."""
    inputs = example_inputs(model, seed=seed)
    return {**inputs, "labels": inputs.get("decoder_input_ids", inputs.get("input_ids", torch.tensor([1, 2])))}


def method_for(row: str, small: torch.nn.Module):
    """The row's method; the one that learns its growth is fitted on `small` for two steps."""
    method = METHODS[row][0]
    if isinstance(method, ms.Prune):
        return replace(method, batches=[labelled(small)])
    return method.fit(small, [labelled(small)]) if isinstance(method, ms.LiGO) else method


def promises(row: str, family: str) -> bool:
    promised = METHODS[row][1]
    return family not in promised if isinstance(promised, set) else promised
