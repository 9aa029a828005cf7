"""Networks of one size brought into one order: a network that only has its units in other places is found again."""

from __future__ import annotations

import copy
import itertools

import own_architectures as own
import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms
from meristem.growth.methods.rebasin import align
from meristem.growth.structure import transport
from meristem.growth.structure.symmetries import watched_symmetries

RANDOM = torch.Generator().manual_seed(0)
IMAGES = {"x": torch.randn(32, 3, 16, 16, generator=RANDOM)}
TEXT = {"tokens": torch.randint(11, (8, 12), generator=RANDOM)}
NOISY = {"x": torch.randn(8, 1, 16, 16, generator=RANDOM), "t": torch.randint(1000, (8,), generator=RANDOM)}
NETWORKS = {
    "resnet": (lambda: own.CifarResNet(8, 2), IMAGES),
    "einsum": (lambda: own.EinsumTransformer(16, 2, 8, 24), TEXT),
    "unet": (own.UNet, NOISY),
    "se": (own.SENet, IMAGES),
    "moe": (own.MoETransformer, {"idx": TEXT["tokens"]}),
}


def permuted_copies(build, inputs) -> tuple[nn.Module, nn.Module]:
    """A network with random weights, and the same with its units in another order."""
    torch.manual_seed(0)
    net = build()
    randomise(net)
    net.eval()
    symmetries, _ = watched_symmetries(net, inputs)
    moved = copy.deepcopy(net)
    orders = {group: torch.randperm(size) for group, size in symmetries.sizes.items()}
    moved.load_state_dict(symmetries.apply(net.state_dict(), orders))
    return net, moved


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("build, inputs", [NETWORKS["resnet"], NETWORKS["einsum"], NETWORKS["se"]])
def test_a_permuted_copy_is_found_again(build, inputs, by):
    net, moved = permuted_copies(build, inputs)
    assert ms.verify(net, moved, inputs).holds
    back = align(net, moved, ms.Rebasin(by=by), inputs)
    apart = [n for n, t in net.state_dict().items() if not torch.allclose(t.float(), back.state_dict()[n].float())]
    if by == "weights":
        assert not apart
    else:  # groups behind no nonlinearity (the stream of a pre-norm network, heads) are not seen
        assert len(apart) < len(
            [n for n, t in net.state_dict().items() if not torch.allclose(t.float(), moved.state_dict()[n].float())]
        )


@pytest.mark.parametrize("build, inputs", NETWORKS.values(), ids=NETWORKS)
def test_every_symmetry_keeps_the_function(build, inputs):
    net, moved = permuted_copies(build, inputs)
    assert not torch.equal(next(moved.parameters()), next(net.parameters()))
    assert ms.verify(net, moved, inputs).holds


class Digits:
    """scikit-learn's digits, 1,400 of them to train on, and perceptrons that learn them."""

    def __init__(self) -> None:
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        self.images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
        self.labels = torch.tensor(digits.target)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        self.train, self.held_out = order[:1400], order[1400:]

    def trained(self, widths: list[int], seed: int, steps: int) -> nn.Module:
        torch.manual_seed(seed)
        hidden = [layer for a, b in itertools.pairwise([64, *widths]) for layer in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*hidden, nn.Linear(widths[-1], 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
        for _ in range(steps):
            batch = self.train[torch.randint(1400, (128,))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(self.images[batch]), self.labels[batch]).backward()
            optimizer.step()
        return net.eval()

    def accuracy(self, net: nn.Module) -> float:
        """On the held-out ones."""
        return float((net(self.images[self.held_out]).argmax(1) == self.labels[self.held_out]).float().mean())


def test_two_trained_networks_average_to_nearly_what_they_are():
    """Measured on two pairs of seeds: 97 % of digits against 40 to 70 % for the mean of unaligned weights."""
    digits = Digits()
    accuracy = digits.accuracy
    parents = [digits.trained([128, 128, 128], seed, 600) for seed in (0, 1)]
    naive = copy.deepcopy(parents[0])
    naive.load_state_dict({n: (t + parents[1].state_dict()[n]) / 2 for n, t in naive.state_dict().items()})
    fusion = ms.fuse_with_certificate(parents, ms.Rebasin(), inputs={"input": digits.images[digits.train[:256]]})
    assert accuracy(fusion.model) > min(map(accuracy, parents)) - 0.04
    assert accuracy(fusion.model) > accuracy(naive) + 0.1
    assert not fusion.exact
    assert fusion.certificate.relative_error < 1
    assert sum(p.numel() for p in fusion.model.parameters()) == sum(p.numel() for p in parents[0].parameters())


def test_networks_of_another_architecture_are_refused():
    data = {"input": torch.randn(2, 3)}
    shallow, deep = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    with pytest.raises(ms.MeristemError, match=r"networks 1 and 2 are not of one architecture: 1\.weight differs"):
        ms.fuse([shallow, deep], ms.Rebasin(), inputs=data)
    build = lambda classes: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, classes))  # noqa: E731
    with pytest.raises(ms.MeristemError, match=r"2\.(weight|bias) has 4 units in the one network and 5 in the other"):
        ms.fuse([build(4), build(5)], ms.Rebasin(), inputs=data)


