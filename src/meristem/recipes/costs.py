"""What a growth route costs, before spending it: FLOPs counted on the meta device, memory, and when to grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meristem.anatomy import Anatomy, Builder
from meristem.anatomy.fields import text_part
from meristem.anatomy.flops import forward_flops, training_flops
from meristem.anatomy.inputs import example_inputs
from meristem.anatomy.streamed import weights_of
from meristem.errors import MeristemError, first_line
from meristem.growth.methods.method import Method
from meristem.recipes.tasks.language import example_tokens


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, training FLOPs per token (per example where there are no tokens), and bytes of weights, gradients and moments."""

    parameters: int
    flops_per_token: float
    training_bytes: int


def network_cost(model: nn.Module, inputs: Mapping[str, Tensor]) -> NetworkCost:
    """The cost of training `model`, which may be on the meta device. Bytes are for float32 throughout (4 x 4 bytes for each
    parameter), activations not included.

    Args:
        inputs: keyword arguments of forward. With labels, forward and backward are counted; without, the forward pass three times.

    Raises:
        MeristemError: if the network does not run on these inputs without values.
    """
    parameters = sum(p.numel() for p in model.parameters())
    try:
        with torch.device(next(model.parameters()).device):
            flops = training_flops(model, inputs) if "labels" in inputs else 3 * forward_flops(model, inputs)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise MeristemError(
            f"the cost of {type(model).__name__} cannot be counted on {shapes}: {first_line(error)}; pass inputs of its own (--inputs)"
        ) from error
    return NetworkCost(parameters, flops / units(inputs), 16 * parameters)


def units(inputs: Mapping[str, Tensor]) -> int:
    """How many tokens these inputs have, or, without tokens, how many examples."""
    tokens = inputs.get("input_ids")
    return tokens.numel() if tokens is not None else len(next(iter(inputs.values())))


def planning_inputs(model: nn.Module, sequence_length: int) -> dict[str, Tensor]:
    """What a plan is counted on: for a causal language model tokens with their labels, else one random example.

    Raises:
        MeristemError: for a network whose inputs cannot be guessed.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = text_part(model.config)
    length = min(sequence_length, getattr(text, "max_position_embeddings", None) or sequence_length)
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return example_tokens(length, text.vocab_size)
    return example_inputs(model, batch_size=1, sequence_length=length)


def planned_target(model: nn.Module, methods: Sequence[Method], anatomy: Anatomy | None = None) -> nn.Module:
    """The network that the methods would make of `model`, on the meta device.

    Args, raises: see `planned_builder`.
    """
    return on_meta(planned_builder(model, methods, anatomy))


def planned_builder(model: nn.Module, methods: Sequence[Method], anatomy: Anatomy | None = None) -> Builder:
    """What builds the network that the methods would make of `model`: no weight is touched, unless a method asks.

    Args:
        anatomy: of `model`, if it is known.

    Raises:
        MeristemError: when the targets do not fit the network.
    """
    anatomy, weights = anatomy or Anatomy.of(model), weights_of(model)
    builder = anatomy.builder
    for position, method in enumerate(methods):
        if position:
            target = on_meta(builder)
            anatomy, weights = Anatomy.of(target), target.state_dict()
        builder = method.target(anatomy, weights)
    return builder


def changed_sizes(before: Builder, after: Builder) -> dict[str, tuple[int, int]]:
    """{axis or list of blocks: (old, new)} of those that differ."""
    old, new = ({**builder.sizes, **builder.depths} for builder in (before, after))
    return {name: (old[name], size) for name, size in new.items() if name in old and old[name] != size}


def on_meta(builder: Builder) -> nn.Module:
    """The network that it builds at its own sizes, without values."""
    with torch.device("meta"):
        return builder.build(builder.sizes, builder.depths)


def growth_timing(parameters: int, flops: float) -> float:
    """Tokens to train the small network for before stacking it into one of `parameters`, given the whole budget in FLOPs.

    log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74 (Du et al. 2024, arXiv:2405.15319, equation 4; fitted for N from 410M
    to 7B with growth factor 4, so an extrapolation elsewhere).
    """
    return 10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74)


@dataclass(frozen=True)
class Route:
    """One way to the target: how many tokens each network reads, and what that costs in total."""

    name: str
    small_tokens: float
    large_tokens: float
    flops: float


def routes(small: NetworkCost, large: NetworkCost, tokens: float, small_tokens: float | None = None) -> list[Route]:
    """From scratch, and by growth with the same tokens in total or with the same FLOPs in total.

    Args:
        tokens: the budget of training the large network from scratch.
        small_tokens: what the small network reads before it grows; by default `growth_timing`, at most half of `tokens`.
    """
    budget = tokens * large.flops_per_token
    before = small_tokens if small_tokens is not None else min(growth_timing(large.parameters, budget), tokens / 2)
    spent = before * small.flops_per_token
    after = max(0.0, (budget - spent) / large.flops_per_token)
    return [
        Route("from scratch", 0, tokens, budget),
        Route("grow, same tokens", before, tokens - before, spent + (tokens - before) * large.flops_per_token),
        Route("grow, same FLOPs", before, after, spent + after * large.flops_per_token),
        Route("grow, small given", 0, after, after * large.flops_per_token),
    ]
