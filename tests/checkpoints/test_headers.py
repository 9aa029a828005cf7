"""Safetensors files read by position: what safetensors itself accepts, tensor for tensor, and of any size."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import meristem as ms
from meristem.anatomy.streamed import weights_of
from meristem.checkpoints import open_streamed
from meristem.checkpoints.headers import DTYPES, read_header
from meristem.checkpoints.stored import StoredTensors
from meristem.growth.tensors.build import LARGE, skeleton


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    tensors = {f"t{i}": (torch.randn(3, i + 1) * 9).to(dtype) for i, dtype in enumerate(DTYPES.values())}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "é.weight": torch.randn(5)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt", "other": "x"})
    return tmp_path / "model.safetensors"


def test_every_tensor_is_what_safetensors_reads(file):
    stored = StoredTensors(file.parent)
    with safe_open(file, framework="pt") as theirs:
        assert set(stored) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118
            assert torch.equal(stored[name], theirs.get_tensor(name))
            assert stored[name].dtype == theirs.get_tensor(name).dtype
            assert stored[name].shape == theirs.get_tensor(name).shape


def test_what_safetensors_refuses_is_refused(file):
    """Bits of the header flipped, ends cut off, bytes put behind; ours may be stricter, never laxer."""
    content, refused = file.read_bytes(), 0
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(300):
        rng, changed = random.Random(number), bytearray(content)
        if number % 3 == 0:
            changed = changed[: rng.randrange(len(changed))]
        elif number % 10 == 1:
            changed += b"x" * rng.randint(1, 9)
        else:
            changed[rng.randrange(header)] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            with safe_open(file, framework="pt") as theirs:
                {name: theirs.get_tensor(name) for name in theirs.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):
            refused += 1
            with pytest.raises(ms.MeristemError, match=r"is not a whole safetensors file|is stored as"):
                read_header(file)
    assert refused > 150


def with_header(path, **entries):
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    return path


@pytest.mark.parametrize("entry", [
    {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
    {"dtype": "F32", "shape": [1 << 61, 8], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
    {"dtype": None, "shape": [2], "data_offsets": [0, 8]}, {"dtype": "F32", "data_offsets": [0, 8]}, [], None, "x", 7,
    {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
])  # fmt: skip
def test_headers_that_lie(tmp_path, entry):
    with pytest.raises(ms.MeristemError, match=r"is not a whole safetensors file|is stored as"):
        read_header(with_header(tmp_path / "model.safetensors", t=entry))


def test_a_file_larger_than_memory_is_opened_and_read_in_part(tmp_path):
    """A sparse file of a terabyte: nothing maps it whole."""
    entries = {"small": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
               "huge": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [8, 8 + (1 << 40)]}}  # fmt: skip
    file = with_header(tmp_path / "model.safetensors", **entries)
    try:
        os.truncate(file, file.stat().st_size + (1 << 40))
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    stored = StoredTensors(tmp_path)
    assert stored.entries["huge"].bytes == 1 << 40
    assert stored["small"].tolist() == [0.0, 0.0]


def test_a_file_that_shrinks_meanwhile(file):
    stored = StoredTensors(file.parent)
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(ms.MeristemError, match="became shorter while it was read"):
        {name: stored[name] for name in stored}


def test_the_largest_architecture_is_built_without_memory():
    """DeepSeek-V3 has experts of 30 GB in each layer; two layers of it are more than this machine has."""
    config = transformers.DeepseekV3Config(num_hidden_layers=5)
    model = skeleton(lambda: transformers.DeepseekV3ForCausalLM(config))
    assert sum(p.numel() for p in model.parameters()) > 20e9
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    torch.testing.assert_close(model.model.rotary_emb.inv_freq[0], torch.tensor(1.0))


def test_large_buffers_keep_their_values():
    large = LARGE[0][0] + 1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(large))
            self.register_buffer("table", torch.empty(large).fill_(3.0))

    model = skeleton(Net)
    assert model.weight.is_meta
    assert float(model.table[7]) == 3.0


def test_weights_read_by_position_are_the_users_own(tmp_path):
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    )
    model.save_pretrained(tmp_path / "small")
    weights = weights_of(open_streamed(str(tmp_path / "small")))
    weights["transformer.wte.weight"].zero_()
    assert torch.equal(weights["transformer.wte.weight"], model.transformer.wte.weight)
