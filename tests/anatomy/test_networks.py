"""Networks outside transformers: described by a function that builds them, grown and proven like any other."""

from __future__ import annotations

import pytest
import torch
from support.tiny import randomise
from torch import nn

import meristem as ms


class MLP(nn.Module):
    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, hidden), nn.ReLU(), nn.Linear(hidden, ffn), nn.ReLU(), nn.Linear(ffn, 3)
        )

    def forward(self, x):
        return self.layers(x)


class FeedForward(nn.Module):
    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(hidden), nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class ResidualMLP(nn.Module):
    def __init__(self, hidden: int, ffn: int, depth: int = 2) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(7, hidden), nn.Linear(hidden, 3)
        self.blocks = nn.ModuleList(FeedForward(hidden, ffn) for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class ResNet(nn.Module):
    """Two stages, the second of twice the channels behind a strided projection."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.stage1 = nn.Sequential(*(ResidualBlock(channels) for _ in range(depth)))
        self.down = nn.Conv2d(channels, 2 * channels, 1, stride=2)
        self.stage2 = nn.Sequential(ResidualBlock(2 * channels))
        self.head = nn.Linear(2 * channels, 5)

    def forward(self, x):
        return self.head(self.stage2(self.down(self.stage1(self.stem(x)))).mean((2, 3)))


class MixerBlock(nn.Module):
    def __init__(self, hidden: int, tokens: int, ffn: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.token_up, self.token_down = nn.Linear(16, tokens), nn.Linear(tokens, 16)
        self.up, self.down = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)

    def forward(self, x):
        mixed = self.token_down(nn.functional.gelu(self.token_up(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + mixed
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Mixer(nn.Module):
    """An MLP-Mixer on 16 patches."""

    def __init__(self, hidden: int, tokens: int, ffn: int, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden, 4, stride=4)
        self.blocks = nn.ModuleList(MixerBlock(hidden, tokens, ffn) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


IMAGES = {"x": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
VECTORS = {"x": torch.randn(9, 7, generator=torch.Generator().manual_seed(0))}


def randomised(net: nn.Module) -> nn.Module:
    """Random weights and running statistics, in evaluation mode."""
    randomise(net)
    return net.eval()


@pytest.mark.parametrize("build, sizes, inputs", [
    (MLP, {"hidden": 8, "ffn": 12}, VECTORS),
    (ResNet, {"channels": 6}, IMAGES),
    (Mixer, {"hidden": 8, "tokens": 10, "ffn": 12}, IMAGES),
])  # fmt: skip
@pytest.mark.parametrize(
    "method", [ms.HyperCloning(width=2, noise=0.3), ms.HyperCloning(width=3), ms.Net2Net(width=2, duplication="cyclic")]
)
def test_width(build, sizes, inputs, method):
    net = randomised(build(**sizes))
    grown = ms.grow(net, method, anatomy=ms.Anatomy.infer(build, sizes), inputs=inputs)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (net, grown))
    assert after > 2 * before
    torch.testing.assert_close(grown(**inputs), net(**inputs), rtol=1e-4, atol=1e-4)


def test_depth():
    sizes = {"hidden": 8, "ffn": 12}
    net = randomised(ResidualMLP(**sizes))
    anatomy = ms.Anatomy.infer(ResidualMLP, sizes, depths={"depth": 2})
    grown = ms.grow(net, ms.IdentityBlocks(depth=2), anatomy=anatomy, inputs=VECTORS)
    assert len(grown.blocks) == 4
    torch.testing.assert_close(grown(**VECTORS), net(**VECTORS), rtol=1e-4, atol=1e-4)


def test_a_mixers_silent_block_is_silent_at_both_of_its_writers():
    """Token mixing writes across tokens, which no axis names; a pass shows that its last affine step writes into the stream."""
    sizes = {"hidden": 8, "tokens": 10, "ffn": 12}
    anatomy = ms.Anatomy.infer(Mixer, sizes, depths={"depth": 2})
    growth = ms.Growth.of(randomised(Mixer(**sizes)), ms.IdentityBlocks(depth=2), anatomy=anatomy, inputs=IMAGES)
    assert growth.certificate.holds
    silent = growth.model.blocks[1]
    assert not silent.token_down.weight.any()
    assert not silent.down.weight.any()
    assert silent.token_up.weight.any()


class Gate(FeedForward):
    """What it adds is never zero."""

    def forward(self, x):
        return x + torch.sigmoid(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Gated(ResidualMLP):
    def __init__(self, hidden: int, ffn: int, depth: int = 2) -> None:
        super().__init__(hidden, ffn, depth)
        self.blocks = nn.ModuleList(Gate(hidden, ffn) for _ in range(depth))


def test_a_silent_block_that_would_still_speak_is_not_promised():
    """Run on the given inputs, a silenced block is seen to change the stream, so nothing is promised, and the certificate says
    by how much."""
    sizes = {"hidden": 8, "ffn": 12}
    anatomy = ms.Anatomy.infer(Gated, sizes, depths={"depth": 2})
    with pytest.warns(UserWarning, match=r"identity_blocks: this growth does not keep the function: .* error \d"):
        growth = ms.Growth.of(randomised(Gated(**sizes)), ms.IdentityBlocks(depth=2), anatomy=anatomy, inputs=VECTORS)
    assert not growth.certificate.holds
    assert growth.certificate.relative_error > 0.01


def test_batch_norm_statistics_follow_their_channels():
    net = randomised(ResNet(6))
    grown = ms.grow(net, ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(ResNet, {"channels": 6}), inputs=IMAGES)
    torch.testing.assert_close(grown.stem[1].running_var, net.stem[1].running_var.repeat(2))
    torch.testing.assert_close(grown.stem[1].running_mean, net.stem[1].running_mean.repeat(2))


def test_timms_vision_transformer():
    timm = pytest.importorskip("timm", reason="needs the extra [vision]")

    def build(heads: int):
        vit = timm.models.vision_transformer.VisionTransformer
        return vit(img_size=16, patch_size=4, embed_dim=8 * heads, depth=2, num_heads=heads, num_classes=5)

    net = randomised(build(2))
    grown = ms.grow(net, ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(build, {"heads": 2}), inputs=IMAGES)
    assert grown.blocks[0].attn.num_heads == 4
    torch.testing.assert_close(grown(**IMAGES), net(**IMAGES), rtol=1e-4, atol=1e-4)


def test_timms_convnext():
    timm = pytest.importorskip("timm", reason="needs the extra [vision]")

    def build(channels: int):
        dims = (channels, 2 * channels, 4 * channels, 8 * channels)
        return timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=dims, num_classes=5)

    net = randomised(build(4))
    inputs = {"x": torch.randn(2, 3, 32, 32)}
    grown = ms.grow(net, ms.HyperCloning(width=2), anatomy=ms.Anatomy.infer(build, {"channels": 4}), inputs=inputs)
    torch.testing.assert_close(grown(**inputs), net(**inputs), rtol=1e-4, atol=1e-4)
