"""The cost of a growth route before it runs: FLOPs counted on the meta device, memory, and when to grow."""

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
    """The number of parameters, the training FLOPs per token (per example if there are no tokens), and the
    bytes of weights, gradients and moments.
    """

    parameters: int
    flops_per_token: float
    training_bytes: int


def network_cost(model: nn.Module, inputs: Mapping[str, Tensor]) -> NetworkCost:
    """The cost of training `model`, which may be on the meta device. Bytes are for float32 throughout (4 x 4
    bytes for each parameter), without activations.

    Args:
        model: the network.
        inputs: keyword arguments of `forward`. With labels, the forward and backward passes are counted.
            Without labels, the cost is three times that of the forward pass.

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
            f"the cost of {type(model).__name__} cannot be counted on {shapes}: {first_line(error)}; pass inputs that it accepts (--inputs)"
        ) from error
    return NetworkCost(parameters, flops / units(inputs), 16 * parameters)


def units(inputs: Mapping[str, Tensor]) -> int:
    """The number of tokens in these inputs, or the number of examples if there are no tokens."""
    tokens = inputs.get("input_ids")
    return tokens.numel() if tokens is not None else len(next(iter(inputs.values())))


def planning_inputs(model: nn.Module, sequence_length: int) -> dict[str, Tensor]:
    """The inputs on which a plan is counted: tokens with their labels for a causal language model, otherwise
    one random example.

    Raises:
        MeristemError: if the inputs of the network cannot be guessed.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = text_part(model.config)
    length = min(sequence_length, getattr(text, "max_position_embeddings", None) or sequence_length)
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return example_tokens(length, text.vocab_size)
    return example_inputs(model, batch_size=1, sequence_length=length)


def planned_target(model: nn.Module, methods: Sequence[Method], anatomy: Anatomy | None = None) -> nn.Module:
    """The network that the methods would grow from `model`, on the meta device. Arguments and errors are
    those of `planned_builder`.
    """
    return on_meta(planned_builder(model, methods, anatomy))


def planned_builder(model: nn.Module, methods: Sequence[Method], anatomy: Anatomy | None = None) -> Builder:
    """The builder of the network that the methods would grow from `model`. It reads no weights unless a
    method needs them.

    Args:
        model: the small network.
        methods: the methods in their order.
        anatomy: the anatomy of `model`, if it is known.

    Raises:
        MeristemError: if the targets do not fit the network.
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
    """The old and new sizes of the axes and lists of blocks that differ, by name."""
    old, new = ({**builder.sizes, **builder.depths} for builder in (before, after))
    return {name: (old[name], size) for name, size in new.items() if name in old and old[name] != size}


def on_meta(builder: Builder) -> nn.Module:
    """The network that the builder builds at its own sizes, without values."""
    with torch.device("meta"):
        return builder.build(builder.sizes, builder.depths)


def growth_timing(parameters: int, flops: float) -> float:
    """The tokens on which the small network should be trained before it is stacked into one of `parameters`
    parameters, given the whole budget in FLOPs.

    log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74 (Du et al. 2024, arXiv:2405.15319, equation 4). It was
    fitted for N from 410M to 7B with growth factor 4, and is an extrapolation elsewhere.
    """
    return 10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74)


@dataclass(frozen=True)
class Route:
    """One route to the target: the tokens (or examples) that each network reads, and the total FLOPs."""

    name: str
    small_tokens: float
    large_tokens: float
    flops: float


def routes(
    small: NetworkCost, large: NetworkCost, tokens: float, small_tokens: float | None = None, unit: str = "tokens"
) -> list[Route]:
    """Training from scratch, growth with the same total tokens, and growth with the same total FLOPs.

    Args:
        small, large: the costs of the two networks.
        tokens: the budget of training the large network from scratch.
        small_tokens: the tokens that the small network reads before it grows. By default it is
            `growth_timing`, at most half of `tokens`. With as many as `tokens` or more, there is no growth
            with the same tokens.
        unit: what is counted: tokens or examples.

    Raises:
        MeristemError: if they leave nothing of the budget to the large network.
    """
    budget = tokens * large.flops_per_token
    before = small_tokens if small_tokens is not None else min(growth_timing(large.parameters, budget), tokens / 2)
    spent = before * small.flops_per_token
    if spent >= budget:
        raise MeristemError(
            f"{before:,.0f} {unit} of the small network cost {spent / budget:.1f} times as much as {tokens:,.0f} of the large one, which "
            f"leaves nothing to train it with; fewer than {budget / small.flops_per_token:,.0f} would work"
        )
    after, left = (budget - spent) / large.flops_per_token, tokens - before
    same_tokens = Route(f"grow, same {unit}", before, left, spent + left * large.flops_per_token)
    return [
        Route("from scratch", 0, tokens, budget),
        *[same_tokens] * (left > 0),
        Route("grow, same FLOPs", before, after, spent + after * large.flops_per_token),
        Route("grow, small given", 0, after, after * large.flops_per_token),
    ]
