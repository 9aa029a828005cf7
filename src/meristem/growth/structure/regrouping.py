"""Query heads moved to other groups. Attention stays the same if every new query head is a copy of an old one
and its key-value head is a copy of that one's. So a key-value head may serve fewer query heads than before
(4 on 1 -> 8 on 4).
"""

from __future__ import annotations

import torch

from meristem.algebra import AxisMap


def regrouped(old_kv: int, old_group: int, new_kv: int, new_group: int) -> tuple[AxisMap, AxisMap]:
    """The maps of key-value heads and of query heads, both by copies. Each new group takes query heads of its
    source's group.

    Raises:
        ValueError: if an old query head would have no copy.
    """
    source = torch.arange(new_kv) % old_kv
    place = torch.arange(new_kv) // old_kv  # which of its source's copies each new key-value head is
    member = (place[:, None] * new_group + torch.arange(new_group)) % old_group
    heads = source[:, None] * old_group + member
    return AxisMap.duplicate(source, old_kv), AxisMap.duplicate(heads.flatten(), old_kv * old_group)
