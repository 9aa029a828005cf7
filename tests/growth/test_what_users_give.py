"""What does not belong together is said in one sentence; what a growth loses is said too."""

from __future__ import annotations

import copy
import functools
import warnings

import own_architectures as own
import pico
import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms

IMAGES = {"x": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
TEXT = {"tokens": torch.randint(11, (4, 12), generator=torch.Generator().manual_seed(0))}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(7, width), nn.LayerNorm(width), nn.Linear(width, 3, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.first(x).relu()))


class WithBias(Net):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.head = nn.Linear(width, 3)


VECTORS = {"x": torch.randn(9, 7, generator=torch.Generator().manual_seed(0))}
ANATOMY = ms.Anatomy.infer(Net, {"width": 8})


def test_a_tensor_that_the_class_lacks_is_not_dropped():
    for verify in (True, False):
        with pytest.raises(ms.MeristemError, match=r"another network .* does not know head\.bias"):
            ms.grow(WithBias(8), ms.HyperCloning(width=2), anatomy=ANATOMY, inputs=VECTORS, verify=verify)
    with pytest.raises(ms.MeristemError, match=r"the network has no head\.bias"):
        ms.grow(Net(8), ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(WithBias, {"width": 8}), inputs=VECTORS)


def test_an_anatomy_of_another_size():
    with pytest.raises(
        ms.MeristemError, match=r"first\.weight is \(16, 7\) in the network and \(8, 7\) in the anatomy"
    ):
        ms.grow(Net(16), ms.HyperCloning(width=2), anatomy=ANATOMY, inputs=VECTORS)


def test_inputs_that_are_no_keyword_arguments():
    with pytest.raises(ms.MeristemError, match=r"inputs are keyword arguments of forward, .* got a Tensor"):
        ms.grow(Net(8), ms.HyperCloning(width=2), anatomy=ANATOMY, inputs=VECTORS["x"])


def test_one_anatomy_for_each_network():
    with pytest.raises(ms.MeristemError, match="anatomies has 1 entries for 2 networks"):
        ms.fuse([Net(8), Net(8)], anatomies=[ANATOMY], inputs=VECTORS)


def test_a_growth_that_loses_the_function_says_by_how_much():
    net = Net(8)
    randomise(net)
    with pytest.warns(UserWarning, match=r"net2net: .* relative logit error \d\.\de-\d+") as said:
        growth = ms.Growth.of(net, ms.Net2Net({"width": 12}), anatomy=ANATOMY, inputs=VECTORS)
    assert len([w for w in said if "net2net" in str(w.message)]) == 1
    assert f"{growth.certificate.relative_error:.1e}" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.grow(net, ms.HyperCloning(width=2), anatomy=ANATOMY, inputs=VECTORS)


def test_a_network_of_ones_own_is_shown_by_its_anatomy_and_not_by_a_command_that_cannot_open_it():
    class Scaled(Net):
        def forward(self, x):
            return super().forward(x) * self.first.weight.shape[0] ** 1.5 + self.first.weight.shape[0]

    with pytest.raises(ms.PreservationError, match=r"print\(anatomy\) shows"):
        ms.grow(Scaled(8), ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(Scaled, {"width": 8}), inputs=VECTORS)


def test_interleaved_copies_commute_with_padding_at_both_ends():
    """Without a pass (verify=False, no inputs) tiled copies do not."""
    torch.manual_seed(0)
    net = own.CifarResNet(8, 2)
    randomise(net)
    net.eval()
    anatomy = ms.Anatomy.infer(own.CifarResNet, {"width": 8}, {"num_blocks": 2})
    errors = {}
    for order in ("tile", "interleave"):
        grown = ms.grow(net, ms.HyperCloning(width=2, order=order, noise=0.0), anatomy=anatomy, verify=False)
        errors[order] = ms.verify(net, grown, IMAGES).relative_error
    assert errors["interleave"] < 1e-12
    assert errors["tile"] > 1e-3
    copies = grown.conv1.weight
    torch.testing.assert_close(copies, net.conv1.weight.repeat_interleave(2, 0))


@pytest.mark.parametrize("first", ["tile"])
def test_the_trial_lays_copies_in_the_other_order(first, monkeypatch):
    """Where no pass tells (here: because it is not asked), the second order of copies is tried before a growth is refused."""
    torch.manual_seed(0)
    net = own.CifarResNet(8, 2).eval()
    randomise(net)
    anatomy = ms.Anatomy.infer(own.CifarResNet, {"width": 8}, {"num_blocks": 2})
    monkeypatch.setattr(ms.Anatomy, "watched", lambda self, inputs: self)
    growth = ms.Growth.of(net, ms.HyperCloning(width=2, order=first), anatomy=anatomy, inputs=IMAGES)
    assert growth.certificate.holds
    assert growth.methods[0]["order"] == "interleave"


