"""Sounds: raw samples, or frames of spectral features, in either order."""

from __future__ import annotations

import torch

from meristem.anatomy.inputs.interface import Group, Interface

PART = r"audio|speech|sound|codec|encoder"
BANDS = ("num_mel_bins", "feature_projection_input_dim", "feature_size", "n_mels", "input_feat_per_channel", "input_dim",
         "num_mel_features", "mel_bins", "feat_in", "input_feature_size", "num_audio_features", "num_chroma")  # fmt: skip


def sounds(net: Interface) -> list[Group]:
    """One sound for each row. [] if the network reads none."""
    if net.takes("input_features"):
        return _masked(net, "input_features", ("input_features_mask", "feature_attention_mask"), _spectra(net))
    if net.takes("input_values"):
        spectra = _spectra(net) if net.size(PART, "num_mel_bins") else []
        return _masked(net, "input_values", ("padding_mask", "input_values_mask"), spectra + _samples(net))
    return []


def _spectra(net: Interface) -> list[torch.Tensor]:
    """(batch, frames, bands) and (batch, bands, frames)."""
    bands = net.size(PART, *BANDS, default=80)
    bands = bands if isinstance(bands, int) else 80
    longest = net.size(PART, "max_source_positions", default=0)
    frames = net.size(PART, "max_length", default=64) if not longest else 2 * longest
    frames = frames if isinstance(frames, int) and frames <= 6000 else 64
    bands_first, frames_first = net.randn(net.batch, bands, frames), net.randn(net.batch, frames, bands)
    return (
        [bands_first, frames_first] if longest else [frames_first, bands_first, net.randn(net.batch, 1, frames, bands)]
    )


def _samples(net: Interface) -> list[torch.Tensor]:
    """(batch, samples) and (batch, channels, samples)."""
    channels = net.size(PART, "audio_channels", "num_channels", default=1)
    channels = channels if isinstance(channels, int) else 1
    return [
        net.randn(net.batch, 2000),
        net.randn(net.batch, channels, 3840),
        net.randn(net.batch, 8000),
        net.randn(net.batch, channels, 16000),
    ]


def _masked(net: Interface, name: str, masks: tuple[str, ...], tensors: list[torch.Tensor]) -> list[Group]:
    """Each tensor with a mask over its time, if forward takes one, and then without."""
    mask = next((m for m in masks if net.takes(m)), None)
    groups: list[Group] = []
    for tensor in tensors:
        for length in dict.fromkeys((tensor.shape[-1], tensor.shape[-2])):
            if mask and length > 1:
                groups.append({name: tensor, mask: torch.ones(net.batch, length, dtype=torch.long)})
        groups.append({name: tensor})
    return groups
