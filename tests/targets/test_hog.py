"""The HOG target: golden values, an independent slow version, closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference.hog import scatter_hog
from videomaskfeat.errors import UserError
from videomaskfeat.targets import target_class
from videomaskfeat.targets.hog import HogTarget, hog_features


def eight_bit_frames(batch: int = 2, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Normalized 8-bit frames with smooth random shapes, flat patches, and exact ties."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (batch, 3, height // 8, width // 8), generator=generator).float()
    frames = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").round()
    frames[:, :, :16, :24] = 77.0
    frames[:, :, 24:, 40:] = frames[:, :, 24:, 40:41]  # vertical gradients only: gx is exactly 0
    return (frames / 255 - 0.45) / 0.225


def test_features_equal_the_recorded_reference(golden: Path) -> None:
    recorded = torch.load(golden / "hog.pt", weights_only=True)
    # float32 sums in another order; no recorded pixel lies on the border of two bins.
    torch.testing.assert_close(hog_features(recorded["input"]), recorded["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (9, 16), (5, 4), (1, 8)])
def test_features_equal_the_slow_version_on_8_bit_frames(bins: int, cell: int) -> None:
    frames = eight_bit_frames()
    slow = scatter_hog(frames, bins, cell).float()
    # float32 against float64; a pixel in another bin would change a cell by at least 1e-2.
    torch.testing.assert_close(hog_features(frames, bins, cell), slow, atol=2e-6, rtol=0)


def test_each_frame_of_a_batch_has_the_features_that_it_has_alone() -> None:
    frames = eight_bit_frames(batch=30)  # more than are computed at once
    alone = [hog_features(frame) for frame in frames.split(1)]
    assert torch.equal(hog_features(frames), torch.cat(alone))


def test_zero_horizontal_gradients_do_not_depend_on_rounding_noise() -> None:
    """Our deviation: without the dead zone, noise moves these pixels from the first to the last bin."""
    frames = eight_bit_frames()
    noise = torch.empty_like(frames).uniform_(-3e-7, 3e-7, generator=torch.Generator().manual_seed(1))
    noisy = frames + noise
    edges = hog_features(frames).norm(dim=2, keepdim=True) > 0  # a flat cell is normalized noise
    without = (scatter_hog(noisy, dead_zone=0.0) - scatter_hog(frames, dead_zone=0.0)).abs()
    assert without.max() > 0.1
    torch.testing.assert_close(hog_features(noisy) * edges, hog_features(frames), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [10, 50, 90, 130, 170])
def test_ramp_fills_only_the_bin_of_its_direction(degrees: int) -> None:
    angle = math.radians(degrees)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    # The kernels subtract right from left and below from above, which gives the signs.
    ramp = -(math.sin(angle) * columns + math.cos(angle) * rows)
    inner = hog_features(ramp.expand(1, 3, 32, 32))[..., 1:3, 1:3]  # the border is mirrored
    expected = torch.zeros(9)
    expected[degrees // 20] = 1.0
    torch.testing.assert_close(inner, expected.view(1, 1, 9, 1, 1).expand_as(inner), atol=1e-6, rtol=0)


def test_opposite_contrast_gives_the_same_features() -> None:
    frames = eight_bit_frames()
    torch.testing.assert_close(hog_features(-frames), hog_features(frames), atol=2e-6, rtol=0)


def test_cells_are_zero_or_have_length_one() -> None:
    features = hog_features(eight_bit_frames())
    assert torch.equal(features[..., 0, :2], torch.zeros_like(features[..., 0, :2]))
    lengths = features[..., :3, 3:].norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)


def test_autocast_and_half_inputs_are_computed_in_float32() -> None:
    frames = eight_bit_frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hog_features(frames), hog_features(frames))
        inside = hog_features(frames)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, hog_features(frames))
    assert hog_features(frames.bfloat16()).dtype == torch.float32


def test_features_have_no_gradient_and_do_not_change_frames() -> None:
    frames = eight_bit_frames()
    before = frames.clone()
    assert not hog_features(frames.requires_grad_()).requires_grad
    assert torch.equal(frames, before)


def test_channels_last_frames_give_the_same() -> None:
    """Clips are loaded as uint8 [B, T, H, W, C] and permuted."""
    frames = eight_bit_frames()
    channels_last = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(hog_features(channels_last), hog_features(frames))


def test_target_reads_the_first_frame_of_each_cube_and_orders_channel_bin_cell() -> None:
    clips = eight_bit_frames(batch=2 * 4).unflatten(0, (2, 4)).transpose(1, 2)  # [2, 3, 4, 48, 64]
    module = HogTarget()
    target = module(clips)
    assert target.shape == (2, 2, 3, 4, module.values_per_token)
    assert module.values_per_token == 108
    for sample, time, row, column in [(0, 0, 0, 0), (1, 1, 2, 3), (0, 1, 1, 2)]:
        features = hog_features(clips[sample, :, 2 * time][None])[0]  # [3, 9, 6, 8]
        cells = features[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(target[sample, time, row, column], cells.flatten(), atol=1e-6, rtol=0)


def test_target_equals_the_recorded_targets_of_the_reference_model(golden: Path) -> None:
    case = golden / "maskfeat_mvitv2_video" / "expected.pt"
    recorded = torch.load(case, weights_only=True)
    target = HogTarget()(recorded["clip"])
    hidden = recorded["mask"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(target[hidden], recorded["target_masked"], atol=1e-5, rtol=0)


def test_target_of_pictures_equals_the_recorded_one(golden: Path) -> None:
    """An image is a clip of one frame; a patch of 16 pixels has 2x2 cells."""
    recorded = torch.load(golden / "maskfeat_vit_image" / "expected.pt", weights_only=True)
    target = HogTarget(cube_stride=(1, 16, 16), output_stride=(1, 16, 16))(recorded["clip"][:, :, None])
    hidden = recorded["mask"].view(len(target), 1, *target.shape[2:4])
    torch.testing.assert_close(target[hidden], recorded["target_masked"], atol=1e-5, rtol=0)


def test_values_per_token_is_the_width_of_the_target() -> None:
    clips = torch.rand(1, 3, 2, 32, 32)
    for name in ("hog", "pixels"):  # the others need files or other targets
        target = target_class(name)()
        assert target(clips).shape[-1] == target.values_per_token


@pytest.mark.slow
def test_compiled_target_equals_the_eager_one() -> None:
    clips = eight_bit_frames(batch=4).unflatten(0, (1, 4)).transpose(1, 2)
    module = HogTarget()
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(clips), module(clips), atol=1e-5, rtol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_equals_cpu(autocast: bool) -> None:
    """In float32 under autocast too. A pixel on the border of two bins may be in either."""
    frames = eight_bit_frames()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        actual = hog_features(frames.cuda())
    assert actual.dtype == torch.float32
    differs = (actual.cpu() - hog_features(frames)).abs() > 1e-5
    assert differs.float().mean() < 0.01


def test_frames_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"frame width 60 is not a positive multiple of the HOG cell 8"):
        hog_features(torch.zeros(1, 3, 48, 60))
    with pytest.raises(UserError, match=r"\(3, 48, 64\) are not \[B, C, H, W\]"):
        hog_features(torch.zeros(3, 48, 64))


def test_invalid_strides_are_refused() -> None:
    with pytest.raises(UserError, match=r"columns must be a multiple of the HOG cell of 8 pixels"):
        HogTarget(output_stride=(2, 16, 12))
    with pytest.raises(UserError, match="differ in time"):
        HogTarget(output_stride=(4, 16, 16))
    with pytest.raises(UserError, match="clip frames 5 is not a positive multiple"):
        HogTarget()(torch.zeros(1, 3, 5, 32, 32))