class Tied(nn.Module):
    def __init__(self, width: int, norm: bool = True) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(11, width), nn.Linear(width, 2 * width)
        self.down, self.norm = nn.Linear(2 * width, width), nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(nn.functional.gelu(self.up(x)))))


@pytest.mark.parametrize(
    "method", [ms.HyperCloning(width=2, noise=0.1), ms.LEMON({"width": 12}), ms.ZeroPadding({"width": 12})]
)
def test_tied_heads_of_ones_own(method):
    net = Tied(8)
    randomise(net)
    growth = ms.Growth.of(net, method, anatomy=ms.Anatomy.infer(Tied, {"width": 8}), inputs=TEXT)
    assert growth.certificate.holds
    assert growth.model.head.weight is growth.model.embed.weight
    with pytest.raises(ms.MeristemError, match=r"is tied to its embedding: .* no norm before it"):
        ms.grow(
            Tied(8, norm=False),
            ms.HyperCloning(width=2),
            anatomy=ms.Anatomy.infer(lambda width: Tied(width, False), {"width": 8}),
            inputs=TEXT,
        )


class Encoder(nn.Module):
    """nn.TransformerEncoderLayer, whose attention is nn.MultiheadAttention."""

    def __init__(self, n: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8 * n, n, 32 * n, batch_first=True, norm_first=True)
        self.embed, self.encoder = nn.Embedding(11, 8 * n), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8 * n, 11)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens)))


