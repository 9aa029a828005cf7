"""Bad targets: each error names what was asked, what was found, and what would work."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.growth.alibi import aligned_heads, slopes


@pytest.mark.parametrize("family, options, message", [
    ("llama", {"width": 0}, "width must be a whole number of at least 1, got 0"),
    ("llama", {"width": 1.5}, "width must be a whole number of at least 1, got 1.5"),
    ("llama", {"width": True}, "got True"),
    ("llama", {}, "nothing to grow; give width=2"),
    ("llama", {"hidden_size": 48}, "hidden cannot go from 32 to 48; 64 would work"),
    ("llama", {"hidden_size": 16}, "asked for hidden of 16, the network has 32; the nearest target that works is 32"),
    ("llama", {"intermediate_size": -1}, "intermediate_size must be a positive whole number, got -1"),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads cannot be shared evenly by 4"),
    ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}, "the nearest target that works"),
    ("gpt2", {"hidden_size": 64}, "splits hidden_size evenly over its heads, and head_dim has to stay 8"),
    ("gpt2", {"width": 2, "num_key_value_heads": 4}, "gives every query head its own key-value head"),
    ("falcon", {"width": 2, "num_key_value_heads": 2}, "has 1 key-value head"),
    ("bloom", {"intermediate_size": 256}, "has no feed-forward size of its own"),
    ("bart", {"width": 2, "intermediate_size": 66}, "cannot go from 44 to 66; 88 would work"),
])  # fmt: skip
def test_refused(family, options, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(family), ms.HyperCloning(**options))


def test_no_method_at_all():
    with pytest.raises(ms.MeristemError, match="no growth method given"):
        ms.grow(pico.build("llama"), [])


def test_a_growth_that_breaks_its_promise_raises():
    """With a wrong override (BLOOM's ALiBi denied) the proof fails, and says so."""
    from meristem.anatomy import Override

    small = pico.build("bloom")
    anatomy = ms.Anatomy.of(small, {"bloom": Override()})
    with pytest.raises(ms.PreservationError, match="should preserve the function and does not: relative logit error"):
        ms.grow(small, ms.HyperCloning(width=2), anatomy=anatomy)


def test_alibi_slopes_are_those_of_transformers():
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    for heads in (1, 2, 4, 6, 8, 12, 16):
        assert torch.allclose(slopes(heads).float(), _get_alibi_slopes(heads, torch.device("cpu")))


@pytest.mark.parametrize("old, new", [(4, 8), (8, 16), (6, 12), (12, 24), (4, 16)])
def test_aligned_heads_speak_through_their_own_slope(old, new):
    axis_map = aligned_heads(old, new)
    assert axis_map.preservation_error() < 1e-12
    spoken = axis_map.read.coefficient.nonzero().flatten()
    assert torch.allclose(slopes(new)[spoken], slopes(old)[axis_map.read.index[spoken]])
    assert axis_map.project_noise(torch.randn(3, new), 1).abs().max() == 0


def test_alibi_without_matching_slopes_is_refused():
    with pytest.raises(ms.MeristemError, match="do not include the slopes of 8; 16 heads would work"):
        aligned_heads(8, 4)
