"""Six networks as people write them, who have never heard of Meristem: nothing here is written to suit it.

Each is in the idiom of the repositories that it stands for. Tests and `docs/own-architecture.md` grow them as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

# --- a CIFAR ResNet whose shortcuts subsample and pad channels (option A of He et al. 2016)


class LambdaLayer(nn.Module):
    def __init__(self, lambd):
        super().__init__()
        self.lambd = lambd

    def forward(self, x):
        return self.lambd(x)


class BasicBlock(nn.Module):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = LambdaLayer(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    def __init__(self, width=16, num_blocks=3, num_classes=10, in_channels=3):
        super().__init__()
        self.in_planes = width
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._make_layer(width, num_blocks, stride=1)
        self.layer2 = self._make_layer(2 * width, num_blocks, stride=2)
        self.layer3 = self._make_layer(4 * width, num_blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def _make_layer(self, planes, num_blocks, stride):
        layers = []
        for s in [stride] + [1] * (num_blocks - 1):
            layers.append(BasicBlock(self.in_planes, planes, s))
            self.in_planes = planes
        return nn.Sequential(*layers)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


# --- a transformer of raw parameters and einsum


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale


class EinsumAttention(nn.Module):
    def __init__(self, d_model, n_heads, d_head):
        super().__init__()
        self.W_Q = nn.Parameter(torch.randn(n_heads, d_model, d_head) / math.sqrt(d_model))
        self.W_K = nn.Parameter(torch.randn(n_heads, d_model, d_head) / math.sqrt(d_model))
        self.W_V = nn.Parameter(torch.randn(n_heads, d_model, d_head) / math.sqrt(d_model))
        self.W_O = nn.Parameter(torch.randn(n_heads, d_head, d_model) / math.sqrt(n_heads * d_head))
        self.b_Q = nn.Parameter(torch.zeros(n_heads, d_head))
        self.b_O = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        q = torch.einsum("bpm,hmd->bphd", x, self.W_Q) + self.b_Q
        k = torch.einsum("bpm,hmd->bphd", x, self.W_K)
        v = torch.einsum("bpm,hmd->bphd", x, self.W_V)
        scores = torch.einsum("bphd,bqhd->bhpq", q, k) / math.sqrt(q.shape[-1])
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device), 1)
        pattern = scores.masked_fill(mask, float("-inf")).softmax(-1)
        z = torch.einsum("bhpq,bqhd->bphd", pattern, v)
        return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O


class EinsumBlock(nn.Module):
    def __init__(self, d_model, n_heads, d_head, d_mlp):
        super().__init__()
        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)
        self.attn = EinsumAttention(d_model, n_heads, d_head)
        self.W_in = nn.Parameter(torch.randn(d_model, d_mlp) / math.sqrt(d_model))
        self.b_in = nn.Parameter(torch.zeros(d_mlp))
        self.W_out = nn.Parameter(torch.randn(d_mlp, d_model) / math.sqrt(d_mlp))
        self.b_out = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + F.gelu(self.ln2(x) @ self.W_in + self.b_in) @ self.W_out + self.b_out


class EinsumTransformer(nn.Module):
    def __init__(self, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_layers=2, d_vocab=11, n_ctx=16):
        super().__init__()
        self.W_E = nn.Parameter(torch.randn(d_vocab, d_model) * 0.5)
        self.W_pos = nn.Parameter(torch.randn(n_ctx, d_model) * 0.5)
        self.blocks = nn.ModuleList([EinsumBlock(d_model, n_heads, d_head, d_mlp) for _ in range(n_layers)])
        self.ln_final = RMSNorm(d_model)
        self.W_U = nn.Parameter(torch.randn(d_model, d_vocab) / math.sqrt(d_model))

    def forward(self, tokens):
        x = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return torch.einsum("bpm,mv->bpv", self.ln_final(x), self.W_U)


# --- a small diffusion U-Net: concatenated skips, GroupNorm, a time embedding


def timestep_embedding(t, dim):
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device).float() / (dim // 2))
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, in_ch, out_ch, temb_ch):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, in_ch), nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_ch, out_ch)
        self.norm2, self.conv2 = nn.GroupNorm(4, out_ch), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else None

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class UNet(nn.Module):
    def __init__(self, ch=8, num_mid=2, in_ch=1, freq_dim=16):
        super().__init__()
        temb = 4 * ch
        self.freq_dim = freq_dim
        self.time_embed = nn.Sequential(nn.Linear(freq_dim, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.conv_in = nn.Conv2d(in_ch, ch, 3, padding=1)
        self.down1 = ResBlock(ch, ch, temb)
        self.downsample = nn.Conv2d(ch, ch, 3, stride=2, padding=1)
        self.down2 = ResBlock(ch, 2 * ch, temb)
        self.mid = nn.ModuleList([ResBlock(2 * ch, 2 * ch, temb) for _ in range(num_mid)])
        self.up2 = ResBlock(2 * ch + 2 * ch, 2 * ch, temb)
        self.upsample = nn.Conv2d(2 * ch, 2 * ch, 3, padding=1)
        self.up1 = ResBlock(2 * ch + ch, ch, temb)
        self.norm_out, self.conv_out = nn.GroupNorm(4, ch), nn.Conv2d(ch, in_ch, 3, padding=1)

    def forward(self, x, t):
        temb = self.time_embed(timestep_embedding(t, self.freq_dim))
        h1 = self.down1(self.conv_in(x), temb)
        h2 = self.down2(self.downsample(h1), temb)
        h = h2
        for block in self.mid:
            h = block(h, temb)
        h = self.up2(torch.cat([h, h2], dim=1), temb)
        h = self.upsample(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.up1(torch.cat([h, h1], dim=1), temb)
        return self.conv_out(F.silu(self.norm_out(h)))


# --- recurrent language models


class RNNModel(nn.Module):
    def __init__(self, rnn_type="LSTM", ninp=12, nhid=16, nlayers=2, ntoken=11):
        super().__init__()
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, batch_first=True)
        self.decoder = nn.Linear(nhid, ntoken)

    def forward(self, tokens):
        output, _ = self.rnn(self.encoder(tokens))
        return self.decoder(output)


# --- convolution, batch norm, squeeze and excitation


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = x.mean((2, 3)).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio):
        super().__init__()
        hidden_dim = round(inp * expand_ratio)
        self.identity = stride == 1 and inp == oup
        self.conv = nn.Sequential(
            nn.Conv2d(inp, hidden_dim, 1, 1, 0, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.SiLU(),
            nn.Conv2d(hidden_dim, hidden_dim, 3, stride, 1, groups=hidden_dim, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.SiLU(),
            SELayer(hidden_dim),
            nn.Conv2d(hidden_dim, oup, 1, 1, 0, bias=False),
            nn.BatchNorm2d(oup),
        )

    def forward(self, x):
        return x + self.conv(x) if self.identity else self.conv(x)


class SENet(nn.Module):
    def __init__(self, planes=8, repeats=2, num_classes=10, in_channels=3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes), nn.SiLU()
        )
        self.stage1 = nn.Sequential(*[InvertedResidual(planes, planes, 1, 4) for _ in range(repeats)])
        self.down = InvertedResidual(planes, 2 * planes, 2, 4)
        self.stage2 = nn.Sequential(*[InvertedResidual(2 * planes, 2 * planes, 1, 4) for _ in range(repeats)])
        self.classifier = nn.Linear(2 * planes * 16, num_classes)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        x = F.adaptive_avg_pool2d(x, 4)
        return self.classifier(torch.flatten(x, 1))


# --- a mixture of experts written by hand


class MoE(nn.Module):
    def __init__(self, dim, inner, num_experts, top_k=2):
        super().__init__()
        self.top_k, self.num_experts = top_k, num_experts
        self.gate = nn.Parameter(torch.randn(dim, num_experts) / math.sqrt(dim))
        self.w1 = nn.Parameter(torch.randn(num_experts, dim, inner) / math.sqrt(dim))
        self.w2 = nn.Parameter(torch.randn(num_experts, inner, dim) / math.sqrt(inner))

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = (tokens @ self.gate).softmax(-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for e in range(self.num_experts):
            row, slot = torch.where(chosen == e)
            if row.numel() == 0:
                continue
            h = F.silu(tokens[row] @ self.w1[e]) @ self.w2[e]
            out.index_add_(0, row, h * weights[row, slot, None])
        return out.view_as(x)


class MoEBlock(nn.Module):
    def __init__(self, dim, heads, inner, num_experts):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.moe = MoE(dim, inner, num_experts)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, d))
        return x + self.moe(self.norm2(x))


class MoETransformer(nn.Module):
    def __init__(self, num_heads=2, inner=24, num_layers=2, num_experts=4, vocab=11, head_size=8):
        super().__init__()
        dim = num_heads * head_size
        self.embed, self.pos = nn.Embedding(vocab, dim), nn.Parameter(torch.randn(1, 16, dim) * 0.1)
        self.layers = nn.ModuleList([MoEBlock(dim, num_heads, inner, num_experts) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, idx):
        x = self.embed(idx) + self.pos[:, : idx.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
