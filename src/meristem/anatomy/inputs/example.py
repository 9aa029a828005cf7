"""Example inputs, on which certificates are measured if the user gives none.

Every input stream of a network (text, image, video, sound, series, states) gets an example in the shapes that
its parameters and its config suggest. The first combination on which the network runs is used. A network that
reads plain text is not run for that.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from meristem.anatomy.inputs.images import images, videos
from meristem.anatomy.inputs.interface import Group, Interface
from meristem.anatomy.inputs.others import others
from meristem.anatomy.inputs.outputs import outputs_of
from meristem.anatomy.inputs.placeholders import with_placeholders
from meristem.anatomy.inputs.sounds import sounds
from meristem.anatomy.inputs.texts import takes_one_text, texts
from meristem.anatomy.modes import evaluating
from meristem.errors import MeristemError, first_line

TRIES = 48


def example_inputs(model: nn.Module, batch_size: int = 2, sequence_length: int = 24, seed: int = 0) -> dict[str, Any]:
    """Random inputs for a transformers model, from its own signature and config.

    Args:
        model: the network. It runs on inputs that it might accept, unless it reads only text. Neither its
            weights nor its mode change.
        batch_size: the number of texts, images, sounds.
        sequence_length: the length of texts in tokens. It is smaller if the network has fewer positions.
        seed: the seed of everything random.

    Returns:
        Keyword arguments of forward: every stream that the network reads, with placeholders in the text for
            what is embedded in it.

    Raises:
        MeristemError: if the inputs of the network cannot be guessed. Pass `inputs` then.
    """
    if getattr(model, "config", None) is None or not hasattr(model.config, "model_type"):
        raise MeristemError(f"cannot guess inputs for {type(model).__name__}; pass inputs={{name: tensor}}")
    net = Interface(model, batch_size, sequence_length, torch.Generator().manual_seed(seed))
    net = dataclasses.replace(net, batch=1) if takes_one_text(net) else net
    plain = texts(net)
    if plain and not any(net.needs(name) and name not in plain[0] for name in net.parameters) and _reads_only_text(net):
        return plain[0]
    failure: Exception | None = None
    with evaluating(model):
        for candidate in itertools.islice(_candidates(net), TRIES):
            try:
                complete = with_placeholders(net, candidate)
                if all(bool(tensor.isfinite().any()) for tensor in outputs_of(model, complete).values()):
                    return complete
            except Exception as error:
                failure = failure or error
    why = f" (the first try: {type(failure).__name__}: {first_line(failure)})" if failure else ""
    raise MeristemError(
        f"cannot guess inputs for {type(model).__name__}, whose forward takes {', '.join(_named(net))}{why}; "
        "pass inputs={name: tensor}"
    )


def reads_only_text(model: nn.Module) -> bool:
    """Whether a transformers model reads only tokens: no images, sounds, series or states."""
    net = Interface(model, 1, 1, torch.Generator())
    return bool(texts(net)) and _reads_only_text(net)


def _reads_only_text(net: Interface) -> bool:
    return not any(stream(net) for stream in (images, videos, sounds, others))


def _candidates(net: Interface) -> Iterator[Group]:
    """All streams together, in every combination of their shapes; then without videos next to images."""
    streams = [found for stream in (texts, images, videos, sounds, others) if (found := stream(net))]
    yield from _combined(streams)
    if videos(net) and images(net):
        yield from _combined([found for stream in (texts, images, sounds, others) if (found := stream(net))])


def _combined(streams: list[list[Group]]) -> Iterator[Group]:
    """The first shapes of all; then others, those with the fewest differences from the first before the
    rest.
    """
    choices = itertools.product(*(range(len(stream)) for stream in streams))
    for choice in sorted(choices, key=lambda choice: (sum(map(bool, choice)), sum(choice))):
        yield {
            name: value for stream, place in zip(streams, choice, strict=True) for name, value in stream[place].items()
        }


def _named(net: Interface) -> list[str]:
    return [f"{name} (required)" if required else name for name, required in net.parameters.items()]
