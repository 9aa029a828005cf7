"""Silent blocks that are added to the stream outside of the block, or that are bare parameters in lists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import meristem as ms

INPUTS = {"x": torch.randn(6, 5, generator=torch.Generator().manual_seed(0))}


class Branches(nn.Module):
    """x = keep x + block(x); `keep` 0: no skip connection at all."""

    keep = 1.0

    def __init__(self, width=8, n=3):
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        block = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))  # noqa: E731
        self.blocks = nn.ModuleList([block() for _ in range(n)])

    def forward(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = (x if self.keep == 1 else self.keep * x) + block(x)
        return self.out(x)


class Halved(Branches):
    keep = 0.5


class Plain(Branches):
    keep = 0.0


class ConvBranches(nn.Module):
    """x = relu(x + block(x)), as small ResNets are written, blocks ending in a batch norm."""

    def __init__(self, width=8, n=2):
        super().__init__()
        self.stem = nn.Conv2d(5, width, 1)
        block = lambda: nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))  # noqa: E731
        self.blocks = nn.ModuleList([block() for _ in range(n)])
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x[..., None, None]).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.out(x.mean((2, 3)))


class Bare(nn.Module):
    """x = x + tanh(x W + b) from lists of parameters."""

    def __init__(self, width=8, n=3):
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        self.w = nn.ParameterList([nn.Parameter(torch.randn(width, width) * 0.3) for _ in range(n)])
        self.b = nn.ParameterList([nn.Parameter(torch.randn(width) * 0.3) for _ in range(n)])

    def forward(self, x):
        x = self.inp(x)
        for w, b in zip(self.w, self.b, strict=True):
            x = x + torch.tanh(x @ w + b)
        return self.out(x)


class BareTwice(nn.Module):
    """x = x + relu(x W1) W2 from lists of parameters: W2 is the one to be zero, else nothing would ever train."""

    def __init__(self, width=8, n=3):
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 3)
        self.w1 = nn.ParameterList([nn.Parameter(torch.randn(width, width) * 0.3) for _ in range(n)])
        self.w2 = nn.ParameterList([nn.Parameter(torch.randn(width, width) * 0.3) for _ in range(n)])

    def forward(self, x):
        x = self.inp(x)
        for w1, w2 in zip(self.w1, self.w2, strict=True):
            x = x + torch.relu(x @ w1) @ w2
        return self.out(x)


def grown(kind, method):
    torch.manual_seed(0)
    net = kind().eval()
    anatomy = ms.Anatomy.infer(kind, {"width": 8}, {"n": 2 if kind is ConvBranches else 3})
    return net, ms.Growth.of(net, method, anatomy=anatomy, inputs=INPUTS)


@pytest.mark.parametrize("method", [ms.IdentityBlocks(depth=2), [ms.HyperCloning(width=2), ms.IdentityBlocks(depth=2)],
                                    ms.LEMON({"width": 12}, depths={"n": 5})])  # fmt: skip
@pytest.mark.parametrize("kind", [Branches, ConvBranches, Bare, BareTwice])
def test_depth_is_promised_and_exact(kind, method):
    net, growth = grown(kind, method)
    assert all(plan.preserves_function for plan in growth.plans)
    assert growth.certificate.holds
    torch.testing.assert_close(growth.model(**INPUTS), net(**INPUTS), rtol=1e-4, atol=1e-5)
    assert growth.anatomy.depths["n"] > len(net.blocks if hasattr(net, "blocks") else net.inp.weight[:3])


@pytest.mark.parametrize("kind, kept, zero", [
    (Branches, "blocks.{}.0.weight", "blocks.{}.2.weight"),
    (ConvBranches, "blocks.{}.0.weight", "blocks.{}.1.weight"),
    (BareTwice, "w1.{}", "w2.{}"),
])  # fmt: skip
def test_only_the_last_step_is_silent_so_that_new_blocks_learn(kind, kept, zero):
    """Two steps: the first moves what is zero, then what stands before it has gradients."""
    _, growth = grown(kind, ms.IdentityBlocks(depth=2))
    model, depth = growth.model.train(), growth.anatomy.depths["n"]
    state = model.state_dict()
    silent = [i for i in range(depth) if not state[zero.format(i)].any()]
    assert len(silent) == depth // 2
    assert all(state[kept.format(i)].any() for i in range(depth))
    before = {i: state[kept.format(i)].clone() for i in silent}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(**INPUTS).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(model.state_dict()[kept.format(i)], before[i]) for i in silent)


@pytest.mark.parametrize("kind", [Halved, Plain])
def test_blocks_that_no_silence_leaves_out_are_not_promised(kind):
    with pytest.warns(UserWarning, match="does not keep the function"):
        _, growth = grown(kind, ms.IdentityBlocks(depth=2))
    assert not growth.plans[0].preserves_function
    assert not growth.certificate.holds


def test_blocks_of_bare_parameters_are_no_sub_networks():
    torch.manual_seed(0)
    net = Bare()
    schedule = ms.SubnetworkSchedule(num_hidden_layers=3, total_steps=2, stages=[1, 2], fixed_layers=[0])
    anatomy = ms.Anatomy.infer(Bare, {"width": 8}, {"n": 3})
    with (
        pytest.raises(ms.MeristemError, match="no list of repeated blocks"),
        ms.subnetwork(net, schedule, step=0, anatomy=anatomy),
    ):
        pass
