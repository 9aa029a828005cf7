"""Bad targets: each error names what was asked, what was found, and what would work."""

from __future__ import annotations

import pico
import pytest
import torch

import meristem as ms
from meristem.checkpoints import open_streamed
from meristem.growth import METHODS
from meristem.growth.methods.options import build_methods
from meristem.growth.structure.alibi import aligned_heads, slopes


@pytest.mark.parametrize("family, options, message", [
    ("llama", {"width": 0}, "width must be a whole number of at least 1, got 0"),
    ("llama", {"width": 1.5}, "width must be a whole number of at least 1, got 1.5"),
    ("llama", {"width": True}, "got True"),
    ("llama", {}, "nothing to grow; give width=2"),
    ("llama", {"hidden_size": 48}, "hidden cannot go from 32 to 48; 64 would work"),
    ("llama", {"hidden_size": 16}, "asked for hidden of 16, the network has 32; the nearest target that works is 32"),
    ("llama", {"intermediate_size": -1}, "intermediate_size must be a positive whole number, got -1"),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads cannot be shared evenly by 4"),
    ("gpt2", {"hidden_size": 64}, "splits hidden_size evenly over its heads, and head_dim has to stay 8"),
    ("gpt2", {"width": 2, "num_key_value_heads": 4}, "gives every query head its own key-value head"),
    ("falcon", {"width": 2, "num_key_value_heads": 2}, "has 1 key-value head"),
    ("bloom", {"intermediate_size": 256}, "has no feed-forward size of its own"),
    ("bart", {"width": 2, "intermediate_size": 66}, "cannot go from 44 to 66; 88 would work"),
])  # fmt: skip
def test_refused(family, options, message):
    with pytest.raises(ms.MeristemError, match=message):
        ms.grow(pico.build(family), ms.HyperCloning(**options))


