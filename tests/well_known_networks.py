"""Networks in the idioms of well-known repositories, as a user has them: llama2.c, pytorch/examples, DenseNet, TextCNN, mamba-minimal,
the TCN of locuslab, matrix factorisation. None knows of Meristem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class RootMeanSquare(RMSNorm):
    """The same under a name that says nothing."""


class LlamaBlock(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, multiple_of):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        hidden = int(2 * 4 * dim / 3)
        hidden = multiple_of * ((hidden + multiple_of - 1) // multiple_of)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)

    def attention(self, x, cos, sin):
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.n_heads, self.head_dim)
        k = self.wk(x).view(b, n, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(b, n, self.n_kv_heads, self.head_dim)
        q, k = self.rotated(q, cos, sin), self.rotated(k, cos, sin)
        repeat = self.n_heads // self.n_kv_heads
        k, v = (t[:, :, :, None].expand(-1, -1, -1, repeat, -1).reshape(b, n, self.n_heads, -1) for t in (k, v))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, n, -1))

    def rotated(self, x, cos, sin):
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        cos, sin = cos[None, :, None], sin[None, :, None]
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(3)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Llama(nn.Module):
    """llama2.c: grouped queries, a feed-forward width that is rounded up, rotary tables as buffers, a tied head."""

    def __init__(self, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, multiple_of=4):
        super().__init__()
        self.tok_embeddings = nn.Embedding(11, dim)
        self.layers = nn.ModuleList(LlamaBlock(dim, n_heads, n_kv_heads, multiple_of) for _ in range(n_layers))
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, 11, bias=False)
        self.tok_embeddings.weight = self.output.weight
        freqs = 1.0 / (10000.0 ** (torch.arange(0, dim // n_heads, 2).float() / (dim // n_heads)))
        angles = torch.outer(torch.arange(16).float(), freqs)
        self.register_buffer("freqs_cos", angles.cos(), persistent=False)
        self.register_buffer("freqs_sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        h, n = self.tok_embeddings(tokens), tokens.shape[1]
        for layer in self.layers:
            h = layer(h, self.freqs_cos[:n], self.freqs_sin[:n])
        return self.output(self.norm(h))


class TiedRNN(nn.Module):
    """pytorch/examples, word_language_model --tied: no norm anywhere; log-probabilities and the state come out."""

    def __init__(self, n=16, nlayers=2):
        super().__init__()
        self.encoder = nn.Embedding(11, n)
        self.rnn = nn.LSTM(n, n, nlayers, dropout=0.5)
        self.decoder = nn.Linear(n, 11)
        self.decoder.weight = self.encoder.weight

    def forward(self, input, hidden=None):
        output, hidden = self.rnn(self.encoder(input), hidden)
        return F.log_softmax(self.decoder(output).view(-1, 11), dim=1), hidden


class WordTransformer(nn.Module):
    """pytorch/examples, word_language_model: an embedding times the root of the width, sinusoids in a buffer, post-norm."""

    def __init__(self, ninp=16, nhead=2, nhid=24, nlayers=2):
        super().__init__()
        pe = torch.zeros(32, ninp)
        position = torch.arange(0, 32, dtype=torch.float).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, ninp, 2).float() * (-math.log(10000.0) / ninp))
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(1))
        self.input_emb, self.ninp = nn.Embedding(11, ninp), ninp
        layer = nn.TransformerEncoderLayer(ninp, nhead, nhid)
        self.encoder = nn.TransformerEncoder(layer, nlayers, enable_nested_tensor=False)
        self.decoder = nn.Linear(ninp, 11)

    def forward(self, src):
        x = self.input_emb(src) * math.sqrt(self.ninp) + self.pe[: src.size(0)]
        mask = torch.log(torch.tril(torch.ones(len(src), len(src)))).to(x)
        return F.log_softmax(self.decoder(self.encoder(x, mask=mask)), dim=-1)


class Encoder(nn.Module):
    """nn.TransformerEncoder with norms first, learned positions and a mean over them."""

    def __init__(self, d_model=16, nhead=2, ff=24, layers=2):
        super().__init__()
        self.emb, self.pos = nn.Embedding(11, d_model), nn.Parameter(torch.randn(1, 16, d_model))
        layer = nn.TransformerEncoderLayer(d_model, nhead, ff, batch_first=True, norm_first=True, activation="gelu")
        self.enc = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)
        self.head = nn.Linear(d_model, 5)

    def forward(self, x):
        return self.head(self.enc(self.emb(x) + self.pos[:, : x.shape[1]]).mean(1))


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseNet(nn.Module):
    """Features are concatenated, and halved between blocks."""

    def __init__(self, growth=4, init=8):
        super().__init__()
        self.conv0, self.blocks, channels = nn.Conv2d(3, init, 3, padding=1, bias=False), nn.ModuleList(), init
        for last in (False, True):
            self.blocks.append(nn.ModuleList(DenseLayer(channels + i * growth, growth) for i in range(2)))
            channels += 2 * growth
            if not last:
                self.transition = nn.Sequential(
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                )
                channels //= 2
        self.norm5, self.classifier = nn.BatchNorm2d(channels), nn.Linear(channels, 5)

    def forward(self, x):
        x = self.conv0(x)
        for block, after in zip(self.blocks, (self.transition, self.norm5), strict=True):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = after(torch.cat(features, 1))
        return self.classifier(F.relu(x).mean((2, 3)))


class TextCNN(nn.Module):
    """Kim's: kernels as wide as a word's features."""

    def __init__(self, embed=12, filters=8):
        super().__init__()
        self.embed = nn.Embedding(11, embed)
        self.convs = nn.ModuleList(nn.Conv2d(1, filters, (k, embed)) for k in (2, 3))
        self.fc = nn.Linear(2 * filters, 5)

    def forward(self, x):
        x = self.embed(x).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        return self.fc(torch.cat([F.max_pool1d(i, i.size(2)).squeeze(2) for i in x], 1))


class MambaBlock(nn.Module):
    def __init__(self, d, norm):
        super().__init__()
        inner, self.rank, self.n = 2 * d, 2, 4
        self.norm = norm(d)
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.n, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.n + 1).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d, bias=False)

    def forward(self, u):
        x, gate = self.in_proj(self.norm(u)).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        step, b, c = self.x_proj(x).split([self.rank, self.n, self.n], dim=-1)
        step = F.softplus(self.dt_proj(step))
        decay = torch.exp(torch.einsum("bld,dn->bldn", step, -torch.exp(self.A_log)))
        given = torch.einsum("bld,bln,bld->bldn", step, b, x)
        state, out = torch.zeros_like(given[:, 0]), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + given[:, i]
            out.append(torch.einsum("bdn,bn->bd", state, c[:, i]))
        return u + self.out_proj((torch.stack(out, 1) + x * self.D) * F.silu(gate))


class Mamba(nn.Module):
    """mamba-minimal, with a tied head behind a norm of any name."""

    def __init__(self, d=16, n_layer=2):
        super().__init__()
        self.embedding = nn.Embedding(11, d)
        self.layers = nn.ModuleList(MambaBlock(d, RootMeanSquare) for _ in range(n_layer))
        self.norm_f, self.lm_head = RootMeanSquare(d), nn.Linear(d, 11, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm_f(x))


class Factorisation(nn.Module):
    """A recommender: one tower for users and items, and the product of both."""

    def __init__(self, w=8):
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(11, w), nn.Embedding(11, w), nn.Parameter(torch.zeros(1))
        self.tower = nn.Sequential(nn.Linear(w, 2 * w), nn.ReLU(), nn.Linear(2 * w, w))

    def forward(self, u, i):
        return (self.tower(self.user(u)) * self.tower(self.item(i))).sum(-1) + self.bias


class VAE(nn.Module):
    """pytorch/examples: a tuple comes out, and all parents share the latent units."""

    def __init__(self, h=24, z=6):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(9, h), nn.Linear(h, z), nn.Linear(h, z)
        self.fc3, self.fc4 = nn.Linear(z, h), nn.Linear(h, 9)

    def forward(self, x):
        h = F.relu(self.fc1(x))
        mean, spread = self.fc21(h), self.fc22(h)
        return self.fc4(F.relu(self.fc3(mean))), mean, spread


class TemporalBlock(nn.Module):
    """locuslab's TCN: each convolution is an attribute and an entry of a Sequential too."""

    def __init__(self, channels, norm):
        super().__init__()
        self.conv1, self.conv2 = norm(nn.Conv1d(channels, channels, 3)), norm(nn.Conv1d(channels, channels, 3))
        pad = nn.ConstantPad1d((2, 0), 0.0)
        self.net = nn.Sequential(pad, self.conv1, nn.ReLU(), pad, self.conv2, nn.ReLU())

    def forward(self, x):
        return F.relu(x + self.net(x))


