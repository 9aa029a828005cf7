from __future__ import annotations

import pico
import pytest

import meristem as ms
from meristem.recipes.costs import NetworkCost, growth_timing, network_cost, planned_target, planning_inputs, routes
from meristem.recipes.tasks.language import example_tokens


def test_the_planned_target_is_what_grow_makes():
    small = pico.build("llama")
    for methods in ([ms.HyperCloning(width=2)], [ms.LEMON(hidden_size=48), ms.Stacking(depth=2)]):
        planned = {name: p.shape for name, p in planned_target(small, methods).named_parameters()}
        assert planned == {name: p.shape for name, p in ms.grow(small, methods, verify=False).named_parameters()}


def test_cost_on_the_meta_device_is_that_of_the_real_network():
    """Up to attention's backward pass, which flash kernels recompute and the meta device does not."""
    small = pico.build("llama")
    real, meta = network_cost(small, example_tokens(32, 67)), network_cost(small.to("meta"), example_tokens(32, 67))
    assert real.parameters == meta.parameters
    assert meta.flops_per_token == pytest.approx(real.flops_per_token, rel=0.05)
    assert real.training_bytes == 16 * real.parameters


def test_growth_timing_is_the_published_law():
    """7B parameters and the compute of 300B tokens: stacked after about 10B tokens in the paper."""
    assert 5e9 < growth_timing(7e9, 6 * 7e9 * 300e9) < 5e10


def test_routes_keep_their_budget():
    small, large = NetworkCost(10, 1.0, 160), NetworkCost(40, 4.0, 640)
    scratch, tokens, flops, given = routes(small, large, 100, small_tokens=40)
    assert scratch.flops == flops.flops == 400
    assert tokens.flops == 40 + 60 * 4
    assert flops.large_tokens == 90
    assert given.flops == 360


def test_a_small_network_that_has_read_much_leaves_less():
    """Of 400 FLOPs: 150 tokens of it leave 62.5 of the large one, more in all than 100; 400 leave none."""
    small, large = NetworkCost(10, 1.0, 160), NetworkCost(40, 4.0, 640)
    routes_left = routes(small, large, 100, small_tokens=150)
    assert [route.name for route in routes_left] == ["from scratch", "grow, same FLOPs", "grow, small given"]
    assert [route.large_tokens for route in routes_left] == [100, 62.5, 62.5]
    with pytest.raises(
        ms.MeristemError, match=r"cost 1.0 times as much as 100 of the large one.* fewer than 400 would"
    ):
        routes(small, large, 100, small_tokens=400)


@pytest.mark.parametrize("family", ["bert", "vit", "llama", "gpt2"])
def test_the_cost_of_other_networks_than_language_models(family):
    """Twice as many layers take about twice the FLOPs; a forward pass counts three times where nothing says what the loss is."""
    small = pico.build(family)
    deep = pico.build(family, num_hidden_layers=4) if family != "gpt2" else pico.build(family, n_layer=4)
    inputs = planning_inputs(small, 256)
    costs = [network_cost(model.to("meta"), inputs) for model in (small, deep)]
    head = 6 * 32 * 67 if family in ("llama", "gpt2") else 0  # FLOPs of a token in the layer that both have
    ratio = (costs[1].flops_per_token - head) / (costs[0].flops_per_token - head)
    assert 1.5 < ratio < 2.1


def test_inputs_that_do_not_fit_are_said_not_to():
    with pytest.raises(ms.MeristemError, match=r"cannot be counted on input_ids \(1, 500\), labels"):
        network_cost(pico.build("bert").to("meta"), example_tokens(500, 67))
