"""Networks in the idioms of well-known repositories (`well_known_networks.py`), each of which was refused, or grown, fused or shrunk to
something else, before its kind was understood. Outputs are compared here, beside the certificate."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import pytest
import torch
import well_known_networks as known
from support.tiny import randomise
from torch import nn

import meristem as ms
from meristem.anatomy.norms import gain_of
from meristem.errors import AnatomyError, MeristemError, PreservationError

RANDOM = torch.Generator().manual_seed(0)
TEXT = torch.randint(11, (3, 9), generator=RANDOM)
NOISE = functools.partial(torch.randn, generator=RANDOM)
LLAMA = {"dim": 32, "n_heads": 4, "n_kv_heads": 2}
WORDS = {"ninp": 16, "nhead": 2, "nhid": 24}
ENCODER = {"d_model": 16, "nhead": 2, "ff": 24}
CASES: dict[str, tuple[Any, dict[str, int], dict[str, torch.Tensor], tuple[type, ...]]] = {
    # the class, its sizes, its inputs, the methods that are exact at one and a half times the size
    "llama": (known.Llama, LLAMA, {"tokens": TEXT}, (ms.LEMON, ms.ZeroPadding)),
    "tied lstm": (known.TiedRNN, {"n": 16}, {"input": TEXT}, (ms.ZeroPadding,)),
    "word transformer": (known.WordTransformer, WORDS, {"src": TEXT}, ()),
    "encoder": (known.Encoder, ENCODER, {"x": TEXT}, (ms.LEMON, ms.ZeroPadding)),
    "densenet": (known.DenseNet, {"growth": 4, "init": 8}, {"x": NOISE(2, 3, 8, 8)}, (ms.LEMON, ms.ZeroPadding)),
    "textcnn": (known.TextCNN, {"embed": 12, "filters": 8}, {"x": TEXT}, (ms.LEMON, ms.ZeroPadding)),
    "mamba": (known.Mamba, {"d": 16}, {"ids": TEXT}, (ms.LEMON, ms.ZeroPadding)),
    "factorisation": (known.Factorisation, {"w": 8}, {"u": TEXT[0], "i": TEXT[1]}, (ms.LEMON, ms.ZeroPadding)),
    "vae": (known.VAE, {"h": 24}, {"x": NOISE(4, 9)}, (ms.LEMON, ms.ZeroPadding)),
    "siamese": (known.Siamese, {"w": 8}, {"a": NOISE(4, 6), "b": NOISE(4, 6)}, (ms.LEMON, ms.ZeroPadding)),
    "tcn": (known.TCN, {"c": 8}, {"x": NOISE(2, 2, 12)}, (ms.LEMON, ms.ZeroPadding)),
}
every = pytest.mark.parametrize("name", CASES)


def network(build, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build()
    randomise(net, seed=seed)
    return net.double().eval()


def outputs(net: nn.Module, inputs) -> list[torch.Tensor]:
    """All tensors that come out and have the same shape at any width."""
    given = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        out = net(**given)
    if isinstance(out, torch.Tensor):
        return [out]
    found = dataclasses.astuple(out) if dataclasses.is_dataclass(out) else out
    return [value for value in found if isinstance(value, torch.Tensor)]


def gap(net: nn.Module, other: nn.Module, inputs) -> float:
    ours, theirs = outputs(net, inputs), outputs(other, inputs)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True))


@every
def test_twice_as_wide_is_the_same_function(name):
    build, sizes, inputs, _ = CASES[name]
    net = network(build)
    anatomy = ms.Anatomy.infer(build, sizes)
    growth = ms.Growth.of(net, ms.HyperCloning({a: 2 * n for a, n in sizes.items()}), anatomy=anatomy, inputs=inputs)
    assert growth.certificate is not None
    assert growth.certificate.holds
    assert gap(net, growth.model, inputs) < 1e-6
    clone = ms.Growth.of(
        net, ms.HyperCloning({a: 2 * n for a, n in sizes.items()}, noise=0.0), anatomy=anatomy, inputs=inputs
    )
    undo = ms.WeightSelection(sizes=sizes, selection="first", readers="rescaled")
    back = ms.shrink(clone, undo, inputs=inputs)
    assert gap(net, back, inputs) < 1e-9


@every
def test_one_and_a_half_times_as_wide(name):
    build, sizes, inputs, exact = CASES[name]
    net = network(build)
    anatomy = ms.Anatomy.infer(build, sizes, inputs=inputs)
    for method in exact:
        wide = {axis: 3 * size // 2 for axis, size in sizes.items()}
        growth = ms.Growth.of(net, method(wide), anatomy=anatomy, inputs=inputs)
        assert growth.certificate is not None
        assert growth.certificate.holds
        assert gap(net, growth.model, inputs) < 1e-6


@every
def test_fused_with_itself_it_is_itself(name):
    build, sizes, inputs, _ = CASES[name]
    net = network(build)
    fused = ms.fuse([net, net], anatomies=[ms.Anatomy.infer(build, sizes)] * 2, inputs=inputs)
    assert gap(net, fused, inputs) < 1e-6


def test_sizes_that_the_function_works_out_are_axes_of_their_own():
    anatomy = ms.Anatomy.infer(known.Llama, LLAMA, {"n_layers": 2}, inputs={"tokens": TEXT})
    assert {axis: size for axis, size in anatomy.sizes.items() if axis.startswith("following")} == {
        "following_16": 16,  # two of four heads of eight
        "following_88": 88,  # 85 rounded up to a multiple of 4
    }
    net = network(known.Llama)
    growth = ms.Growth.of(
        net, ms.HyperCloning({a: 2 * n for a, n in LLAMA.items()}), anatomy=anatomy, inputs={"tokens": TEXT}
    )
    assert growth.anatomy.sizes["following_88"] == 172  # not 176
    assert growth.model.get_parameter("layers.0.w1.weight").shape == (172, 64)
    with pytest.raises(MeristemError, match="no axis 'following_88' that can change; it has dim, n_heads, n_kv_heads"):
        ms.grow(net, ms.LEMON({"following_88": 176}), anatomy=anatomy, inputs={"tokens": TEXT})


def test_without_a_pass_such_a_size_is_no_guess():
    anatomy = ms.Anatomy.infer(known.DenseNet, {"growth": 4, "init": 8})
    with pytest.raises(
        AnatomyError, match=r"of blocks\.1\.0\.norm1\.weight .* works out from growth, init .*; pass inputs="
    ):
        ms.grow(network(known.DenseNet), ms.HyperCloning(width=2), anatomy=anatomy, verify=False)


@pytest.mark.parametrize("name", ["llama", "mamba", "tcn", "encoder"])
def test_twice_as_deep(name):
    build, sizes, inputs, _ = CASES[name]
    depth = {"llama": "n_layers", "mamba": "n_layer", "tcn": "n", "encoder": "layers"}[name]
    net = network(build)
    anatomy = ms.Anatomy.infer(build, sizes, {depth: 2})
    deep = ms.grow(net, ms.IdentityBlocks(depth=2), anatomy=anatomy, inputs=inputs)
    assert gap(net, deep, inputs) < 1e-12
    assert len(deep.state_dict()) > len(net.state_dict())


@pytest.mark.parametrize("name", ["tied lstm", "llama", "word transformer", "factorisation"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, functools.partial(torch.optim.SGD, momentum=0.9)])
def test_the_optimizer_moves_the_same_function(name, optimizer):
    build, sizes, inputs, _ = CASES[name]
    net = network(functools.partial(build, multiple_of=1) if name == "llama" else build)
    small = optimizer(net.parameters(), lr=1e-3)
    target = NOISE(*outputs(net, inputs)[0].shape).double()

    def step(model: nn.Module, chosen: torch.optim.Optimizer) -> None:
        out = model(**inputs)
        loss = ((out if isinstance(out, torch.Tensor) else out[0]) - target).square().mean()
        chosen.zero_grad()
        loss.backward()
        chosen.step()

    step(net, small)
    build = functools.partial(build, multiple_of=1) if name == "llama" else build
    growth = ms.Growth.of(
        net,
        ms.HyperCloning({a: 2 * n for a, n in sizes.items()}, noise=0.0),
        anatomy=ms.Anatomy.infer(build, sizes),
        inputs=inputs,
    )
    large = growth.grow_optimizer(small, scale_learning_rate=True)
    before = outputs(net, inputs)[0]
    for _ in range(2):
        step(net, small)
        step(growth.model, large)
    after, theirs = outputs(net, inputs)[0], outputs(growth.model, inputs)[0]
    moved = (after - before).abs().max()
    assert (after - theirs).abs().max() < 1e-3 * moved


def test_a_mean_of_log_probabilities_is_normalised():
    inputs = {"x": NOISE(7, 6), "adj": torch.rand(7, 7, generator=RANDOM)}
    parents = [network(known.GCN, seed) for seed in (0, 1)]
    fused = ms.fuse(parents, anatomies=[ms.Anatomy.infer(known.GCN, {"nhid": 16})] * 2, inputs=inputs)
    mean = sum(outputs(parent, inputs)[0] for parent in parents) / 2
    torch.testing.assert_close(outputs(fused, inputs)[0], mean.log_softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "sizes", "inputs", "shared"),
    [
        (known.ThinStem, {"widen": 2}, {"x": NOISE(2, 3, 8, 8)}, r"stem\.weight, stem\.bias"),
        (known.VAE, {"h": 24}, {"x": NOISE(4, 9)}, r"fc21\.bias, fc22\.bias"),
    ],
    ids=["stem", "vae"],
)
def test_parents_that_meet_in_units_of_fixed_number_are_measured_and_named(build, sizes, inputs, shared):
    parents = [network(build, seed) for seed in (0, 1)]
    with pytest.warns(UserWarning, match=f"not its parents' mean.*shared by all parents: .*{shared}"):
        fused = ms.fuse(parents, anatomies=[ms.Anatomy.infer(build, sizes)] * 2, inputs=inputs)
    assert fused.state_dict().keys() == parents[0].state_dict().keys()


def test_a_norm_is_known_by_what_it_does():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return 2 * x * self.scale

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))

        def forward(self, x):
            return self.b * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.a

    assert gain_of(known.RootMeanSquare(8)) == "weight"
    assert gain_of(Centred()) == "b"
    assert gain_of(Doubled()) is None
    assert gain_of(nn.PReLU(8)) is None


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("place", ["parametrizations", "legacy"])
def test_weights_that_are_computed_are_refused_with_what_to_write(norm, place):
    put = getattr(torch.nn.utils.parametrizations if place == "parametrizations" else torch.nn.utils, norm)
    build = functools.partial(known.TCN, norm=put)
    functools.update_wrapper(build, known.TCN)
    inputs = CASES["tcn"][2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the legacy functions
        net = build().eval()
        anatomy = ms.Anatomy.infer(build, {"c": 8})
        with pytest.raises(PreservationError, match=r"network\.0\.conv1\.weight is computed from .*Take it off"):
            ms.grow(net, ms.HyperCloning(width=2), anatomy=anatomy, inputs=inputs)
        with pytest.raises(MeristemError, match=r"prune: network\.0\.conv1\.weight is computed from .*Take it off"):
            ms.shrink(net, ms.Prune(sizes={"c": 4}), anatomy=anatomy, inputs=inputs)


def test_a_pad_that_a_product_does_not_carry_is_measured():
    class Gated(nn.Module):
        def __init__(self, d=16):
            super().__init__()
            self.emb, self.norm = nn.Embedding(11, d), nn.LayerNorm(d)
            self.gate, self.value, self.head = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 11)
            self.last = nn.LayerNorm(d)

        def forward(self, ids):
            x = self.emb(ids)
            h = self.norm(x)
            return self.head(self.last(x + torch.sigmoid(self.gate(h)) * self.value(h)))

    net, inputs = network(Gated), {"ids": TEXT}
    anatomy = ms.Anatomy.infer(Gated, {"d": 16}, inputs=inputs)
    with pytest.warns(UserWarning, match="lemon: this growth does not keep the function"):
        grown = ms.grow(net, ms.LEMON({"d": 24}), anatomy=anatomy, inputs=inputs)
    assert 1e-4 < gap(net, grown, inputs) < 1
    assert gap(net, ms.grow(net, ms.HyperCloning({"d": 32}), anatomy=anatomy, inputs=inputs), inputs) < 1e-6


def test_heads_of_a_fixed_number_are_refused_with_what_to_write():
    def fixed(dim=32):
        return known.Llama(dim)

    with pytest.raises(PreservationError, match=r"cuts dim into \d parts.*'heads': \.\.\."):
        ms.grow(
            network(fixed),
            ms.HyperCloning(width=2),
            anatomy=ms.Anatomy.infer(fixed, {"dim": 32}),
            inputs={"tokens": TEXT},
        )


def test_a_growth_that_cannot_be_measured_says_so():
    class Valid(nn.Module):
        def __init__(self, n=2, w=4):
            super().__init__()
            self.first = nn.Conv1d(2, w, 1)
            self.convs = nn.ModuleList(nn.Conv1d(w, w, 2, dilation=2**i) for i in range(n))

        def forward(self, x):
            x = self.first(x)
            for conv in self.convs:
                x = x[..., -conv(x).shape[-1] :] + conv(x)
            return x

    anatomy = ms.Anatomy.infer(Valid, {"w": 4}, {"n": 2})
    with pytest.warns(UserWarning, match="identity_blocks: .*could not be measured on inputs=.*Kernel size"):
        ms.grow(network(Valid), ms.IdentityBlocks(depth=2), anatomy=anatomy, inputs={"x": NOISE(1, 2, 6)})
