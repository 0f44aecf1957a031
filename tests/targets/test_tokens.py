"""Token targets: frames, sizes, frozen tokenizers, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.published_dvae import PublishedEncoder
from videomaskfeat.models.saving import save_model
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.targets.tokens import CodebookTarget, DvaeTarget, TokenTarget

TINY: dict[str, Any] = {"vocabulary": 12, "stride": 8, "width": 16, "blocks": 1, "code_width": 6}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def save_tokenizer(folder: Path, name: str) -> str:
    """The weights file of our own tokenizer, with different tokens at different positions."""
    torch.manual_seed(0)
    path = str(folder / f"{name}.safetensors")
    tokenizer = create_tokenizer(name, **TINY)
    for parameter in tokenizer.parameters():
        parameter.data.normal_(std=0.5)
    save_model(tokenizer, path)
    return path


@pytest.fixture
def dvae(tmp_path: Path) -> str:
    return save_tokenizer(tmp_path, "dvae")


@pytest.fixture
def codebook(tmp_path: Path) -> str:
    return save_tokenizer(tmp_path, "vq")


def clips_and_pixels(height: int = 32, width: int = 48) -> tuple[Tensor, Tensor]:
    """Clips [2, 3, 4, H, W] normalized with one mean and std per channel, and their pixels in 0..1."""
    pixels = torch.rand(2, 3, 4, height, width, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(level).view(3, 1, 1, 1) for level in (MEAN, STD))
    return (pixels - mean) / std, pixels


def test_tokens_belong_to_the_first_frame_of_each_cube(dvae: str) -> None:
    """With the tokenizer's own stride, frames are not resized."""
    clips, pixels = clips_and_pixels()
    target = DvaeTarget(weights=dvae, output_stride=(2, 8, 8), clip_mean=MEAN, clip_std=STD)
    tokens = target(clips)
    assert (tokens.shape, tokens.dtype) == ((2, 2, 4, 6), torch.int64)
    for clip in range(2):
        for step in range(2):
            expected = target.tokenizer.tokens(pixels[clip, :, 2 * step][None])[0]
            assert torch.equal(tokens[clip, step], expected)
    assert len(tokens.unique()) > 3
    other = clips.clone()
    other[:, :, 1::2] = 0  # the second frames of the cubes
    assert torch.equal(target(other), tokens)


def test_frames_are_resized_to_match_cells_and_positions(dvae: str) -> None:
    """16-pixel positions and 8-pixel tokens: half the size, close to Pillow's bicubic resizing."""
    picture = np.full((1, 32, 48, 3), 90, dtype=np.uint8)
    cv2.circle(picture[0], (20, 15), 9, (170, 120, 140), -1)  # far from 0 and 255, where overshoots are cut
    pixels = torch.from_numpy(picture[None]).permute(0, 4, 1, 2, 3).float() / 255  # [1, 3, 1, 32, 48]
    target = DvaeTarget(weights=dvae, output_stride=(1, 16, 16), clip_mean=0.0, clip_std=1.0)
    seen: list[Tensor] = []
    target.tokenizer.tokens = lambda pictures: seen.append(pictures) or torch.zeros(1, 2, 3).long()  # type: ignore[method-assign, func-returns-value]
    assert target(pixels).shape == (1, 1, 2, 3)
    from PIL import Image

    expected = np.asarray(Image.fromarray(picture[0]).resize((24, 16), Image.Resampling.BICUBIC))
    assert seen[0].shape == (1, 3, 16, 24)
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    # Pillow rounds to bytes after each axis: 2 levels of 255.
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy() * 255, expected, atol=2)


def test_published_encoder_is_a_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = PublishedEncoder(vocabulary=24, width=8, blocks=1)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    target = DvaeTarget(weights=str(tmp_path / "encoder.pt"), vocabulary=24, output_stride=(2, 8, 8))
    clips = torch.randn(1, 3, 2, 16, 16)
    pixels = (clips[:, :, 0] * 0.225 + 0.45).clamp(0, 1)
    assert target.values_per_token == 24
    assert torch.equal(target(clips)[:, 0], encoder.tokens(pixels))
    assert target.files == (str(tmp_path / "encoder.pt"),)


