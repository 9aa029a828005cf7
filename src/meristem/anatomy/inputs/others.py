"""Inputs that are neither text, image nor sound: series, boxes, states, queries. The names of the parameters
decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from meristem.anatomy.inputs.interface import Group, Interface
from meristem.anatomy.inputs.texts import token_ids, vocabulary


def others(net: Interface) -> list[Group]:
    """One group with every parameter that the network needs and this module knows. [] if there is none."""
    if net.takes("past_values"):
        return _series(net)
    made = {name: make(net) for name, make in MAKERS.items() if net.needs(name)}
    for needed, names in COMPANIONS.items():
        if net.takes(needed):
            made |= {name: MAKERS[name](net) for name in names if net.takes(name)}
    return [made] if made else []


def _series(net: Interface) -> list[Group]:
    """Past values with the features of their times, for models with lags and for those that use patches."""
    rows, context = net.batch, net.size("", "context_length", "context_len", default=32)
    context = context if isinstance(context, int) else 32
    ahead = net.size("", "prediction_length", "horizon_length", default=8)
    if net.takes("past_time_features"):
        length = context + max(net.config.lags_sequence)
        times = net.config.num_time_features
        group: Group = {
            "past_values": net.randn(rows, length),
            "past_time_features": net.randn(rows, length, times),
            "past_observed_mask": torch.ones(rows, length),
            "future_values": net.randn(rows, ahead),
            "future_time_features": net.randn(rows, ahead, times),
        }
        categories = getattr(net.config, "num_static_categorical_features", 0)
        if categories:
            group["static_categorical_features"] = torch.zeros(rows, categories, dtype=torch.long)
        reals = getattr(net.config, "num_static_real_features", 0)
        return [{**group, "static_real_features": net.randn(rows, reals)}] if reals else [group]
    channels = net.size("", "num_input_channels", default=1)
    further: Group = {}
    if net.needs("past_values_padding"):
        further["past_values_padding"] = torch.zeros(rows, context, dtype=torch.long)
    if net.needs("freq"):
        further["freq"] = torch.zeros(rows, 1, dtype=torch.long)
    flat = net.randn(rows, context)
    return [{"past_values": net.randn(rows, context, channels), **further}, {"past_values": flat, **further},
            {"past_values": list(flat), **further}]  # fmt: skip


def _boxes(net: Interface) -> Tensor:
    corners = net.randint(40, net.batch, net.length, 2)
    return torch.cat([corners, corners + 20], -1)


def _ids(net: Interface) -> Tensor:
    return token_ids(net, vocabulary(net) or 32)


def _ones_for_ids(net: Interface) -> Tensor:
    return torch.ones_like(_ids(net))


def _patches(net: Interface) -> Tensor:
    """(patches, values) as the towers of composites read them, for the grid of `_grid`."""
    part = r"vision"
    size = net.size(part, "patch_size", default=16)
    channels = net.size(part, "in_channels", "in_chans", "num_channels", default=3)
    temporal = net.size(part, "temporal_patch_size", default=1)
    return net.randn(int(_grid(net).prod(-1).sum()), channels * temporal * size * size)


def _grid(net: Interface) -> Tensor:
    merge = net.size(r"vision", "spatial_merge_size", "merge_size", default=1)
    side = max(4, 2 * (merge if isinstance(merge, int) else 1))
    return torch.tensor([[1, side, side]] * net.batch)


def _queries(net: Interface) -> Tensor:
    return net.randn(net.batch, 4, net.size("", "hidden_size", default=32))


def _mask_of_patches(net: Interface) -> Tensor:
    side = net.size("", "image_size", default=64) // net.size("", "patch_size", default=16)
    frames = net.size("", "num_frames", default=1) // net.size("", "tubelet_size", default=1)
    mask = torch.zeros(net.batch, side * side * max(1, frames), dtype=torch.bool)
    mask[:, ::2] = True
    return mask


def _flattened_patches(net: Interface) -> Tensor:
    """Row and column before the values of every patch."""
    size = net.size(r"vision", "patch_size", default=16)
    values = net.randn(net.batch, 16, 3 * size * size)
    places = torch.stack(torch.meshgrid(torch.arange(1, 5), torch.arange(1, 5), indexing="ij"), -1).flatten(0, 1)
    return torch.cat([places.float().expand(net.batch, -1, -1), values], -1)


def _steps(field: str, default: int) -> Callable[[Interface], Tensor]:
    return lambda net: net.randn(net.batch, 8, net.size("", field, default=default))


def _images_again(net: Interface) -> Tensor:
    size = net.size(r"vision", "image_size", default=64)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return net.randn(net.batch, net.size(r"vision", "num_channels", default=3), height, width)


def _global_attention(net: Interface) -> Tensor:
    """The first token of every text attends to all others, and they attend to it."""
    mask = torch.zeros_like(_ids(net))
    mask[..., 0] = 1
    return mask


MAKERS: Mapping[str, Callable[[Interface], Tensor]] = {
    "bbox": _boxes,
    "qformer_input_ids": _ids,
    "classes_input_ids": _ids,
    "classes_attention_mask": _ones_for_ids,
    "tasks_input_ids": _ids,
    "tasks_attention_mask": _ones_for_ids,
    "classes_structure": lambda net: torch.ones(net.batch, dtype=torch.long),
    "task_inputs": lambda net: net.randint(8, net.batch, net.size("", "task_seq_len", default=8)),
    "hidden_states": _patches,
    "grid_thw": _grid,
    "query_embeds": _queries,
    "bool_masked_pos": _mask_of_patches,
    "flattened_patches": _flattened_patches,
    "prompt_pixel_values": _images_again,
    "prompt_masks": _images_again,
    "high_res_pixel_values": _images_again,
    "input_features_mask": lambda net: torch.ones(net.batch, 64, dtype=torch.long),
    "states": _steps("state_dim", 17),
    "actions": _steps("act_dim", 4),
    "rewards": lambda net: net.randn(net.batch, 8, 1),
    "returns_to_go": lambda net: net.randn(net.batch, 8, 1),
    "timesteps": lambda net: torch.arange(8).expand(net.batch, -1),
    "visual_feats": lambda net: net.randn(net.batch, 6, net.size("", "visual_feat_dim", default=32)),
    "encoder_hidden_states": lambda net: net.randn(net.batch, 5, net.size("", "encoder_hidden_size", default=32)),
    "global_attention_mask": _global_attention,
    "decoder_input_values": lambda net: net.randn(net.batch, 8, net.size("", "num_mel_bins", default=80)),
    "image_attention_mask": lambda net: torch.ones(net.batch, net.length, 1, dtype=torch.long),
    "visual_pos": lambda net: net.randn(net.batch, 6, net.size("", "visual_pos_dim", default=4)),
}
# Where forward takes the first, it wants the others, although they have defaults.
COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "bbox": ("bbox",),
    "flattened_patches": ("flattened_patches",),
    "visual_feats": ("visual_feats", "visual_pos"),
    "high_res_pixel_values": ("high_res_pixel_values",),
    "query_embeds": ("encoder_hidden_states",),
    "global_attention_mask": ("global_attention_mask",),
    "decoder_input_values": ("decoder_input_values",),
    "perceiver_embeddings": ("image_attention_mask",),
    "states": ("states", "actions", "rewards", "returns_to_go", "timesteps"),
}
