"""Absolute positions on other grids, and weights of image models in models for clips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.positions import sincos_1d, sincos_2d
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models import create_model
from videomaskfeat.models.loading import load_into, load_weights
from videomaskfeat.models.positions import fixed_positions, joint_positions, separable_positions
from videomaskfeat.models.saving import save_model

SMALL: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "linear_std": 0.1}
IMAGE: dict[str, Any] = {**SMALL, "clip_size": (1, 16, 16), "cube_stride": (1, 8, 8)}
VIDEO: dict[str, Any] = {**SMALL, "clip_size": (6, 16, 16), "cube_stride": (2, 8, 8)}
HEADS: dict[str, Any] = {"allow_missing": ["head.*", "norm.*"], "allow_unused": ["mask_token", "pred_head.*"]}


def image_state(**changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = create_model("maskfeat_vit_nano_image", **{**IMAGE, **changes}).state_dict()
    return {name: torch.randn_like(value) * 0.3 for name, value in state.items()}


@pytest.mark.parametrize("absolute", ["joint", "separable"])
@pytest.mark.parametrize("inflate", ["repeated", "centered"])
def test_clip_of_identical_frames_has_the_images_tokens(absolute: str, inflate: str) -> None:
    state = image_state()
    image = create_model("maskfeat_vit_nano_image", **IMAGE).eval()
    image.load_state_dict(state)
    video = create_model("vit_nano", **VIDEO, absolute_positions=absolute).eval()
    report = load_into(video, state, inflate=inflate, **HEADS)
    picture = torch.randn(2, 3, 16, 16)
    still = picture[:, :, None].expand(-1, -1, 6, -1, -1)
    expected = image.placed(*image.patch_embed(picture[:, :, None]))  # [B, 1+4, D]
    actual = video.placed(*video.patch_embed(still))  # [B, 1+3*4, D]
    torch.testing.assert_close(actual[:, :1], expected[:, :1], atol=1e-6, rtol=0)
    for step in range(3):
        cells = actual[:, 1 + 4 * step : 5 + 4 * step]
        torch.testing.assert_close(cells, expected[:, 1:], atol=1e-5, rtol=1e-5)
    positions = (
        ["pos_embed"]
        if absolute == "joint"
        else ["pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"]
    )
    assert report.inflated == ("patch_embed.proj.weight", *positions)
    assert not {*report.inflated} & {*report.loaded, *report.resized, *report.new}
    words = f"inflated from an image model, kernel {inflate} (patch_embed.proj.weight, pos_embed"
    assert words in str(report)
    row = report.table().splitlines()[1]
    assert row.startswith(f"inflated     {len(report.inflated)}  patch_embed.proj.weight, pos_embed")
    assert row.endswith(
        f"from an image model: kernel {inflate} over the frames, positions repeated over time"
    )
    assert report.to_dict()["inflated"] == list(report.inflated)


def test_kernels_are_repeated_or_centered() -> None:
    state = image_state()
    kernel = state["patch_embed.proj.weight"][:, :, 0]
    for inflate, expected in (("repeated", [kernel / 2, kernel / 2]), ("centered", [kernel * 0, kernel])):
        video = create_model("vit_nano", **VIDEO, absolute_positions="joint")
        load_into(video, state, inflate=inflate, **HEADS)  # type: ignore[arg-type]
        assert torch.equal(video.patch_embed.proj.weight, torch.stack(expected, dim=2))


def test_two_dimensional_kernels_load_into_image_and_clip_models() -> None:
    state = image_state()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]  # [D, C, h, w]
    video = create_model("vit_nano", **VIDEO, absolute_positions="joint")
    assert load_into(video, state, **HEADS).inflated
    image = create_model("vit_nano_image", **IMAGE)
    report = load_into(image, state, **HEADS)
    assert not report.inflated
    assert torch.equal(image.patch_embed.proj.weight[:, :, 0], state["patch_embed.proj.weight"])


def test_positions_of_smaller_pictures_are_resized_in_space() -> None:
    state = image_state()
    steps = torch.arange(2.0)
    slope = (steps[:, None] * 10 + steps).flatten()[:, None].expand(4, 16)  # [h*w, D], linear in both
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 16), slope[None]], dim=1)
    video = create_model("vit_nano", **{**VIDEO, "clip_size": (4, 32, 32)}, absolute_positions="joint")
    assert load_into(video, state, **HEADS).inflated
    actual = video.pos_embed[0, 1:, 0].reshape(2, 4, 4)
    assert torch.equal(actual[0], actual[1])
    torch.testing.assert_close(actual[0, 1:3, 1], torch.tensor([0.25 * 10 + 0.25, 0.75 * 10 + 0.25]))
    image = create_model("vit_nano_image", **{**IMAGE, "clip_size": (1, 32, 32)})
    report = load_into(image, state, **HEADS)
    assert report.resized == ("pos_embed",)
    torch.testing.assert_close(image.pos_embed[0, 1:, 0].reshape(4, 4), actual[0])


def test_new_class_token_keeps_its_position() -> None:
    state = image_state(class_token=False)
    video = create_model("vit_nano", **VIDEO, absolute_positions="joint")
    with torch.no_grad():
        video.pos_embed.normal_()
    own = video.pos_embed[:, :1].clone()
    report = load_into(video, state, inflate="repeated", **{**HEADS, "allow_missing": ["*"]})
    assert report.inflated == ("patch_embed.proj.weight", "pos_embed")
    assert report.new[0] == "cls_token"
    assert torch.equal(video.pos_embed[:, :1], own)
    assert torch.equal(video.pos_embed[:, 1:], state["pos_embed"].repeat(1, 3, 1))


def test_clip_weights_do_not_load_into_an_image_model() -> None:
    video = create_model("vit_nano", **VIDEO).state_dict()
    with pytest.raises(UserError, match=r"has patch_embed.proj.weight in shape \(16, 3, 2, 8, 8\)"):
        load_into(create_model("vit_nano_image", **IMAGE, absolute_positions="separable"), video)


def test_unknown_inflate_is_refused() -> None:
    with pytest.raises(UserError, match=r"inflate 'center' is unknown; did you mean 'centered'"):
        load_into(create_model("vit_nano", **VIDEO), image_state(), inflate="center", **HEADS)


def test_separable_positions_are_the_sum_of_space_and_time() -> None:
    space, time = torch.randn(1, 6, 5), torch.randn(1, 2, 5)
    grid = TokenGrid(2, 2, 3)
    table = separable_positions(space, time, grid, grid).unflatten(1, grid.shape)
    for t, h, w in ((0, 0, 0), (1, 1, 2), (0, 1, 0)):
        torch.testing.assert_close(table[0, t, h, w], space[0, h * 3 + w] + time[0, t])
    doubled = joint_positions(table.flatten(1, 3), grid, TokenGrid(4, 4, 6))
    torch.testing.assert_close(doubled.mean(1), table.flatten(1, 3).mean(1), atol=1e-5, rtol=1e-5)


def cubic_weights(share: float) -> list[float]:
    """Cubic convolution with A = -0.75, torch's, of the pixels at -1, 0, 1, 2 for a place in 0..1."""
    a = -0.75
    weights = []
    for distance in (1 + share, share, 1 - share, 2 - share):
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights.append(near if distance <= 1 else far)
    return weights


