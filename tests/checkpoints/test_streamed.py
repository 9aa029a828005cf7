"""Growth from disk to disk: the same bits as in memory, in files that stock transformers writes and reads."""

from __future__ import annotations

import contextlib
import json

import pico
import pytest
import torch
import transformers
from command_line import meristem
from safetensors.torch import save_file

import meristem as ms
from meristem.anatomy.inputs import logits_of
from meristem.anatomy.streamed import Weights, is_streamed, weights_of
from meristem.checkpoints import open_model, open_streamed, write_model
from meristem.checkpoints.headers import DTYPES
from meristem.checkpoints.shards import lay_out, write_shards
from meristem.checkpoints.stored import StoredTensors
from meristem.growth import Growth

NOISY_AND_DEEPER = [ms.HyperCloning(width=2, noise=0.1), ms.Stacking(depth=2)]


@pytest.mark.parametrize("family", list(pico.FAMILIES))
def test_streamed_growth_is_growth_in_memory(family, tmp_path):
    pico.build(family).save_pretrained(tmp_path / "small", max_shard_size="20KB")
    small, lazy = open_model(str(tmp_path / "small")), open_streamed(str(tmp_path / "small"))
    in_memory, on_disk = (Growth.of(model, NOISY_AND_DEEPER) for model in (small, lazy))
    assert is_streamed(on_disk.model)
    assert on_disk.certificate == in_memory.certificate
    write_model(on_disk.model, tmp_path / "grown", {}, max_shard_size="50KB")
    in_memory.model.save_pretrained(tmp_path / "stock", max_shard_size="50KB")
    if (
        family != "mixtral"
    ):  # whose experts stock shards oddly: it counts the fused tensor for each expert cut out of it
        for file in (tmp_path / "stock").iterdir():
            assert (tmp_path / "grown" / file.name).read_bytes() == file.read_bytes(), file.name
    reloaded, info = type(small).from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in in_memory.model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("method", [ms.LEMON(hidden_size=48, num_hidden_layers=3), ms.AKI(width=2), ms.IdentityBlocks(depth=2),
                                    ms.ZeroPadding(hidden_size=48), ms.WeightSelection(hidden_size=16, selection="magnitude")],
                         ids=lambda method: method.name)  # fmt: skip
def test_every_kind_of_map_in_bfloat16(method, tmp_path):
    pico.build("llama", num_key_value_heads=4, head_dim=8).bfloat16().save_pretrained(tmp_path / "small")
    small, lazy = open_model(str(tmp_path / "small")), open_streamed(str(tmp_path / "small"))
    in_memory, on_disk = (Growth.of(model, method, verify=False).model for model in (small, lazy))
    write_model(on_disk, tmp_path / "grown", {})
    stored = StoredTensors(tmp_path / "grown")
    for name, tensor in in_memory.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(stored[name], tensor), name


def test_a_fusion_from_disk(tmp_path):
    for seed in (0, 1):
        pico.build("gpt2", seed).save_pretrained(tmp_path / str(seed))
    sources = [str(tmp_path / str(seed)) for seed in (0, 1)]
    in_memory = ms.fuse([open_model(source) for source in sources])
    on_disk = ms.fuse([open_streamed(source) for source in sources])
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(weights_of(on_disk)[name], tensor), name


def test_mixed_dtypes_are_kept(tmp_path):
    model = pico.build("llama").bfloat16()
    model.model.norm.float()
    model.save_pretrained(tmp_path / "small")
    write_model(ms.grow(open_streamed(str(tmp_path / "small")), ms.HyperCloning(width=2)), tmp_path / "grown", {})
    stored = StoredTensors(tmp_path / "grown")
    assert stored["model.norm.weight"].dtype == torch.float32
    assert stored["lm_head.weight"].dtype == torch.bfloat16


def test_files_are_those_of_safetensors_byte_for_byte(tmp_path):
    tensors = {
        f"{'zyx'[i % 3]}{i}.é": (torch.randn(3, i % 4 + 1) * 9).to(t) for i, t in enumerate([*DTYPES.values()] * 2)
    }
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    shards = lay_out({name: tensor.to("meta") for name, tensor in tensors.items()})
    write_shards(tmp_path, shards, ((name, ([0], tensor)) for name, tensor in tensors.items()))
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_tensors_that_the_config_ties_and_the_files_do_not(tmp_path):
    pico.build("llama", tie_word_embeddings=False).save_pretrained(tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(ms.MeristemError, match=r"its config ties .* its files hold different values"):
        open_streamed(str(tmp_path / "small"))


def test_quantised_weights_are_refused(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    config = tmp_path / "small" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ms.MeristemError, match="is quantised"):
        open_streamed(str(tmp_path / "small"))


def test_a_streamed_network_lets_go_of_its_weights(tmp_path):
    pico.build("gpt2").save_pretrained(tmp_path / "small")
    model = open_streamed(str(tmp_path / "small"))
    inputs = torch.randint(3, 67, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, open_model(str(tmp_path / "small"))(inputs).logits)
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(IndexError):
        model(inputs + 1000)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["MobileBertForMaskedLM", "SqueezeBertForMaskedLM"])
