"""Whether weights are numbers, and what to say of a network whose weights are not."""

from __future__ import annotations

import torch
from torch import Tensor

from meristem.errors import MeristemError


def count_not_finite(tensor: Tensor) -> int:
    """How many entries are NaN or infinite."""
    return int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() and not tensor.is_meta else 0


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raises MeristemError for a weight of a proof that holds NaN or infinity. One sum tells that it does
    not.
    """
    if tensor.is_meta or not tensor.is_floating_point():
        return
    summed = (
        None if tensor.dtype == torch.bfloat16 else torch.float32
    )  # it has float32's range, and sums eight times as fast
    if bool(tensor.sum(dtype=summed).isfinite()):
        return
    count = count_not_finite(tensor)
    if count:
        raise unproved(f"{count} in {name}")


def unproved(shown: str) -> MeristemError:
    """The error for a network with such weights. `shown` says which."""
    return MeristemError(
        f"the network's weights are not finite (NaN or infinite: {shown}), so nothing can be proved of it; use an "
        "earlier checkpoint. A growth without a proof (verify=False, --no-verify) copies them as they are"
    )
