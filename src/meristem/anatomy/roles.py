"""Which dimensions of a tensor produce features and which consume them, by the type of the module that owns
it.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from meristem.anatomy.conventions import NORM_CLASS, NORM_GAINS, RAW_READERS, ROUTER_CLASS
from meristem.anatomy.norms import gain_of

Role = Literal["write", "read", "gain", "shift", "variance", "fixed"]


def owner_and_parameter(name: str) -> tuple[str, str]:
    """(path of the module, name of its parameter). The parts of a parametrized weight count as that
    weight.
    """
    path, _, parameter = re.sub(r"\.parametrizations\.(\w+)\.original\d$", r".\1", name).rpartition(".")
    return path, parameter


def roles(owner: nn.Module, parameter: str, ndim: int) -> tuple[Role, ...]:
    """The role of each dimension of `owner.parameter`. "write" for all if no type of module explains it."""
    return known_roles(owner, parameter, ndim) or ("write",) * ndim


def known_roles(owner: nn.Module, parameter: str, ndim: int) -> tuple[Role, ...] | None:
    """The role of each dimension of `owner.parameter`. None if the type of its module does not explain it.

    "write": rows that produce features. "read": columns that consume them. "gain" and "shift": factor and
    bias of a norm for each feature, which follow their units. "variance": that of a batch norm, 1 for units
    without a source. "fixed": kernel positions and other dimensions that no axis map changes.
    """
    kind = type(owner).__name__
    if ndim == 0:
        return ()
    for pattern, name, found in RAW_READERS:
        if len(found) == ndim and re.search(pattern, kind) and re.fullmatch(name, parameter):
            return found  # pyright: ignore[reportReturnType]
    if ndim == 1:
        if re.search(NORM_CLASS, kind):
            return ("gain",) if parameter in NORM_GAINS else ("variance",) if parameter == "running_var" else ("shift",)
        gain = gain_of(owner)
        return ("write",) if gain is None else ("gain",) if parameter == gain else ("shift",)
    if kind == "Conv1D":  # transformers' transposed Linear
        return ("read", "write")
    if isinstance(owner, nn.Embedding) or (ndim == 2 and kind.endswith("Embedding") and parameter == "weight"):
        return ("fixed", "write")
    if isinstance(owner, nn.Linear) or (ndim == 2 and (re.search(ROUTER_CLASS, kind) or kind.endswith("Linear"))):
        return ("write", "read")
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return ("write", "read")
    if isinstance(owner, nn.Bilinear):
        return ("write", "read", "read")
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return ("read", "write") + ("fixed",) * (ndim - 2)
    if isinstance(owner, nn.modules.conv._ConvNd):
        return ("write", "read") + ("fixed",) * (ndim - 2)
    if ndim == 3 and "xpert" in kind:  # fused experts: (experts, out, in)
        transposed = getattr(owner, "is_transposed", False)  # transformers says so on the module
        return ("fixed", "read", "write") if transposed else ("fixed", "write", "read")
    return None
