"""Inputs that any model accepts, drawn at random: what certificates are measured on when the user gives none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meristem.errors import MeristemError


def example_inputs(
    model: nn.Module, batch_size: int = 2, sequence_length: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs for a transformers model, by its `main_input_name`.

    Returns:
        input_ids (batch, sequence) within the vocabulary, with decoder_input_ids for an encoder-decoder,
        or pixel_values (batch, channels, height, width).

    Raises:
        MeristemError: for a model whose inputs cannot be guessed; pass `inputs` then.
    """
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    if name == "pixel_values" and config is not None:
        size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        return {name: torch.randn(batch_size, config.num_channels, *size, generator=generator)}
    if name == "input_ids" and config is not None:
        longest = getattr(config, "max_position_embeddings", None) or sequence_length
        shape = (batch_size, max(1, min(sequence_length, longest - 4)))
        inputs = {name: torch.randint(3, config.vocab_size, shape, generator=generator)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(3, config.vocab_size, shape, generator=generator)
        return inputs
    raise MeristemError(
        f"cannot guess inputs for {type(model).__name__} (main input {name!r}); pass inputs={{name: tensor}}"
    )


def logits_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's logits (or its only output) on these inputs, in the model's own dtype, without gradients."""
    dtype = next(model.parameters()).dtype
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        output = model(**cast)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]
