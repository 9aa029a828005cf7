"""Attention kernels that any dtype and device can run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

PLAIN = (None, "eager", "sdpa")  # made of PyTorch's own operators


@contextlib.contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """A context in which a transformers model computes attention with PyTorch's own operators. Afterwards it
    uses its own implementation again.

    Kernels such as flash attention accept half precision only, and only on some devices.
    """
    configs: dict[int, tuple[Any, str]] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None)
        if isinstance(implementation, str) and implementation not in PLAIN:
            configs.setdefault(id(config), (config, implementation))
            plain = "sdpa" if getattr(module, "_supports_sdpa", False) else "eager"
            config._attn_implementation_internal = plain  # pyright: ignore[reportOptionalMemberAccess]
    try:
        yield
    finally:
        for config, implementation in configs.values():
            config._attn_implementation_internal = implementation
