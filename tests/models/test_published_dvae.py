"""The published dVAE encoder: values of a slow version, names and shapes, and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.reference import published_dvae as reference
from videomaskfeat.errors import UserError
from videomaskfeat.models.published_dvae import PublishedEncoder, load_published_encoder, map_pixels

SMALL = {"vocabulary": 24, "width": 8, "blocks": 2}


def small_encoder() -> PublishedEncoder:
    """A narrow encoder with large biases."""
    torch.manual_seed(0)
    encoder = PublishedEncoder(**SMALL)
    for name, parameter in encoder.named_parameters():
        nn.init.normal_(parameter, std=0.3 if name.endswith(".b") else 2 / parameter[0].numel() ** 0.5)
    return encoder.eval()


@torch.no_grad()
def test_logits_and_tokens_equal_the_slow_version() -> None:
    """float32 convolutions against float64 sums: tolerance 1e-5 relative to the largest logit."""
    encoder = small_encoder()
    picture = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    state = {name: value.numpy() for name, value in encoder.state_dict().items()}
    expected = np.stack([reference.logits(one.numpy(), state, blocks=2) for one in picture])
    logits = encoder(map_pixels(picture)).numpy()
    assert logits.shape == (2, 24, 4, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(encoder.tokens(picture).numpy(), expected.argmax(1))
    assert len(np.unique(expected.argmax(1))) > 2  # the tokens differ


def test_layout_is_that_of_the_published_file() -> None:
    """Names and shapes of github.com/openai/DALL-E at 5be4b23; the published sizes are the defaults."""
    with torch.device("meta"):
        encoder = PublishedEncoder()
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert len(shapes) == 2 * (
        1 + 8 * 4 + 3 + 1
    )  # weights and biases; a 1x1 convolution where the width changes
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.input.b"] == (256,)
    assert shapes["blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["blocks.group_1.block_2.res_path.conv_4.w"] == (256, 64, 1, 1)
    assert shapes["blocks.group_2.block_1.id_path.w"] == (512, 256, 1, 1)
    assert shapes["blocks.group_3.block_2.res_path.conv_3.w"] == (256, 256, 3, 3)
    assert shapes["blocks.group_4.block_1.res_path.conv_1.w"] == (512, 1024, 3, 3)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in shapes


@torch.no_grad()
def test_state_dict_is_read_with_its_sizes(tmp_path: Path) -> None:
    encoder = small_encoder()
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    before = torch.get_rng_state()
    loaded = load_published_encoder(tmp_path / "encoder.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.vocabulary == 24
    assert not loaded.training
    picture = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded.tokens(picture), encoder.tokens(picture))


def test_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(small_encoder(), tmp_path / "encoder.pkl")
    with pytest.raises(
        UserError,
        match=r"encoder\.pkl is a pickled module.*no "
        r"pickled code is run.*state_dict\(\)",
    ):
        load_published_encoder(tmp_path / "encoder.pkl")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    state = small_encoder().state_dict()
    path = tmp_path / "encoder.pt"

    torch.save({"head.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match=r"no weights of the published dVAE encoder \('blocks\.input\.w' is"):
        load_published_encoder(path)
    torch.save({**state, "blocks.input.w": torch.zeros(8, 24, 1, 1)}, path)
    with pytest.raises(UserError, match="contains the decoder of the published dVAE"):
        load_published_encoder(path)
    del state["blocks.group_2.block_1.id_path.b"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"lacks 1 weights.*blocks\.group_2\.block_1\.id_path\.b"):
        load_published_encoder(path)
    with pytest.raises(UserError, match=r"gone\.pt: no such file"):
        load_published_encoder(tmp_path / "gone.pt")