def test_bicubic_positions_by_definition() -> None:
    """Iteration over cells, rows and columns, with repeated borders; float32, 1e-5."""
    native, grid = TokenGrid(1, 7, 7), TokenGrid(1, 3, 5)
    table = torch.randn(1, native.size, 2)
    actual = joint_positions(table, native, grid, interpolation="bicubic").unflatten(1, (3, 5))[0]
    cells = table[0].unflatten(0, (7, 7))
    for row in range(3):
        for column in range(5):
            expected = torch.zeros(2)
            y, x = (row + 0.5) * 7 / 3 - 0.5, (column + 0.5) * 7 / 5 - 0.5
            for i, down in enumerate(cubic_weights(y - math.floor(y))):
                for j, right in enumerate(cubic_weights(x - math.floor(x))):
                    place = (min(max(math.floor(y) + i - 1, 0), 6), min(max(math.floor(x) + j - 1, 0), 6))
                    expected += down * right * cells[place]
            torch.testing.assert_close(actual[row, column], expected, atol=1e-5, rtol=1e-5)


def test_bicubic_positions_keep_a_ramp_in_the_interior_and_are_linear_in_time() -> None:
    """At half the size, cell i is at 2i + 0.5 of the native cells; the outer cells see the border."""
    rows = torch.arange(8.0)
    ramp = (10 * rows[:, None] + rows).expand(2, 8, 8) + torch.tensor([0.0, 100.0])[:, None, None]
    table = ramp.reshape(1, -1, 1)
    native, grid = TokenGrid(2, 8, 8), TokenGrid(2, 4, 4)
    half = joint_positions(table, native, grid, interpolation="bicubic").reshape(2, 4, 4)
    places = 2 * torch.arange(4.0) + 0.5
    expected = 10 * places[:, None] + places
    torch.testing.assert_close(half[0, 1:3, 1:3], expected[1:3, 1:3])
    assert abs(half[0, 0, 0] - expected[0, 0]) > 0.1
    longer = joint_positions(table, native, TokenGrid(4, 4, 4), interpolation="bicubic").reshape(4, 4, 4)
    torch.testing.assert_close(longer[:, 1, 1] - half[0, 1, 1], torch.tensor([0.0, 25.0, 75.0, 100.0]))


