"""Six networks as others wrote them (`own_architectures.py`), none of their lines changed: exact in width, in depth, fused, shrunk
and with optimizer state; whatever their axes are called."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import own_architectures as own
import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms

RANDOM = torch.Generator().manual_seed(0)
IMAGES = {"x": torch.randn(4, 3, 16, 16, generator=RANDOM)}
NOISY = {"x": torch.randn(4, 1, 16, 16, generator=RANDOM), "t": torch.tensor([3, 40, 7, 900])}
TEXT = {"tokens": torch.randint(11, (4, 12), generator=RANDOM)}
IDS = {"idx": TEXT["tokens"]}


@dataclass(frozen=True)
class Case:
    """One network: how it is built, what may grow, what it takes in, and what a growth at one and a half times its size keeps."""

    build: Any
    sizes: dict[str, int]
    depths: dict[str, int]
    inputs: dict[str, torch.Tensor]
    any_ratio: bool
    normed: bool  # some norm sees all units together, so a fusion of different networks is not their mean

    def network(self, seed: int = 0, **sizes: int) -> nn.Module:
        torch.manual_seed(seed)
        net = self.build(**{**self.sizes, **self.depths, **sizes})
        randomise(net, seed=seed)
        return net.eval()

    def anatomy(self) -> ms.Anatomy:
        return ms.Anatomy.infer(self.build, self.sizes, self.depths)


CASES = {
    "resnet": Case(own.CifarResNet, {"width": 8}, {"num_blocks": 2}, IMAGES, True, False),
    "einsum": Case(
        own.EinsumTransformer, {"d_model": 16, "n_heads": 2, "d_mlp": 24}, {"n_layers": 2}, TEXT, True, True
    ),
    "unet": Case(own.UNet, {"ch": 8}, {"num_mid": 2}, NOISY, False, True),
    "lstm": Case(own.RNNModel, {"ninp": 12, "nhid": 16}, {}, TEXT, True, False),
    "gru": Case(functools.partial(own.RNNModel, "GRU"), {"ninp": 12, "nhid": 16}, {}, TEXT, True, False),
    "se": Case(own.SENet, {"planes": 8}, {"repeats": 2}, IMAGES, True, False),
    "moe": Case(own.MoETransformer, {"num_heads": 2, "inner": 24}, {"num_layers": 2}, IDS, False, True),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def close(model: nn.Module, other: nn.Module, case: Case) -> None:
    ours, theirs = model(**case.inputs), other(**case.inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


@every
@pytest.mark.parametrize(
    "method", [ms.HyperCloning(width=2, noise=0.3), ms.HyperCloning(width=3)], ids=["twice, noise", "three times"]
)
def test_width(case, method):
    net = case.network()
    growth = ms.Growth.of(net, method, anatomy=case.anatomy(), inputs=case.inputs)
    assert growth.certificate.holds
    assert growth.anatomy.sizes == {**growth.anatomy.sizes, **{a: n * method.width for a, n in case.sizes.items()}}
    close(growth.model, net, case)


@every
@pytest.mark.parametrize("method", [ms.LEMON, ms.ZeroPadding])
def test_one_and_a_half_times_the_width_is_exact_or_not_promised(case, method):
    net = case.network()
    larger = method({axis: size * 3 // 2 for axis, size in case.sizes.items()})
    growth = ms.Growth.of(net, larger, anatomy=case.anatomy(), inputs=case.inputs)
    assert growth.plans[0].preserves_function == case.any_ratio == growth.certificate.holds
    assert growth.model(**case.inputs).isfinite().all()


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.depths], ids=[n for n, c in CASES.items() if c.depths])
def test_depth(case):
    net = case.network()
    growth = ms.Growth.of(net, ms.IdentityBlocks(depth=2), anatomy=case.anatomy(), inputs=case.inputs)
    assert growth.certificate.holds
    assert growth.anatomy.depths == {axis: 2 * depth for axis, depth in case.depths.items()}
    close(growth.model, net, case)


@every
def test_fusion(case):
    """Of a network with itself, and of two different ones wherever no norm sees all their units together."""
    net, other, anatomy = case.network(), case.network(seed=1), case.anatomy()
    twice = ms.fuse_with_certificate([net, net], anatomies=[anatomy] * 2, inputs=case.inputs)
    assert twice.exact
    close(twice.model, net, case)
    both = ms.fuse_with_certificate([net, other], anatomies=[anatomy] * 2, inputs=case.inputs)
    assert both.exact == (not case.normed) == both.certificate.holds
    if both.exact:
        mean = (net(**case.inputs) + other(**case.inputs)) / 2
        torch.testing.assert_close(both.model(**case.inputs), mean, rtol=1e-4, atol=1e-4 * float(mean.abs().max()))


@every
def test_what_was_cloned_shrinks_to_what_it_was(case):
    net = case.network()
    big = ms.Growth.of(net, ms.HyperCloning(width=2, noise=0.0), anatomy=case.anatomy(), inputs=case.inputs)
    first = ms.WeightSelection(sizes=case.sizes, selection="first", readers="rescaled")
    small = ms.shrink(big, first, inputs=case.inputs)
    ours, theirs = small.state_dict(), net.state_dict()
    wrong = {name for name in theirs if not torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-6)}
    assert not wrong
    close(small, net, case)


@every
def test_the_optimizer_follows_the_small_networks_trajectory(case):
    net = case.network().train()
    small = copy.deepcopy(net)
    for module in small.modules():  # statistics of a batch are the same for copies, but running ones meet other weights
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3, eps=1e-12)
    _train(small, optimizer, case, 2)
    growth = ms.Growth.of(small, ms.HyperCloning(width=2, noise=0.0), anatomy=case.anatomy(), inputs=case.inputs)
    big = growth.model.train()
    for module in big.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    follower = growth.grow_optimizer(optimizer, scale_learning_rate=True)
    before = small(**case.inputs).detach()
    _train(small, optimizer, case, 4)
    _train(big, follower, case, 4)
    moved = float((small(**case.inputs) - before).abs().max())
    apart = float((small(**case.inputs) - big(**case.inputs)).abs().max())
    assert moved > 0
    assert apart < 1e-3 * moved


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, case: Case, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(**case.inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["hidden", "width", "channels", "dim", "heads", "kv_heads", "ffn"])
@pytest.mark.parametrize("method, size", [(ms.HyperCloning, 32), (ms.LEMON, 24), (ms.ZeroPadding, 24)])
def test_the_name_of_an_axis_decides_nothing(name, method, size):
    def build(**sizes):
        return own.EinsumTransformer(d_model=sizes[name])

    torch.manual_seed(0)
    net = build(**{name: 16})
    randomise(net)
    growth = ms.Growth.of(net, method({name: size}), anatomy=ms.Anatomy.infer(build, {name: 16}), inputs=TEXT)
    assert growth.certificate.holds
    assert growth.model.W_E.shape == (11, size)


def test_roles_of_raw_parameters_come_from_a_pass():
    case = CASES["einsum"]
    anatomy = ms.Anatomy.infer(case.build, case.sizes, case.depths, inputs=TEXT)
    found = {
        name: [f"{d.role} {d.layout}" for d in anatomy.tensors[name].dimensions]
        for name in ("W_E", "W_U", "blocks.0.W_in", "blocks.1.attn.W_Q", "blocks.1.attn.W_O", "blocks.0.ln1.scale")
    }
    assert found == {
        "W_E": ["fixed 11", "write d_model"],
        "W_U": ["read d_model", "write 11"],
        "blocks.0.W_in": ["read d_model", "write d_mlp"],
        "blocks.1.attn.W_Q": ["write n_heads", "read d_model", "write 8"],
        "blocks.1.attn.W_O": ["read n_heads", "read 8", "write d_model"],
        "blocks.0.ln1.scale": ["gain d_model"],
    }


def test_layouts_come_from_a_pass():
    """A padded shortcut, a concatenated skip, a flattened image, heads inside a fused projection."""
    infer = ms.Anatomy.infer
    resnet = infer(own.CifarResNet, {"width": 8}, {"num_blocks": 2}, inputs=IMAGES)
    assert str(resnet.tensors["layer2.1.conv1.weight"].dimensions[1].layout) == "4 over2_width"
    unet = infer(own.UNet, {"ch": 8}, {"num_mid": 2}, inputs=NOISY)
    assert str(unet.tensors["up1.conv1.weight"].dimensions[1].layout) == "12 over4_ch"
    se = infer(own.SENet, {"planes": 8}, {"repeats": 2}, inputs=IMAGES)
    assert str(se.tensors["classifier.weight"].dimensions[1].layout) == "2 planes 16"
    moe = infer(own.MoETransformer, {"num_heads": 2, "inner": 24}, {"num_layers": 2}, inputs=IDS)
    assert str(moe.tensors["layers.0.qkv.weight"].dimensions[0].layout) == "3 num_heads 8"
    assert [d.role for d in moe.tensors["layers.0.moe.w1"].dimensions] == ["fixed", "read", "write"]


def test_without_inputs_or_roles_a_raw_parameter_is_no_guess():
    case = CASES["einsum"]
    with pytest.raises(
        ms.MeristemError, match=r"W_\w+ \(.*\) is a parameter of no module .* pass inputs= .* roles=\{'"
    ):
        ms.grow(case.network(), ms.HyperCloning(width=2), anatomy=case.anatomy(), verify=False)
    roles = {
        r"W_E|W_pos": ("fixed", "write"),
        r"W_U|.*\.W_in": ("read", "write"),
        r".*\.W_out": ("read", "write"),
        r".*\.W_[QKV]": ("write", "read", "write"),
        r".*\.W_O": ("read", "read", "write"),
        r".*\.b_Q": ("write", "write"),
    }
    anatomy = ms.Anatomy.infer(case.build, case.sizes, case.depths, roles=roles)
    grown = ms.grow(case.network(), ms.HyperCloning(width=2), anatomy=anatomy, verify=False)
    close(grown, case.network(), case)


def test_a_matrix_that_is_read_and_written_is_refused_by_name():
    class Tied(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(11, width))

        def forward(self, tokens):
            return torch.tanh(self.table[tokens]) @ self.table.T

    with pytest.raises(ms.MeristemError, match=r"dimension 1 of table \(11, 8\) is both read and written"):
        ms.grow(Tied(8), ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(Tied, {"width": 8}), inputs=TEXT)


@pytest.mark.parametrize("method, size, message", [
    (ms.WeightSelection, 5, "width 8 -> 5 would grow a part of 4 of its units to 2.5; the target has to be a multiple of 2: 4 or 6 would work"),
    (ms.WeightSelection, 7, "the target has to be a multiple of 2: 6 would work"),
    (ms.Prune, 3, "the target has to be a multiple of 2: 2 or 4 would work"),
    (ms.LEMON, 9, "the target has to be a multiple of 2: 10 would work"),
])  # fmt: skip
def test_an_odd_size_of_a_padded_shortcut_is_one_clear_sentence(method, size, message):
    case = CASES["resnet"]
    verb = ms.grow if method is ms.LEMON else ms.shrink
    with pytest.raises(ms.MeristemError) as error:
        verb(case.network(), method(sizes={"width": size}), anatomy=case.anatomy(), inputs=IMAGES)
    assert message in str(error.value)
