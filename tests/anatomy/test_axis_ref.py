"""Names of axes are taken apart in one place, and one module knows heads."""

import pytest

from meristem.anatomy.axis_ref import AxisRef, Part, is_frequencies, part_of, rest_of
from meristem.anatomy.heads import AxisSizes, Heads, counted_by, spelt_out, with_heads


@pytest.mark.parametrize(
    ("name", "kind", "scope", "part", "whole"),
    [
        ("hidden", "hidden", "", None, "hidden"),
        ("decoder_ffn", "ffn", "decoder_", None, "decoder_ffn"),
        ("kv_heads", "kv_heads", "", None, "kv_heads"),
        ("ssm_kv_heads", "kv_heads", "ssm_", None, "ssm_kv_heads"),
        ("encoder_heads", "heads", "encoder_", None, "encoder_heads"),
        ("key_head_dim", "key_head_dim", "", None, "key_head_dim"),
        ("over8_hidden", "hidden", "", Part(divisor=8), "hidden"),
        ("over2_ssm_kv_heads", "kv_heads", "ssm_", Part(divisor=2), "ssm_kv_heads"),
        ("frequencies_hidden", "hidden", "", Part(divisor=2, frequencies=True), "hidden"),
        ("after32_decoder_hidden", "hidden", "decoder_", Part(skipped=32), "decoder_hidden"),
        ("channels", "hidden", "", None, "channels"),
        ("over4_channels", "hidden", "", Part(divisor=4), "channels"),
        ("overheads", "hidden", "", None, "overheads"),  # a user's word that ends as an axis of ours does
    ],
)
def test_a_name_is_taken_apart_and_put_together(name, kind, scope, part, whole):
    ref = AxisRef.parse(name)

    assert (ref.kind, ref.scope, ref.part, ref.whole) == (kind, scope, part, whole)
    assert str(ref) == name


def test_parts_have_the_size_that_their_name_says():
    sizes = AxisSizes(hidden=96, channels=10)

    assert sizes["over8_hidden"] == 12
    assert sizes["after32_hidden"] == 64
    assert sizes["frequencies_hidden"] == 48
    assert sizes[part_of("channels", 5)] == 2
    assert sizes[rest_of("channels", 3)] == 7
    assert is_frequencies("frequencies_hidden")
    assert not is_frequencies("over2_hidden")
    with pytest.raises(KeyError, match="ffn"):
        sizes["ffn"]


def test_query_heads_follow_from_key_value_heads_in_every_scope():
    sizes = with_heads({"kv_heads": 2, "group": 3, "ssm_kv_heads": 4, "ssm_group": 5, "hidden": 8})

    assert sizes["heads"] == 6
    assert sizes["ssm_heads"] == 20
    assert Heads.of("ssm_group") == Heads("ssm_kv_heads", "ssm_group", "ssm_heads", "ssm_head_dim")
    assert counted_by("ssm_heads") == "ssm_kv_heads"
    assert counted_by("ssm_group") == "ssm_group"
    assert counted_by("over2_heads") == "over2_kv_heads"


def test_heads_that_an_anatomy_counts_by_themselves_are_not_spelt_out():
    assert spelt_out({"heads", "hidden"}, known={"kv_heads", "group", "hidden"}) == {"kv_heads", "group", "hidden"}
    assert spelt_out({"heads", "hidden"}, known={"heads", "hidden"}) == {"heads", "hidden"}
