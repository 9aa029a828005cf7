"""A whole with two language models in it (MusicGen's text encoder and its decoder), whose class projects from one to the other only
where their widths differ."""

from __future__ import annotations

import architectures
import pytest
from support.auto_classes import auto_classes

import meristem as ms
from meristem.checkpoints import open_streamed

NAME = "MusicgenMelodyForConditionalGeneration"


@pytest.fixture(scope="module")
def musicgen():
    return architectures.tiny_model({entry.name: entry.model_type for entry in auto_classes()}[NAME], NAME)


def test_the_whole_opens_and_deepens(musicgen, tmp_path):
    model, inputs = musicgen
    model.save_pretrained(tmp_path / "small")
    opened = open_streamed(str(tmp_path / "small"))
    growth = ms.Growth.of(opened, ms.IdentityBlocks(depth=2), inputs=inputs)
    assert growth.certificate.relative_error == 0
    assert growth.model.config.decoder.num_hidden_layers == 2 * model.config.decoder.num_hidden_layers
    assert growth.model.config.text_encoder.num_layers == model.config.text_encoder.num_layers


def test_a_projection_that_equal_widths_had_not_needed_is_named(musicgen):
    model, inputs = musicgen
    assert not hasattr(model, "enc_to_dec_proj")  # both are 64 wide
    with pytest.raises(
        ms.MeristemError, match=r"the new network has enc_to_dec_proj\.weight, which the old one has not"
    ):
        ms.grow(model, ms.HyperCloning(width=2), inputs=inputs)
