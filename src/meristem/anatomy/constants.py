"""Numbers in the forward pass that change with the width, and their factors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from meristem.anatomy.anatomy import Anatomy
from meristem.anatomy.builder import Builder
from meristem.anatomy.overrides import Multiplier


def width_constants(anatomy: Anatomy, target: Builder) -> Mapping[str, float]:
    """{tensor: new / old} for every hidden multiplier on the output of a tensor.

    Embeddings that scale their output keep the factor as a float attribute (`embed_scale` in Gemma and BART),
    or the module that owns them does (an encoder in Marian). It is compared between both sizes. Factors
    written in the code of a forward pass come from the overrides (T5's head).
    """
    with torch.device("meta"):
        old = dict(anatomy.builder.build(anatomy.builder.sizes, anatomy.builder.depths).named_modules())
        new = dict(target.build(target.sizes, target.depths).named_modules())
    ratios = {}
    for name, module in old.items():
        for attribute, value in vars(module).items() if name in new else ():
            if attribute.endswith("embed_scale") and isinstance(value, float) and value:
                for path in _scaled_embeddings(name, module):
                    ratios[f"{path}.weight"] = getattr(new[name], attribute) / value
    for multiplier in anatomy.override.multipliers:
        ratio = _factor(multiplier, target) / _factor(multiplier, anatomy.builder)
        for name in (name for name in anatomy.tensors if re.fullmatch(multiplier.tensor, name)):
            ratios[name] = ratios.get(name, 1.0) * ratio
    return {name: ratio for name, ratio in ratios.items() if ratio != 1}


def _factor(multiplier: Multiplier, builder: Builder) -> float:
    """The factor in the forward pass of the network that `builder` builds."""
    if multiplier.when is not None and not builder.fact(multiplier.when):
        return 1.0
    return float(builder.fact(multiplier.field)) ** multiplier.exponent


def _scaled_embeddings(name: str, module: nn.Module) -> list[str]:
    """The module itself, or its own token embeddings."""
    if isinstance(module, nn.Embedding):
        return [name]
    children = [child for child, part in module.named_children() if isinstance(part, nn.Embedding)]
    return [f"{name}.{child}".lstrip(".") for child in children if "position" not in child]