class TCN(nn.Module):
    def __init__(self, c=8, n=2, norm=lambda module: module):
        super().__init__()
        self.first = nn.Conv1d(2, c, 1)
        self.network = nn.Sequential(*[TemporalBlock(c, norm) for _ in range(n)])
        self.linear = nn.Linear(c, 5)

    def forward(self, x):
        return self.linear(self.network(self.first(x))[:, :, -1])


class GCN(nn.Module):
    """tkipf's: raw weights, an adjacency matrix, log-probabilities."""

    def __init__(self, nhid=16):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(6, nhid)), nn.Parameter(torch.randn(nhid, 5))

    def forward(self, x, adj):
        return F.log_softmax(adj @ (F.relu(adj @ (x @ self.w1)) @ self.w2), dim=1)


class ThinStem(nn.Module):
    """A wide ResNet's head: the first convolution has 16 channels at any width."""

    def __init__(self, widen=2):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8 * widen, 3), nn.Linear(8 * widen, 5)

    def forward(self, x):
        return self.fc(F.relu(self.conv(F.relu(self.stem(x)))).mean((2, 3)))


@dataclass
class Similarity:
    scores: torch.Tensor
    features: list[torch.Tensor]


class Siamese(nn.Module):
    """A dataclass comes out."""

    def __init__(self, w=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 4))
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, a, b):
        a, b = F.normalize(self.net(a), dim=-1), F.normalize(self.net(b), dim=-1)
        return Similarity((a * b).sum(-1) * self.temperature.exp(), [a, b])
