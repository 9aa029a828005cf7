"""Whole CLIP and SigLIP: both towers, and the space in which they are compared."""

from __future__ import annotations

import pico
import pytest
import torch
import transformers

import meristem as ms
from meristem.growth import Growth
from meristem.growth.like.config import rows

Tower = tuple[int, int, int]  # width, heads, layers


def tower(size: Tower) -> dict:
    width, heads, layers = size
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * width,
    }


def text(size: Tower, **more) -> dict:
    return {**tower(size), "vocab_size": 99, "max_position_embeddings": 32, **pico.TOKENS, **more}


def images(size: Tower) -> dict:
    return {**tower(size), "image_size": 16, "patch_size": 4}


def clip(words: Tower, pictures: Tower, space: int) -> transformers.CLIPConfig:
    return transformers.CLIPConfig(text_config=text(words), vision_config=images(pictures), projection_dim=space)


def siglip(words: Tower, pictures: Tower) -> transformers.SiglipConfig:
    return transformers.SiglipConfig(
        text_config=text(words, projection_size=pictures[0]), vision_config=images(pictures)
    )


def made(kind, config) -> torch.nn.Module:
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        parameter.data = parameter.data + 0.2 * noise if parameter.dim() < 2 else noise * parameter[0].numel() ** -0.5
    return model


def answers(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 99, (3, 8), generator=generator)
    pictures = torch.randn((2, 3, 16, 16), generator=generator)
    with torch.no_grad():
        return model(input_ids=tokens, pixel_values=pictures).logits_per_image


def error(small: torch.nn.Module, big: torch.nn.Module) -> float:
    a, b = answers(small), answers(big)
    return float((a - b).abs().max() / a.abs().max())


SMALL = ((24, 4, 2), (32, 4, 2))


@pytest.mark.parametrize("words, pictures, space", [
    ((36, 6, 3), (32, 4, 2), 16), ((24, 4, 2), (64, 8, 2), 16), ((24, 4, 2), (32, 4, 2), 24), ((36, 6, 3), (64, 8, 4), 20),
])  # fmt: skip
def test_a_whole_clip_grows_to_a_target(words, pictures, space, tmp_path):
    small = made(transformers.CLIPModel, clip(*SMALL, 16))
    target = clip(words, pictures, space)
    growth = Growth.of(small, like=target)
    assert growth.plans[0].preserves_function
    growth.model.save_pretrained(tmp_path)
    again = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    assert error(small, again) <= 1e-5
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in transformers.CLIPModel(target).state_dict().items()
    }
    assert again.config.vision_config.num_hidden_layers == pictures[2]


def test_new_units_of_the_space_are_zero():
    small = made(transformers.CLIPModel, clip(*SMALL, 16))
    big = ms.grow(small, ms.LEMON(sizes={"projection": 24}))
    assert torch.equal(big.text_projection.weight[:16], small.text_projection.weight)
    assert not big.text_projection.weight[16:].any()
    assert not big.visual_projection.weight[16:].any()
    assert error(small, big) <= 1e-6


@pytest.mark.parametrize("kind, config", [
    (transformers.CLIPModel, clip(*SMALL, 16)), (transformers.SiglipModel, siglip(*SMALL)),
])  # fmt: skip
@pytest.mark.parametrize(
    "method", [ms.HyperCloning(2), ms.LEMON(num_hidden_layers=3), ms.LEMON(sizes={"vision_ffn": 80})]
)
def test_methods_know_both_towers(kind, config, method):
    small = made(kind, config)
    growth = Growth.of(small, method)
    assert growth.plans[0].preserves_function
    assert error(small, growth.model) <= 1e-5


def test_what_no_padding_keeps_is_said():
    small = made(transformers.CLIPModel, clip(*SMALL, 16))
    with pytest.warns(UserWarning, match="does not keep the function"):
        growth = Growth.of(small, like=clip((24, 4, 2), (48, 6, 2), 16))
    (row,) = [row for row in rows(growth.plans[0], small) if row.axis == "vision_hidden"]
    assert "pre_layrnorm subtracts the mean" in row.obstacle
    small = made(transformers.SiglipModel, siglip(*SMALL))
    with pytest.warns(UserWarning, match="does not keep the function"):
        growth = Growth.of(small, like=siglip((36, 6, 2), (48, 6, 2)))
    assert not growth.plans[0].preserves_function
    assert growth.certificate.relative_error > 1e-3
    (row,) = [row for row in rows(growth.plans[0], small) if row.axis == "vision_hidden"]
    assert "compared by the angle of their outputs" in row.obstacle


@pytest.mark.parametrize("kind, small, large", [
    (transformers.SiglipTextModel, siglip(*SMALL).text_config, siglip((36, 6, 3), (48, 6, 2)).text_config),
    (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(**text((24, 4, 2)), projection_dim=16),
     transformers.CLIPTextConfig(**text((36, 6, 3)), projection_dim=20)),
    (transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**images((32, 4, 2)), projection_dim=16),
     transformers.CLIPVisionConfig(**images((64, 8, 3)), projection_dim=20)),
])  # fmt: skip
def test_a_tower_alone_grows_with_its_projection(kind, small, large):
    model = made(kind, small)
    growth = Growth.of(model, like=large)
    assert growth.plans[0].preserves_function
    assert growth.certificate.relative_error < 1e-6
    assert {n: t.shape for n, t in growth.model.state_dict().items()} == {
        n: t.shape for n, t in kind(large).state_dict().items()
    }
