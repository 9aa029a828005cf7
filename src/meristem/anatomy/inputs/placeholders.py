"""Composites read images, videos and sounds at placeholder tokens, one for each of their features."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meristem.anatomy.inputs.interface import Group, Interface

STREAMS = {  # stream -> (the first parameters that bring it, the config's names of its placeholder)
    "image": (("pixel_values", "image_pixel_values"), ("image_token_id", "image_token_index", "img_token_id")),
    "video": (("pixel_values_videos",), ("video_token_id", "video_token_index")),
    "audio": (("input_features", "input_values"), ("audio_token_id", "audio_token_index", "sound_token_id")),
}
MARKS = {"image": 1, "video": 2, "audio": 3}  # in mm_token_type_ids


def with_placeholders(net: Interface, inputs: Group) -> Group:
    """The inputs with as many placeholders in every text as the network computes features from its images,
    videos and sounds.
    """
    ids = inputs.get("input_ids")
    if ids is None or ids.dim() != 2:
        return inputs
    pieces: list[Tensor] = []
    marks: list[int] = []
    for stream, (parameters, names) in STREAMS.items():
        token, method = net.size("", *names), _method(net.model, f"get_{stream}_features")
        if not isinstance(token, int) or method is None or not any(p in inputs for p in parameters):
            continue
        count = _features(net.model, method, inputs) // len(ids)
        pieces.append(torch.full((len(ids), count), token))
        marks += [MARKS[stream]] * count
    if not pieces:
        return {**inputs, "attention_mask": torch.ones_like(ids)} if net.takes("attention_mask") else inputs
    extended = torch.cat([ids[:, :1], *pieces, ids[:, 1:]], 1)
    kinds = torch.tensor([0, *marks, *[0] * (ids.shape[1] - 1)]).expand(len(ids), -1)
    further: Group = {"mm_token_type_ids": kinds.clone()} if net.takes("mm_token_type_ids") else {}
    if net.takes("attention_mask"):
        further["attention_mask"] = torch.ones_like(extended)
    return {**inputs, "input_ids": extended, **further}


def _method(model: nn.Module, name: str) -> Callable[..., Any] | None:
    """A method of the network, or of the first of its parts that has one."""
    return next((getattr(part, name) for part in model.modules() if hasattr(part, name)), None)


def _features(model: nn.Module, method: Callable[..., Any], inputs: Group) -> int:
    """How many feature vectors one of the network's own towers computes from these inputs."""
    taken = inspect.signature(method).parameters
    return _rows(_called(model, method, {name: value for name, value in inputs.items() if name in taken}))


def _called(model: nn.Module, method: Callable[..., Any], inputs: Group) -> Any:
    """The result of a method, called as the network itself is, so that a streamed network has its weights."""
    own = model.__dict__.get("forward")
    dtype = next(model.parameters()).dtype
    cast = {n: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    try:
        model.forward = method
        with torch.no_grad():
            return model(**cast)
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _rows(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1] if features.dim() > 1 else 1
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(features, name, None) is not None:
            return _rows(getattr(features, name))
    if isinstance(features, list | tuple):
        return sum(_rows(part) for part in features)
    return 0
