"""Images and videos, in the shapes that networks read: whole, in tiles, or as lists of patches."""

from __future__ import annotations

import math
from typing import Any

import torch

from meristem.anatomy.inputs.interface import Group, Interface

PART = r"vision|vit|image|visual|backbone|encoder"
IMAGES = ("pixel_values", "image_pixel_values", "flattened_patches")


def images(net: Interface) -> list[Group]:
    """One image for each row, in every shape that the other parameters suggest. [] if the network reads
    none.
    """
    if "pixel_values" not in net.parameters or _is_video(net):
        return []
    rows, channels = net.batch, _channels(net)
    height, width = _pair(net.size(PART, "image_size", "img_size", "input_size", default=64))
    plain = net.randn(rows, channels, height, width)
    sizes = torch.tensor([[height, width]] * rows)
    groups: list[Group] = []
    if net.takes("spatial_shapes"):
        groups.append(_patches_of_any_shape(net))
    for grid in ("image_grid_thw", "grid_thw"):
        if net.takes(grid):
            groups += _flat_patches(net, "pixel_values", grid)
    for position in ("image_position_ids", "pixel_position_ids"):
        if net.takes(position):
            groups += _placed_patches(net, position)
    tiles: list[Group] = [{"pixel_values": plain[:, None].repeat(1, n, 1, 1, 1)} for n in _tiles(net, height * width)]
    whole: list[Group] = [{"pixel_values": plain}]
    groups += [*tiles, *whole] if net.takes("pixel_attention_mask") else whole + tiles
    if net.takes("image_sizes"):
        groups = [{**group, "image_sizes": sizes} for group in groups] + groups
    if net.takes("interpolate_pos_encoding"):
        groups += [{**whole[0], "interpolate_pos_encoding": True}]
    patches = net.randn(rows, 16, channels * math.prod(_patch(net)))
    return [*groups, {"pixel_values": patches}, {"pixel_values": patches.flatten(0, 1)}]


def videos(net: Interface) -> list[Group]:
    """One short video for each row. [] if the network reads none."""
    name = "pixel_values" if _is_video(net) else "pixel_values_videos"
    if name not in net.parameters:
        return []
    frames = net.size(PART, "num_frames", "frames_per_clip", default=2)
    height, width = _pair(net.size(PART, "image_size", "img_size", "crop_size", default=64))
    video = net.randn(net.batch, frames if isinstance(frames, int) else 2, _channels(net), height, width)
    groups = _flat_patches(net, name, "video_grid_thw") if net.takes("video_grid_thw") else []
    return [*groups, {name: video}, {name: video.flatten(0, 1)}]


def _is_video(net: Interface) -> bool:
    return net.modalities == {"video"} and net.takes("pixel_values") and not net.takes("pixel_values_videos")


def _tiles(net: Interface, area: int) -> list[int]:
    """The numbers of tiles in which an image may come: the image alone, or with the tiles of the resolutions
    in the config.
    """
    cut = [1 + h * w // area for h, w in net.size(PART, "image_grid_pinpoints", default=[])]
    return list(dict.fromkeys([*cut, 1, 2]))


def _channels(net: Interface) -> int:
    found = net.size(PART, "num_channels", "in_channels", "in_chans", "num_image_channels", "image_channels", default=3)
    return found if isinstance(found, int) else 3


def _patch(net: Interface) -> tuple[int, int]:
    return _pair(net.size(PART, "patch_size", "spatial_patch_size", default=16))


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) from a number, a list, or transformers' mapping of both."""
    if isinstance(size, dict):
        return int(size.get("height", 64)), int(size.get("width", 64))
    if isinstance(size, list | tuple):
        return int(size[0 if len(size) == 1 else -2]), int(size[-1])
    return int(size), int(size)


def _patches_of_any_shape(net: Interface) -> Group:
    """NaFlex: (batch, patches, values of a patch), with the height and width in patches."""
    side = int(net.size(PART, "num_patches", default=16) ** 0.5) or 4
    height, width = _patch(net)
    return {
        "pixel_values": net.randn(net.batch, side * side, _channels(net) * height * width),
        "pixel_attention_mask": torch.ones(net.batch, side * side, dtype=torch.long),
        "spatial_shapes": torch.full((net.batch, 2), side),
    }


def _flat_patches(net: Interface, name: str, grid: str) -> list[Group]:
    """The patches of all images, one after another, with (time, height, width) of each image in patches."""
    height, width = _patch(net)
    merge = net.size(PART, "spatial_merge_size", "merge_size", "downsample_factor", "merge_kernel_size", default=1)
    merge = max(merge) if isinstance(merge, list | tuple) else merge
    temporal = net.size(PART, "temporal_patch_size", default=1)
    side = 2 * max(2, int(merge)) if int(merge) != 1 else 4
    grids = torch.tensor([[1, side, side]] * net.batch)
    count, channels = net.batch * side * side, _channels(net)
    flat = net.randn(count, channels * temporal * height * width)
    pictures = net.randn(count, channels, height, width)
    shapes = (flat, pictures, flat[None], flat.unflatten(0, (net.batch, -1)))
    return [{name: tensor, grid: grids} for tensor in shapes]


def _placed_patches(net: Interface, position: str) -> list[Group]:
    """(batch, patches, values of a patch) with the column and row of each patch."""
    height, width = _patch(net)
    pool = net.size(PART, "pooling_kernel_size", default=1)
    side = 2 * (pool if isinstance(pool, int) else 1)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).flatten(0, 1)
    patches = net.randn(net.batch, side * side, _channels(net) * height * width)
    return [{"pixel_values": patches, position: places.repeat(net.batch, 1, 1)}]
