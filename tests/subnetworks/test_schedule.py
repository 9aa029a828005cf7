"""Schedules: depths, probabilities, and paths that depend on nothing but seed, step and name."""

import math

import pytest
import torch

from meristem import (
    BottomLayers,
    LayerDrop,
    MeristemError,
    ProgressiveLayerDropping,
    StochasticDepth,
    SubnetworkSchedule,
)
from meristem.subnetworks.path import draw, generator, scales


def raptr(**options):
    return SubnetworkSchedule(12, 400, **{"stages": [6, 8, 10, 12], **options})


def test_the_papers_schedule_is_a_third_faster():
    schedule = raptr()
    assert [schedule.expected_depth(step) for step in (0, 100, 200, 399)] == pytest.approx([6, 8, 10, 12])
    assert schedule.keep(0)[0] == schedule.keep(0)[-1] == 1
    assert schedule.keep(0)[5] == pytest.approx(0.4)  # (6 - 2) / (12 - 2)
    assert schedule.layer_speedup() == pytest.approx(12 / 9)


def test_unequal_stages_and_a_full_start():
    assert SubnetworkSchedule(24, 1000, stages=[12, 16, 20, 24], lengths=[1, 2, 3, 4]).layer_speedup() == pytest.approx(
        1.2, abs=1e-3
    )
    warmed = SubnetworkSchedule(24, 1000, stages=[12, 16, 20, 24], full_model_steps=300)
    assert warmed.expected_depth(299) == 24
    assert warmed.expected_depth(300) == pytest.approx(12)
    assert warmed.layer_speedup() == pytest.approx(24 / (0.3 * 24 + 0.7 * 18), abs=1e-3)


def test_exact_paths_have_no_variance_and_the_same_probabilities():
    schedule = raptr()
    paths = [schedule.path(step) for step in range(100)]
    assert {path.depth for path in paths} == {6}
    often = sum(path.active[5] for path in paths) / 100
    assert 0.25 < often < 0.55
    assert all(path.active[0] and path.active[-1] for path in paths)


def test_fractional_depths_are_met_on_average():
    depths = [SubnetworkSchedule(8, 2000, stages=[5.5]).path(step).depth for step in range(600)]
    assert set(depths) == {5, 6}
    assert sum(depths) / 600 == pytest.approx(5.5, abs=0.1)


def test_bernoulli_paths_vary_around_the_expected_depth():
    depths = [raptr(sampling="bernoulli").path(step).depth for step in range(100)]
    assert len(set(depths)) > 3
    assert sum(depths) / 100 == pytest.approx(6, abs=0.6)


def test_a_path_depends_on_seed_step_and_list_only():
    assert raptr().path(17) == raptr().path(17)
    assert any(raptr().path(s).active != raptr(seed=1).path(s).active for s in range(5))
    assert any(raptr().path(s).active != raptr().path(s, "decoder").active for s in range(5))
    assert raptr().path(399).active == (True,) * 12


def test_relatives():
    drop = LayerDrop(10, 100, rate=0.3)
    assert drop.keep(50) == (0.7,) * 10
    assert set(drop.path(3).scales) == {1.0}
    depth = StochasticDepth(4, 100, last=0.5)
    assert depth.keep(0) == pytest.approx((0.875, 0.75, 0.625, 0.5))
    pld = ProgressiveLayerDropping(12, 10_000)
    assert pld.keep(0) == (1.0,) * 12  # nothing is dropped at first, more and more later
    assert pld.keep(9_999)[-1] == pytest.approx(0.5)
    assert pld.expected_depth(9_999) / 12 == pytest.approx(1 - 0.5 * 13 / 24)
    path = pld.path(9_000)
    assert all(
        scale == (1 / p if on else 1) for on, scale, p in zip(path.active, path.scales, pld.keep(9_000), strict=True)
    )


def test_sqrt_gap_lets_a_block_stand_in_for_those_skipped_behind_it():
    active = (True, False, False, True, True, False)
    assert scales(active, (0.5,) * 6, "sqrt_gap") == (math.sqrt(3), 1, 1, 1, math.sqrt(2), 1)
    assert scales((True,) * 6, (1.0,) * 6, "sqrt_gap") == (1.0,) * 6


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stages": []}, "give stages"),
        ({"stages": [1, 12]}, "2 always run and the network has 12"),
        ({"stages": [13]}, "impossible"),
        ({"stages": [6, 12], "lengths": [1]}, "1 entries for 2 stages"),
        ({"widths": [0, 1, 1, 1]}, "shares"),
        ({"lengths": [1, 1, 1, 0]}, "positive"),
        ({"fixed_layers": [12]}, "blocks 0 to 11"),
        ({"full_model_steps": 401}, "0..400"),
        ({"sampling": "dice"}, "exact, bernoulli"),
        ({"scaling": "double"}, "sqrt_gap"),
    ],
)
def test_bad_schedules_say_what_would_work(options, words):
    with pytest.raises(MeristemError, match=words):
        raptr(**options)
    with pytest.raises(MeristemError, match="rate"):
        LayerDrop(4, 10, rate=1.0)
    with pytest.raises(MeristemError, match="total_steps"):
        LayerDrop(4, 0)


def test_bert2berts_first_stage_trains_the_top_of_the_bottom():
    schedule = BottomLayers(12, 100, stride=3, until=0.5)
    paths = [schedule.path(step) for step in range(50)]
    assert {path.depth for path in paths} == {3, 6, 9, 12}
    assert all(path.frozen == frozenset(range(path.depth - 3)) for path in paths)
    assert schedule.path(50).active == (True,) * 12
    assert not schedule.path(50).frozen
    assert schedule.expected_depth(0) == pytest.approx(7.5)
    with pytest.raises(MeristemError, match="divide 12"):
        BottomLayers(12, 100, stride=5)


@pytest.mark.parametrize("schedule", [
    StochasticDepth(12, 1000, last=0.5, sampling="exact"),
    ProgressiveLayerDropping(8, 1000, theta=0.3, gamma=0.0, sampling="exact"),
    SubnetworkSchedule(7, 1000, stages=[4.5]),
])  # fmt: skip
def test_an_exact_draw_keeps_each_blocks_own_probability(schedule):
    """As many blocks as are expected, and each as often as was asked for."""
    steps = 4000
    keep = schedule.keep(0)
    active = torch.tensor([draw(keep, "exact", generator(0, step, "")) for step in range(steps)]).double()
    assert torch.allclose(active.mean(0), torch.tensor(keep).double(), atol=4 * 0.5 / steps**0.5)
    depths = active.sum(1)
    assert set(depths.tolist()) <= {float(math.floor(sum(keep))), float(math.ceil(sum(keep)))}
