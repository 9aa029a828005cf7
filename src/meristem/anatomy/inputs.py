"""Inputs that any model accepts, drawn at random: what certificates are measured on when the user gives none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.streamed import is_streamed, run_whole
from meristem.errors import MeristemError


def example_inputs(
    model: nn.Module, batch_size: int = 2, sequence_length: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs for a transformers model, by its `main_input_name`.

    Returns:
        input_ids (batch, sequence) within the vocabulary, with decoder_input_ids for an encoder-decoder;
        pixel_values (batch, channels, height, width), or lists of patches; or input_values (batch, samples) and input_features (batch, ...).

    Raises:
        MeristemError: for a model whose inputs cannot be guessed; pass `inputs` then.
    """
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model, "config", None)
    name = getattr(model, "main_input_name", None)
    text = config is not None and _reads_text(model, name)
    if config is not None and name == "pixel_values" and not text:
        vision = getattr(config, "vision_config", config)
        channels = getattr(vision, "num_channels", None) or 3
        if isinstance(getattr(vision, "num_patches", None), int):  # an image of any shape as a list of patches (NaFlex)
            side = int(vision.num_patches**0.5)
            patches = torch.randn(batch_size, side**2, channels * vision.patch_size**2, generator=generator)
            return {
                name: patches,
                "pixel_attention_mask": torch.ones(batch_size, side**2, dtype=torch.long),
                "spatial_shapes": torch.full((batch_size, 2), side),
            }
        size = getattr(vision, "image_size", None) or 64
        size = size if isinstance(size, list | tuple) else [size] * 2
        return {name: torch.randn(batch_size, channels, *size, generator=generator)}
    if config is not None and text:
        longest = getattr(config.get_text_config(), "max_position_embeddings", None) or sequence_length
        shape = (batch_size, max(1, min(sequence_length, longest - 4)))
        ids = name if name == "inputs" else "input_ids"
        inputs = {ids: torch.randint(3, _vocab_size(config), shape, generator=generator)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(3, _vocab_size(config), shape, generator=generator)
        return inputs
    if config is not None and name in ("input_values", "input_features"):
        return {name: torch.randn(batch_size, *_sound(config), generator=generator)}
    raise MeristemError(
        f"cannot guess inputs for {type(model).__name__} (main input {name!r}); pass inputs={{name: tensor}}"
    )


def _reads_text(model: nn.Module, name: str | None) -> bool:
    """By its main input; a composite of several networks by its language model."""
    try:
        embeds = isinstance(model.get_input_embeddings(), nn.Embedding)  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        embeds = False
    composite = model.config.get_text_config() is not model.config  # type: ignore[union-attr, operator]
    return bool(_vocab_size(model.config)) and (name in ("input_ids", "inputs") or (embeds and composite))


def _vocab_size(config: Any) -> int:
    return getattr(config.get_text_config(), "vocab_size", None) or 0


def _sound(config: Any) -> tuple[int, ...]:
    """Raw samples, or frames of features in the shape that the model reads them."""
    if getattr(config, "max_source_positions", None) and getattr(
        config, "num_mel_bins", None
    ):  # (mel bins, frames), Whisper
        return config.num_mel_bins, 2 * config.max_source_positions
    if getattr(config, "num_mel_bins", None):  # (frames, mel bins), the audio spectrogram transformer
        return config.max_length, config.num_mel_bins
    if getattr(config, "feature_projection_input_dim", None):
        return 32, config.feature_projection_input_dim
    return (2000,)


def device_of(model: nn.Module) -> torch.device:
    """Where a network runs: with its first parameter; on the CPU if its weights are made as it runs."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def logits_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's logits (or its only output) on these inputs, in the model's own dtype and place, without gradients."""
    dtype, device = next(model.parameters()).dtype, device_of(model)
    cast = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    with torch.no_grad():
        try:
            output = model(**cast)
        except RuntimeError as error:
            if not is_streamed(model) or "meta" not in str(error):
                raise
            run_whole(model)  # it uses weights of a block that it does not call
            output = model(**cast)
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]