@pytest.mark.parametrize("method, options, message", [
    ("HyperCloning", {"width": 2, "noise": float("nan")}, "hypercloning: noise must be a finite number, got nan"),
    ("HyperCloning", {"width": 2, "noise": float("inf")}, "noise must be a finite number, got inf"),
    ("HyperCloning", {"width": 2, "noise": -0.1}, "noise must not be negative, got -0.1"),
    ("HyperCloning", {"width": 2, "noise": "high"}, "noise must be a finite number, got 'high'"),
    ("HyperCloning", {"width": 2, "seed": 10**20}, "seed must be a whole number from 0 to 9223372036854775807, got 1000"),
    ("Net2Net", {"width": 2, "seed": -1}, "seed must be a whole number from 0"),
    ("AKI", {"width": 2, "seed": 0.5}, "seed must be a whole number from 0"),
    ("HyperCloning", {"width": 2, "tied": "maybe"}, "tied is one of 'keep', 'untie', got 'maybe'"),
    ("LiGO", {"width": 2, "learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
    ("Stacking", {"depth": 2, "order": "sideways"}, "stacking: order is one of 'stack', 'interpolate', got 'sideways'"),
    ("WeightSelection", {"selection": "best"}, "selection is one of 'uniform', 'first', 'magnitude', got 'best'"),
])  # fmt: skip
def test_values_that_no_option_has(method, options, message):
    with pytest.raises(ms.MeristemError, match=message):
        getattr(ms, method)(**options)


def test_options_of_other_methods_are_named():
    for options, words in (
        ({"depth": 2}, "hypercloning has no option 'depth'; .*stacking.* have it: --method hypercloning,"),
        ({"withd": 2}, "did you mean 'width'"),
    ):
        with pytest.raises(ms.MeristemError, match=words):
            build_methods(["hypercloning"], options, METHODS)


def test_shrinking_does_not_grow():
    with pytest.raises(ms.MeristemError, match=r"hypercloning grows; shrink takes a method that shrinks"):
        ms.shrink(pico.build("llama"), ms.HyperCloning(width=2))


@pytest.mark.parametrize("method", [ms.LEMON, ms.ZeroPadding, ms.Net2Net, ms.AKI])
def test_a_config_that_transformers_would_not_save_is_refused_first(method):
    small = pico.build("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    with pytest.raises(
        ms.MeristemError, match=r"hidden size \(100\) is not a multiple .*hidden_size=96 or 104 would work"
    ):
        ms.Growth.of(small, method(hidden_size=100), verify=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_said_to_be(value, tmp_path):
    small = pico.build("llama")
    with torch.no_grad():
        small.model.layers[1].mlp.up_proj.weight[3, :2] = value
    small.save_pretrained(tmp_path / "small")
    for model in (small, open_streamed(str(tmp_path / "small"))):
        with pytest.raises(
            ms.MeristemError, match=r"weights are not finite .*: 2 in model.layers.1.mlp.up_proj.weight\)"
        ):
            ms.grow(model, ms.HyperCloning(width=2))


def test_outputs_that_are_not_finite_are_said_to_be():
    small = pico.build("vit")
    inputs = {"pixel_values": torch.full((1, 3, 16, 16), float("nan"))}
    with pytest.raises(ms.MeristemError, match="outputs are not finite on the inputs of the proof"):
        ms.grow(small, ms.HyperCloning(width=2), inputs=inputs)


def test_no_method_at_all():
    with pytest.raises(ms.MeristemError, match="no growth method given"):
        ms.grow(pico.build("llama"), [])


def test_a_growth_that_breaks_its_promise_raises():
    """With a wrong override (BLOOM's ALiBi denied) the proof fails, and says so."""
    from meristem.anatomy import Override

    small = pico.build("bloom")
    anatomy = ms.Anatomy.of(small, {"bloom": Override()})
    with pytest.raises(ms.PreservationError, match="should keep the function and does not: relative logit error"):
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


@pytest.mark.parametrize("options, words", [
    ({"width": 1_000_000}, "hidden of 32,000,000 is too large"),
    ({"intermediate_size": 2_000_000}, "ffn of 2,000,000 is too large"),
    ({"vocab_size": 10**9}, "vocab of 1,000,000,000 is too large"),
])  # fmt: skip
def test_absurd_sizes_are_refused_before_they_cost_anything(options, words):
    from meristem.anatomy import Anatomy

    model = pico.build("llama")
    anatomy = Anatomy.of(model)
    with pytest.raises(ms.MeristemError, match=words):
        ms.HyperCloning(**options).plan(anatomy, model)


def test_a_method_that_keeps_the_function_is_shown_for_an_option_of_others():
    from meristem.growth import METHODS
    from meristem.growth.methods.options import build_methods

    with pytest.raises(ms.MeristemError, match="--method hypercloning,identity_blocks"):
        build_methods(["hypercloning"], {"depth": 2}, METHODS)


@pytest.mark.parametrize("noise, said", [(1e30, r"1e\+30"), (1e10, r"1e\+10")])
def test_noise_that_cannot_cancel_is_named(noise, said):
    """In float32, units that large leave nothing of the function when they are added up."""
    with pytest.raises(ms.PreservationError, match=f"Without its noise it would: noise={said} is so large") as told:
        ms.grow(pico.build("llama"), ms.HyperCloning(width=2, noise=noise))
    assert "not understood" not in str(told.value)


@pytest.mark.parametrize("value, said", [(1e20, r"1\.0e\+20"), (1e38, r"1\.0e\+38")])
def test_weights_too_large_for_their_dtype_are_named(value, said):
    """A norm's squares overflow float32, or the outputs do; 3e38 leaves no finite output."""
    model = pico.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = value
    words = (
        rf"too large to compute with in float32 \(the largest is {said}, in model\.layers\.1\.mlp\.up_proj\.weight\)"
    )
    with pytest.raises(ms.PreservationError, match=words):
        ms.grow(model, ms.HyperCloning(width=2))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 3e38
    with pytest.raises(ms.MeristemError, match=r"its largest weight is 3\.0e\+38 \(in model\.layers\.1\.mlp\.up_proj"):
        ms.grow(model, ms.HyperCloning(width=2))


def test_a_constant_that_is_not_a_number_is_named():
    small = pico.build("llama", rms_norm_eps=float("nan"))
    words = r"model\.layers\.0\.input_layernorm\.variance_epsilon is not a number: correct the config's entry"
    with pytest.raises(ms.MeristemError, match=words):
        ms.grow(small, ms.HyperCloning(width=2))
    with pytest.raises(ms.MeristemError, match=words):
        ms.fuse([small, small])