def test_encoder_interpolates_its_positions_as_configured() -> None:
    encoder = create_model("vit_nano_image", **IMAGE, interpolation="bicubic", classes=2)
    clip = torch.randn(1, 3, 1, 24, 24)
    tokens, grid = encoder.patch_embed(clip)
    added = encoder.placed(tokens, grid)[:, 1:] - tokens
    places = encoder.pos_embed[:, 1:]
    expected = joint_positions(places, encoder.native_grid, grid, interpolation="bicubic")
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, joint_positions(places, encoder.native_grid, grid), atol=1e-4)
    with pytest.raises(UserError, match="interpolation 'cubic' is unknown"):
        create_model("vit_nano_image", **IMAGE, interpolation="cubic")


def test_sincos_positions_by_definition() -> None:
    grid = TokenGrid(2, 3, 4)
    table = fixed_positions("sincos", 16, grid, prefix=1, device=torch.device("cpu"))
    assert table.shape == (1, 25, 16)
    assert not table[0, 0].any()
    t, h, w = 1, 2, 3
    # 4 channels of time, 6 of the column, 6 of the row; half of each sines, half cosines.
    expected = []
    for index, pairs in ((t, 2), (w, 3), (h, 3)):
        angles = [index / 10000 ** (i / pairs) for i in range(pairs)]
        expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    actual = table[0, 1 + (t * 3 + h) * 4 + w]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [8, 64])
def test_sincos_2d_equals_the_order_of_image_mae(width: int) -> None:
    grid = TokenGrid(1, 3, 5)
    table = fixed_positions("sincos_2d", width, grid, prefix=1, device=torch.device("cpu"))
    expected = torch.tensor(sincos_2d(width, rows=3, columns=5))
    assert not table[0, 0].any()
    torch.testing.assert_close(table[0, 1:], expected, atol=1e-6, rtol=0)  # float32
    clip = fixed_positions("sincos_2d", width, TokenGrid(2, 3, 5), prefix=0, device=torch.device("cpu"))
    assert torch.equal(clip[0], table[0, 1:].repeat(2, 1))


@pytest.mark.parametrize("absolute", ["joint", "separable"])
@pytest.mark.parametrize("kind", ["sincos", "sincos_2d"])
def test_fine_tuning_learns_the_positions_that_pre_training_fixes(
    tmp_path: Path, kind: str, absolute: str
) -> None:
    size = {**VIDEO, "absolute_positions": kind}
    pretrained = create_model("maskfeat_vit_nano", **size)
    save_model(pretrained, tmp_path / "weights.safetensors")
    classifier = create_model("vit_nano", **{**VIDEO, "absolute_positions": absolute}, classes=3).eval()
    report = load_weights(classifier, tmp_path / "weights.safetensors", **HEADS)
    assert not [name for name in report.new if name.startswith("pos_embed")]
    assert classifier.pos_embed is None or classifier.pos_embed.requires_grad
    clip = torch.randn(1, 3, 6, 16, 16)
    actual = classifier.placed(*classifier.patch_embed(clip))
    expected = pretrained.placed(*pretrained.patch_embed(clip))
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)  # float32


def test_positions_of_videomae_equal_every_number() -> None:
    grid = TokenGrid(2, 3, 5)
    table = fixed_positions("sincos_1d", 10, grid, prefix=1, device=torch.device("cpu"))
    expected = torch.tensor([[0.0] * 10, *sincos_1d(10, tokens=30)])[None]
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=0)  # float32


def test_fixed_positions_of_pictures_are_inflated(tmp_path: Path) -> None:
    image = create_model("mae_vit_nano_image", **IMAGE, absolute_positions="sincos_2d")
    save_model(image, tmp_path / "weights.safetensors")
    video = create_model("vit_nano", **VIDEO, classes=3)
    report = load_weights(
        video, tmp_path / "weights.safetensors", allow_missing=["head.*"], allow_unused=["*"]
    )
    assert {"pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"} <= set(report.inflated)
    expected = torch.tensor(sincos_2d(16, rows=2, columns=2))
    torch.testing.assert_close(video.pos_embed_spatial[0], expected, atol=1e-6, rtol=0)
    assert not video.pos_embed_temporal.any()
