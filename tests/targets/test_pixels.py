"""The pixel target against recorded values and a slow version, and its conversion to clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.pixels import channel_target, pixel_target
from videomaskfeat.errors import UserError
from videomaskfeat.losses.masked import masked_l1
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.targets import build_target
from videomaskfeat.targets.pixels import PixelTarget


def test_target_equals_the_recorded_targets_of_mae(golden: Path) -> None:
    """Float32 sums of 768 values in another order: tolerance 1e-5."""
    recorded = torch.load(golden / "mae_vit_video" / "expected.pt", weights_only=True)
    target = PixelTarget()(recorded["clip"])
    torch.testing.assert_close(target[recorded["mask"]], recorded["target_masked"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("frames", ["first", "all"])
def test_target_equals_the_slow_version(normalized: bool, frames: str) -> None:
    """Float32 against float64: tolerance 1e-5; raw pixels are copied exactly."""
    torch.manual_seed(0)
    clips = torch.randn(2, 3, 4, 8, 12)
    module = PixelTarget(normalized=normalized, frames=frames, output_stride=(2, 4, 6))
    target = module(clips)
    count = 2 if frames == "all" else 1
    slow = pixel_target(clips, stride=(2, 4, 6), frames=count, normalized=normalized)
    assert target.shape == (2, 2, 2, 2, module.values_per_token)
    assert module.values_per_token == count * 4 * 6 * 3
    expected = torch.tensor(slow).view_as(target)
    torch.testing.assert_close(target, expected, atol=1e-5 if normalized else 0, rtol=0)


@pytest.mark.parametrize("normalized", [True, False])
def test_target_converts_back_to_the_clip(normalized: bool) -> None:
    clips = torch.randn(2, 3, 4, 32, 48)
    whole = PixelTarget(normalized=normalized, frames="all")
    torch.testing.assert_close(whole.as_clips(whole(clips), clips), clips, atol=1e-5, rtol=0)
    first = PixelTarget(normalized=normalized)
    torch.testing.assert_close(first.as_clips(first(clips), clips), clips[:, :, ::2], atol=1e-5, rtol=0)


def test_image_is_a_clip_of_one_frame() -> None:
    images = torch.randn(2, 3, 1, 32, 32)
    target = PixelTarget(output_stride=(1, 16, 16), normalized=False)(images)
    assert target.shape == (2, 1, 2, 2, 768)
    torch.testing.assert_close(target[1, 0, 1, 0], images[1, :, 0, 16:, :16].permute(1, 2, 0).flatten())


def test_flat_position_gives_zeros_and_no_infinity() -> None:
    assert (PixelTarget()(torch.ones(1, 3, 2, 16, 16)) == 0).all()


def test_simmim_is_the_mean_of_absolute_errors_of_raw_pixels() -> None:
    target = PixelTarget(normalized=False, loss="l1")
    predictions, truth = torch.randn(1, 2, 2, 2, 768), torch.randn(1, 2, 2, 2, 768)
    mask = torch.tensor([[[[True, False], [False, True]]]])  # both time steps
    hidden = (predictions - truth).abs()[:, :, [0, 1], [0, 1]]
    loss = target.loss(predictions, truth, mask)
    torch.testing.assert_close(loss, hidden.mean())
    torch.testing.assert_close(loss, masked_l1(predictions, truth, mask))
    assert target.loss_name == "mean absolute error"
    assert target.tally().constant is None


def test_invalid_names_and_sizes_are_refused() -> None:
    for arguments, words in (
        ({"frames": "last"}, "pixel frames 'last' is unknown; choose from first, all"),
        ({"loss": "l1 "}, r"pixel loss 'l1 ' is unknown; did you mean 'l1'\?"),
        ({"output_stride": (0, 16, 16)}, r"output_stride \(0, 16, 16\) and channels 3 must be 1 or more"),
    ):
        with pytest.raises(UserError, match=words):
            PixelTarget(**arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="clip height 20 is not a positive multiple"):
        PixelTarget()(torch.zeros(1, 3, 2, 20, 16))


@pytest.mark.parametrize("faint", [False, True])
def test_per_channel_equals_the_slow_version_of_videomae(faint: bool) -> None:
    """Faint pixels have a deviation of about 1e-6, where the added 1e-6 and its scale matter."""
    torch.manual_seed(0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    stride = (2, 4, 4)
    clips = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64) * (4e-6 if faint else 1.0)
    target = PixelTarget(frames="all", per_channel=True, output_stride=stride, clip_std=tuple(std))
    values = target(clips).flatten(0, 3)
    expected = torch.tensor(channel_target(clips.float(), stride=stride, mean=mean, std=std))
    torch.testing.assert_close(values, expected, atol=1e-4 if faint else 1e-5, rtol=1e-5)  # float32
    torch.testing.assert_close(target.as_clips(target(clips), clips), clips.float(), atol=1e-5, rtol=1e-5)


def test_run_passes_its_normalization_to_the_target() -> None:
    clip = ClipRecipe(frames=4, stride=1, crop=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.25))
    arguments = {"per_channel": True, "frames": "all", "output_stride": [2, 8, 8]}
    target = build_target("pixels", arguments, clip=clip)
    expected = torch.tensor([4e-6, 2e-6, 4e-6])
    torch.testing.assert_close(target.get_buffer("_smallest"), expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("changes", [{"normalized": False}, {"output_stride": (1, 1, 1)}])
def test_per_channel_needs_a_deviation(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="per_channel true needs normalized values and more than one pixel"):
        PixelTarget(per_channel=True, **changes)