class TwoInputs(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(7, 3 * n), nn.Linear(7, 3 * n), nn.Bilinear(3 * n, 3 * n, 2 * n)
        self.head = nn.Linear(2 * n, 3)

    def forward(self, x):
        return self.head(self.both(self.a(x).relu(), self.b(x).tanh()).relu())


class Flattened(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv, self.back = nn.Conv2d(3, 2 * n, 3, padding=1), nn.ConvTranspose2d(2 * n, 4 * n, 2, 2)
        self.grouped, self.head = nn.Conv2d(4 * n, 4 * n, 3, 4, groups=4), nn.Linear(4 * n * 64, 5)

    def forward(self, x):
        return self.head(self.grouped(self.back(self.conv(x).relu()).relu()).relu().flatten(1))


@pytest.mark.parametrize("build, inputs", [(Encoder, TEXT), (TwoInputs, VECTORS), (Flattened, IMAGES)])
@pytest.mark.parametrize("methods", [
    ms.HyperCloning(width=2, noise=0.1),
    ms.HyperCloning({"n": 6}),
    [ms.HyperCloning(width=2), ms.HyperCloning(width=2, order="interleave")],
])  # fmt: skip
def test_modules_of_torch_and_channels_that_are_flattened(build, inputs, methods):
    torch.manual_seed(0)
    net = build(2)
    randomise(net)
    growth = ms.Growth.of(net.eval(), methods, anatomy=ms.Anatomy.infer(build, {"n": 2}), inputs=inputs)
    assert growth.certificate.holds
    assert growth.anatomy.sizes["n"] == (
        6
        if not isinstance(methods, list) and isinstance(methods.width, dict)
        else 8
        if isinstance(methods, list)
        else 4
    )


@pytest.mark.parametrize("vocab", [1, 2, 3])
@pytest.mark.parametrize("method", [ms.IdentityBlocks(depth=2), ms.LEMON(hidden_size=24, num_attention_heads=3)])
def test_the_smallest_vocabularies(vocab, method):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    net = transformers.GPT2LMHeadModel(config).eval()
    assert ms.Growth.of(net, method).certificate.holds


def test_a_copy_made_inside_a_subnetwork_is_not_gated():
    net = own.CifarResNet(4, 3).train()
    anatomy = ms.Anatomy.infer(own.CifarResNet, {"width": 4}, {"num_blocks": 3})
    schedule = ms.SubnetworkSchedule(stages=[1], num_hidden_layers=3, total_steps=2, fixed_layers=[0])
    with ms.subnetwork(net, schedule, 0, anatomy=anatomy):
        copied = copy.deepcopy(net)
    assert type(copied.layer1[1]) is own.BasicBlock
    assert "_meristem_gate" not in vars(copied.layer1[1])
    torch.testing.assert_close(copied(**IMAGES), copy.deepcopy(net)(**IMAGES))


def test_an_incubations_text_is_one_line():
    net = own.CifarResNet(4, 1)

    def build(width: int, first: int, second: int, third: int) -> nn.Module:
        made = own.CifarResNet(width, 1)
        made.in_planes = width
        made.layer1, made.layer2 = made._make_layer(width, first, 1), made._make_layer(2 * width, second, 2)
        made.layer3 = made._make_layer(4 * width, third, 2)
        return made

    anatomy = ms.Anatomy.infer(build, {"width": 4}, {"first": 1, "second": 1, "third": 1})
    text = repr(ms.incubate(net, ms.divide([2, 2, 2], 3), 1, anatomy=anatomy, inputs=IMAGES))
    assert text == "Incubation(module 1 of 3 (2, 2, 2 blocks) in a CifarResNet)"


CHANGED = {
    "another activation": (
        lambda m: setattr(m.model.layers[0].mlp, "act_fn", nn.ReLU()),
        r"model\.layers\.0\.mlp\.act_fn is a ReLU and not a SiLU",
    ),
    "a hook": (
        lambda m: m.model.layers[0].register_forward_hook(lambda module, given, out: out * 2),
        r"model\.layers\.0 has a hook",
    ),
    "a forward of its own": (
        lambda m: setattr(m.model.layers[0], "forward", functools.partial(doubled, m.model.layers[0].forward)),
        r"model\.layers\.0 has a forward of its own",
    ),
}


def doubled(forward, *given, **more):
    return 2 * forward(*given, **more)


@pytest.mark.parametrize("what", CHANGED)
def test_an_instance_that_computes_otherwise_than_its_class_says_where(what):
    change, words = CHANGED[what]
    small = pico.build("llama")
    change(small)
    with pytest.raises(ms.PreservationError, match=f"differs from what its class builds from its config.*: {words}"):
        ms.grow(small, ms.HyperCloning(width=2))


def test_wrapped_networks_name_what_they_wrap():
    for wrap, inner in ((torch.compile, "_orig_mod"), (nn.DataParallel, "module")):
        with pytest.raises(ms.MeristemError, match=rf"wraps the network; pass the network itself: model\.{inner}"):
            ms.grow(wrap(pico.build("llama")), ms.HyperCloning(width=2))
    compiled = pico.build("llama")
    compiled.compile(backend="eager")
    assert ms.Growth.of(compiled, ms.HyperCloning(width=2)).certificate.holds


def test_a_network_without_values():
    with pytest.raises(ms.MeristemError, match="is on the meta device, so this network has no values to grow"):
        ms.grow(pico.build("llama").to("meta"), ms.HyperCloning(width=2))


def test_where_nothing_is_promised_it_is_said_that_nothing_is_proved():
    small = pico.build("llama")
    with torch.no_grad():
        small.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    for method in (ms.Stacking(depth=2), ms.IdentityBlocks(depth=2)):
        with pytest.warns(
            UserWarning,
            match=r"this growth could not be measured, so nothing is proved: the network's weights are not finite",
        ):
            ms.grow(small, method)
    with pytest.warns(
        UserWarning, match=r"this growth could not be measured.*does not run on these inputs \(input_ids"
    ):
        ms.grow(pico.build("llama"), ms.Stacking(depth=2), inputs={"input_ids": torch.tensor([[10**6]])})
    with pytest.raises(ms.MeristemError, match="takes no nonsense"):
        ms.grow(pico.build("llama"), ms.Stacking(depth=2), inputs={"nonsense": torch.ones(1)})


@pytest.mark.parametrize("options, differ", [({}, True), ({"noise": 0.0}, False)])
def test_copies_part_by_default_and_never_without_noise(options, differ):
    """What the README's own line buys: thirty steps of AdamW after it, the copies of the feed-forward units are two functions."""
    big = ms.grow(pico.build("llama"), ms.HyperCloning(width=2, **options)).train()
    optimizer = torch.optim.AdamW(big.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ids = torch.randint(3, 67, (4, 12), generator=generator)
        optimizer.zero_grad()
        big(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    first, second = big.model.layers[0].mlp.down_proj.weight.detach().chunk(2, dim=1)
    apart = float((first - second).norm() / first.norm())
    assert apart > 0.05 if differ else apart < 1e-5