def test_networks_that_use_weights_of_modules_that_they_do_not_call(name, tmp_path):
    """MobileBERT's head reads its decoder's weight outside of any block, SqueezeBERT the weights inside of its blocks."""
    sizes = {
        "vocab_size": 67,
        "hidden_size": 32,
        "embedding_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sizes |= {"intra_bottleneck_size": 32} if name.startswith("Mobile") else {"intermediate_size": 64}
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**sizes))
    pico.randomise(model)
    model.save_pretrained(tmp_path / "small")
    inputs = {"input_ids": torch.randint(3, 67, (2, 12), generator=torch.Generator().manual_seed(0))}
    streamed = open_streamed(str(tmp_path / "small"))
    assert torch.equal(logits_of(streamed, inputs), logits_of(open_model(str(tmp_path / "small")), inputs))
    assert all(parameter.is_meta for parameter in streamed.parameters())


def test_tensors_that_checkpoints_leave_out(tmp_path):
    """Marian's sinusoids are parameters that stock transformers never saves."""
    config = transformers.MarianConfig(
        vocab_size=67, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=44, decoder_ffn_dim=44, max_position_embeddings=64, pad_token_id=66, decoder_start_token_id=66,
        eos_token_id=0,
    )  # fmt: skip
    transformers.MarianMTModel(config).save_pretrained(tmp_path / "small")
    assert "model.encoder.embed_positions.weight" not in StoredTensors(tmp_path / "small")
    streamed = open_streamed(str(tmp_path / "small"))
    for name, tensor in open_model(str(tmp_path / "small")).state_dict().items():
        assert torch.equal(weights_of(streamed)[name], tensor), name
    write_model(streamed, tmp_path / "again", {})
    assert set(StoredTensors(tmp_path / "again")) == set(StoredTensors(tmp_path / "small"))


def test_a_dry_run_writes_nothing(tmp_path):
    pico.build("llama").save_pretrained(tmp_path / "small")
    options = ["--width", "2", "--max-shard-size", "50KB", "--dry-run"]
    done = meristem("grow", tmp_path / "small", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "model-00002-of-" in done.stdout
    assert "nothing was written" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]
    assert (
        meristem("grow", tmp_path / "small", tmp_path / "out", "--width", "2", "--max-shard-size", "big").returncode
        == 2
    )


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("meristem.checkpoints.shards.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ms.MeristemError, match=r"GB to write, 0.00 GB free"):
        write_model(pico.build("llama"), tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meristem.checkpoints.shards.os.pwrite", full)
    with pytest.raises(ms.MeristemError, match="No space left on device"):
        write_model(pico.build("llama"), tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


def test_generation_config_is_kept(tmp_path):
    model = pico.build("llama")
    model.generation_config = transformers.GenerationConfig(temperature=0.5, do_sample=True)
    model.save_pretrained(tmp_path / "small")
    write_model(ms.grow(open_streamed(str(tmp_path / "small")), ms.HyperCloning(width=2)), tmp_path / "grown", {})
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "grown").temperature == 0.5


@pytest.fixture
def kept_at_the_end(monkeypatch):
    """What networks still keep for further passes when all have gone by."""
    left, shared = [], Weights.shared

    @contextlib.contextmanager
    def seen(self, takers):
        with shared(self, takers):
            yield
            left.append(sorted(self._kept))

    monkeypatch.setattr(Weights, "shared", seen)
    return left


@pytest.mark.parametrize("method", [ms.HyperCloning(width=2), ms.Stacking(depth=2), NOISY_AND_DEEPER])
def test_a_proof_keeps_nothing_behind_and_reads_each_tensor_once_for_a_block(
    method, tmp_path, monkeypatch, kept_at_the_end
):
    """What is kept for a pass that has gone by would add up to the whole source."""
    pico.build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "small")
    small, reads, read = open_streamed(str(tmp_path / "small")), [], StoredTensors.__getitem__
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda self, name: (reads.append(name), read(self, name))[1])
    growth = Growth.of(small, method)
    assert growth.certificate is not None
    assert growth.certificate.own_dtype_relative_error is not None  # all four passes ran side by side
    assert kept_at_the_end
    assert not any(kept_at_the_end)
    if isinstance(method, ms.HyperCloning):
        assert max(reads.count(name) for name in set(reads)) == 1