def test_codebook_target_is_the_nearest_codes(codebook: str) -> None:
    clips, pixels = clips_and_pixels()
    target = CodebookTarget(weights=codebook, output_stride=(4, 8, 8), clip_mean=MEAN, clip_std=STD)
    tokens = target(clips)
    assert tokens.shape == (2, 1, 4, 6)
    assert torch.equal(tokens[:, 0], target.tokenizer.tokens(pixels[:, :, 0]))
    assert target.values_per_token == 12


def test_tokenizer_is_frozen(dvae: str, codebook: str) -> None:
    for target in (DvaeTarget(weights=dvae), CodebookTarget(weights=codebook)):
        target.train()
        assert not target.tokenizer.training
        before = {name: value.clone() for name, value in target.tokenizer.state_dict().items()}
        clips = torch.randn(1, 3, 2, 32, 32, requires_grad=True)
        tokens = target(clips)
        predictions = torch.randn(1, 1, 2, 2, 12, requires_grad=True)
        target.loss(predictions, tokens, torch.ones(1, 1, 2, 2, dtype=torch.bool)).backward()
        assert clips.grad is None
        assert predictions.grad is not None
        assert all(parameter.grad is None for parameter in target.parameters())
        assert all(not parameter.requires_grad for parameter in target.parameters())
        after = target.tokenizer.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_loss_is_the_cross_entropy_of_the_hidden_tokens(dvae: str) -> None:
    """Log-softmax by hand, tolerance 1e-6. The best constant's loss is the entropy of the hidden tokens."""
    target = DvaeTarget(weights=dvae, output_stride=(2, 8, 8))
    tokens = torch.tensor([[[[3, 5], [3, 0]]]])
    mask = torch.tensor([[[[True, False], [True, True]]]])
    predictions = torch.randn(1, 1, 2, 2, 12, generator=torch.Generator().manual_seed(0))
    logs = torch.log_softmax(predictions, -1)
    expected = -(logs[0, 0, 0, 0, 3] + logs[0, 0, 1, 0, 3] + logs[0, 0, 1, 1, 0]) / 3
    assert target.loss(predictions, tokens, mask).item() == pytest.approx(expected.item(), rel=1e-6)
    tally = target.tally()
    tally.add(predictions, tokens, mask)
    assert tally.model == pytest.approx(expected.item(), rel=1e-6)
    assert tally.constant == pytest.approx(2 / 3 * np.log(3 / 2) + 1 / 3 * np.log(3), rel=1e-6)


def test_mismatches_are_refused_with_both_numbers(dvae: str, codebook: str) -> None:
    build: Callable[..., TokenTarget]
    for build, weights, arguments, words in (
        (DvaeTarget, dvae, {"vocabulary": 8192}, r"dvae\.safetensors: .* a vocabulary of 12, .* is 8192"),
        (CodebookTarget, codebook, {"vocabulary": 512}, "vocabulary of 12, .* is 512"),
        (DvaeTarget, dvae, {"output_stride": (2, 4, 4)}, "covers 8x8 pixels, more than .* 4x4.*stride=4"),
        (DvaeTarget, dvae, {"output_stride": (2, 16, 8)}, r"\(2, 16, 8\): .* equal numbers of rows and col"),
    ):
        with pytest.raises(UserError, match=words):
            build(weights=weights, **arguments)
    with pytest.raises(UserError, match=r"clip height 40 is not a positive multiple of the cube stride 16"):
        DvaeTarget(weights=dvae)(torch.zeros(1, 3, 2, 40, 32))


def test_wrong_files_are_refused(dvae: str, codebook: str, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder.safetensors"
    save_model(create_model("mvitv2_encoder", depth=1, width=8, widen_at=(), q_pool_at=()), encoder)
    build: Callable[..., TokenTarget]
    for build, weights, words in (
        (DvaeTarget, tmp_path / "gone.safetensors", r"gone\.safetensors: no such file"),
        (DvaeTarget, tmp_path / "gone.pt", r"gone\.pt: no such file"),
        (DvaeTarget, codebook, "contains a tokenizer of kind 'vq', but kind 'dvae' is needed"),
        (CodebookTarget, dvae, "contains a tokenizer of kind 'dvae', but kind 'vq' is needed"),
        (CodebookTarget, tmp_path / "encoder.pt", r"encoder\.pt is not a safetensors file; use"),
        (DvaeTarget, encoder, "contains the model 'mvitv2_encoder', but a tokenizer is needed"),
    ):
        with pytest.raises(UserError, match=words):
            build(weights=str(weights))
