"""Networks of convolutions and batch norms, as others wrote them: width at any ratio, silent blocks, stages, parts of them."""

from __future__ import annotations

import itertools
import warnings

import own_architectures as own
import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms
from meristem.incubation.division import Division

IMAGES = {"x": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class Chain(nn.Module):
    """Twenty times convolution, batch norm, ReLU."""

    def __init__(self, channels: int, depth: int = 20) -> None:
        super().__init__()
        sizes = [3] + [channels] * depth
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        ]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def trained_statistics(net: nn.Module) -> nn.Module:
    """Random weights, and the running statistics that they give."""
    with torch.no_grad():
        for _ in range(30):
            net.train()(torch.randn(16, 3, 8, 8))
    return net.eval()


@pytest.mark.parametrize("axis", ["hidden", "channels", "ffn", "inner"])
@pytest.mark.parametrize("method", [ms.ZeroPadding, ms.LEMON, ms.Net2Net])
def test_new_units_of_batch_norms_have_the_statistics_that_they_begin_with(axis, method):
    """A variance of 0 multiplies each layer by 316: finite and unread in float64, NaN in float32 after twenty."""
    torch.manual_seed(0)
    net = trained_statistics(Chain(8))
    anatomy = ms.Anatomy.infer(lambda **sizes: Chain(*sizes.values()), {axis: 8})
    growth = ms.Growth.of(net, method(sizes={axis: 12}), anatomy=anatomy, inputs=IMAGES)
    assert growth.certificate.holds
    assert growth.certificate.own_dtype_relative_error < 1e-4
    assert growth.model(**IMAGES).isfinite().all()
    variance = growth.model.features[3][1].running_var
    assert (variance > 0).all()
    torch.testing.assert_close(variance[:8], net.features[3][1].running_var)
    if method is ms.ZeroPadding:
        torch.testing.assert_close(variance[8:], torch.ones(4))
        assert not growth.model.features[3][1].running_mean[8:].any()


def test_a_result_that_is_not_finite_in_the_networks_own_dtype_proves_nothing():
    net = Chain(4, 2).eval()
    net.features[1][1].weight.data[:], net.features[1][1].bias.data[:] = 0, 1e20
    net.head.weight.data[:] = torch.tensor([1e20, -1e20, 1e-20, -1e-20])  # inf - inf in float32, about 0 in float64
    certificate = ms.verify(net, net, IMAGES)
    assert certificate.relative_error == 0
    assert not certificate.holds
    assert "not finite" in certificate.summary()


def resnet(width: int, first: int, second: int) -> nn.Module:
    """The CIFAR ResNet with two stages of their own depths."""
    net = own.CifarResNet(width, 1)
    net.in_planes = width
    net.layer1, net.layer2 = net._make_layer(width, first, 1), net._make_layer(2 * width, second, 2)
    return net


def staged(first: int = 2, second: int = 3) -> tuple[nn.Module, ms.Anatomy]:
    net = randomise_(resnet(4, first, second))
    return net, ms.Anatomy.infer(resnet, {"width": 4}, {"first": first, "second": second})


def randomise_(net: nn.Module) -> nn.Module:
    randomise(net)
    return net.eval()


@pytest.mark.parametrize("method", [ms.IdentityBlocks(depth=2), ms.LEMON(depths={"first": 3, "second": 5})])
def test_silent_blocks_are_silenced_at_their_last_affine_step(method):
    net, anatomy = staged()
    growth = ms.Growth.of(net, method, anatomy=anatomy, inputs=IMAGES)
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-12
    silent = [i for i, layer in enumerate(growth.plans[0].layers["second"]) if layer.silent]
    assert len(silent) == (3 if isinstance(method, ms.IdentityBlocks) else 2)
    for block in (growth.model.layer2[i] for i in silent):
        assert not block.bn2.weight.any()
        assert not block.bn2.bias.any()
        assert block.conv1.weight.any()
        assert block.bn1.weight.any()
        assert block.conv2.weight.any()
    block = growth.model.layer2[silent[0]]
    growth.model.train()(**IMAGES).square().sum().backward()
    assert block.bn2.weight.grad.abs().max() > 0  # it learns from its first step on


@pytest.mark.parametrize("method, order", [
    (ms.Stacking(depth=2, blocks="second"), [0, 1, 2, 1, 2, 1]),
    (ms.MIDAS(layers=2, blocks="second"), [0, 1, 2, 1, 2]),
])  # fmt: skip
def test_a_block_that_changes_the_shape_is_not_copied(method, order):
    net, anatomy = staged()
    with pytest.warns(UserWarning, match=r"the first 1 of the second differs in shape .* stays alone"):
        growth = ms.Growth.of(net, method, anatomy=anatomy, inputs=IMAGES)
    for new, old in enumerate(order):
        torch.testing.assert_close(growth.model.layer2[new].conv1.weight, net.layer2[old].conv1.weight)
    assert growth.model(**IMAGES).shape == (4, 10)


@pytest.mark.parametrize("schedule", [
    ms.LayerDrop(3, 10, rate=0.99),
    ms.StochasticDepth(3, 10, last=0.01),
    ms.SubnetworkSchedule(stages=[1], num_hidden_layers=3, total_steps=10, fixed_layers=[-1]),
])  # fmt: skip
def test_a_block_that_changes_the_shape_always_runs(schedule):
    net, anatomy = staged()
    net.train()

    def steps() -> None:
        for step in range(4):
            with ms.subnetwork(net, {"second": schedule}, step, anatomy=anatomy):
                net(**IMAGES).sum().backward()

    with pytest.warns(UserWarning, match=r"block 0 of layer2 changes the shape"):
        steps()
    assert net.layer2[0].conv1.weight.grad is not None
    if not isinstance(schedule, ms.StochasticDepth):
        assert net.layer2[1].conv1.weight.grad is None  # skipped in every one of these steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ms.subnetwork(net, {"second": schedule}, 5, anatomy=anatomy):
            net(**IMAGES)  # said once


def test_incubated_clones_stand_where_they_fit():
    net, anatomy = staged(2, 2)
    division = Division((4, 4), 2, (1, 1))
    hybrid = ms.incubate(net, division, 1, start="clone", anatomy=anatomy, inputs=IMAGES).model
    torch.testing.assert_close(hybrid.layer2[0].conv1.weight, net.layer2[0].conv1.weight)
    for layer in (1, 2, 3):
        torch.testing.assert_close(hybrid.layer2[layer].conv1.weight, net.layer2[1].conv1.weight)
    assert hybrid(**IMAGES).shape == (4, 10)
    short, anatomy = staged(1, 1)
    with pytest.raises(ms.MeristemError, match=r"no block of the second .* fits position 1 of 4"):
        ms.incubate(short, Division((4, 4), 1, (1, 1)), 1, start="clone", anatomy=anatomy, inputs=IMAGES)