# --- unequal widths


@pytest.mark.parametrize("most", [4096, 1])
def test_the_transport_plan_by_hand(most, monkeypatch):
    """3 units from 2: the outer ones take two thirds of one each, the middle one the thirds that are left; by either solver."""
    monkeypatch.setattr(transport, "MOST_SHARES", most)
    likeness = torch.tensor([[1.0, 0.0], [0.4, 0.4], [0.0, 1.0]], dtype=torch.float64)
    plan = transport.transport_plan(likeness)
    torch.testing.assert_close(plan, torch.tensor([[2.0, 0], [1, 1], [0, 2]], dtype=torch.float64) / 6)
    torch.testing.assert_close(transport.transport_plan(likeness.T), plan.T)


@pytest.mark.parametrize("kind, narrow, wide, axes", [
    (lambda width: own.CifarResNet(width, 1), 4, 8, "width"),
    (lambda width: own.SENet(width, 1), 4, 8, "planes"),
    (lambda width: nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)), 4, 12, "w"),
])  # fmt: skip
def test_a_wide_clone_takes_the_narrow_network_back_exactly(kind, narrow, wide, axes):
    """Brought to the width of its own clone, a network has each unit so many times, and does what it did."""
    inputs = {"input": torch.randn(16, 5, generator=RANDOM)} if axes == "w" else IMAGES
    torch.manual_seed(0)
    small = kind(narrow)
    randomise(small)
    small.eval()
    clone = ms.grow(small, ms.HyperCloning(width=wide // narrow, noise=0.0), inputs=inputs,
                    anatomy=ms.Anatomy.infer(lambda width: kind(width), {"width": narrow}))  # fmt: skip
    moved = align(clone, small, ms.Rebasin(by="activations"), inputs)
    assert [p.shape for p in moved.parameters()] == [p.shape for p in clone.parameters()]
    torch.testing.assert_close(moved(**inputs), small(**inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_two_trained_networks_of_unequal_widths(by):
    """Measured: 97.5 and 97.2 % at widths 128 and 96 become 96.0 (by weights) and 95.0 (by activations) at 128."""
    digits = Digits()
    accuracy = digits.accuracy
    wide, narrow = digits.trained([128, 128], 0, 400), digits.trained([96, 96], 1, 400)
    data = {"input": digits.images[digits.train[:512]]}
    moved = align(wide, narrow, ms.Rebasin(by=by), data)
    assert accuracy(moved) > accuracy(narrow) - 0.04
    one = ms.fuse([wide, narrow], ms.Rebasin(by=by), inputs=data)
    assert one[0].out_features == 128
    assert accuracy(one) > 0.9
    other_way = ms.fuse([narrow, wide], ms.Rebasin(by=by), inputs=data)
    assert other_way[0].out_features == 96
    assert accuracy(other_way) > 0.88
