from __future__ import annotations

import pytest
import torch

from meristem.algebra import AxisMap, Layout

SIZES = {"heads": 4, "kv_heads": 2, "group": 2, "head_dim": 3, "ffn": 5}


@pytest.mark.parametrize(
    "pattern, size",
    [
        ("ffn", 5),
        ("2 ffn", 10),
        ("heads head_dim", 12),
        ("heads head_dim + 2 kv_heads head_dim", 24),
        ("kv_heads (group + 2) head_dim", 24),
        ("7", 7),
    ],
)
def test_size_and_text(pattern, size):
    layout = Layout.parse(pattern)
    assert layout.size(SIZES) == size
    assert Layout.parse(str(layout)) == layout


@pytest.mark.parametrize("pattern", ["", "heads +", "(heads", "heads)", "heads * 2", "+"])
def test_nonsense_is_refused_with_the_pattern(pattern):
    with pytest.raises(ValueError, match="layout"):
        Layout.parse(pattern)


def test_expand_of_grouped_heads_moves_whole_groups():
    """Two key-value heads, tiled: every group of (query, query, key, value) rows moves as one."""
    maps = {"kv_heads": AxisMap.tile(2, 2), "group": AxisMap.identity(2), "head_dim": AxisMap.identity(3)}
    expanded = Layout.parse("kv_heads (group + 2) head_dim").expand(maps)
    assert torch.equal(expanded.write.matrix(), AxisMap.tile(24, 2).write.matrix())


def test_expand_of_a_concatenation_tiles_each_part():
    expanded = Layout.parse("2 ffn").expand({"ffn": AxisMap.tile(2, 2)})
    assert expanded.write.index is not None
    assert expanded.write.index.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_expand_preserves():
    maps = {"heads": AxisMap.duplicate(torch.tensor([0, 1, 1]), 2), "head_dim": AxisMap.identity(3)}
    assert Layout.parse("heads head_dim + 2 heads").expand(maps).preservation_error() < 1e-12
