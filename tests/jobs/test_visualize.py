"""``visualize``: images of clips, masks, targets and predictions from a weights file and videos."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.inference import drawing
from videomaskfeat.inference.drawing import draw_videos
from videomaskfeat.jobs.visualize import visualize
from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.viz.pictures import ClipDrawing, draw_film, draw_picture

RECIPE = PretrainRecipe(
    ClipRecipe(frames=4, stride=2, crop=32), MaskRecipe("cube_exact", 0.5, (2, 16, 16)), "hog", {}
)


class Oracle(nn.Module):
    """Predicts the target itself, and records its inputs."""

    def __init__(self, target: nn.Module | None = None) -> None:
        super().__init__()
        self.target = target or HogTarget()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
        self.seen.append((clips, mask))
        target: Tensor = self.target(clips)
        return target


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a disc that moves over noise (32x48 pixels, 20 frames), and an unreadable file."""
    folder = tmp_path_factory.mktemp("videos")
    ground = np.random.default_rng(0).integers(0, 90, (32, 48, 3), dtype=np.uint8)
    frames = [cv2.circle(ground.copy(), (8 + i, 16), 7, (250, 200, 90), -1) for i in range(20)]
    write_mp4(folder / "disc.v1.mp4", frames)
    (folder / "more").mkdir()
    write_mp4(folder / "more/disc.v1.mp4", frames)
    (folder / "pictures").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"pictures/{number}.png"), frame[..., ::-1])
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[ClipDrawing]:
    """The drawings; no file is written."""
    caught: list[ClipDrawing] = []
    monkeypatch.setattr(drawing, "write_picture", lambda path, drawing, columns: caught.append(drawing))
    monkeypatch.setattr(drawing, "write_film", lambda path, drawing: None)
    return caught


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the smallest model, with their recipe."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano", clip_size=(4, 32, 32), values_per_token=108)
    save_model(model, path, metadata={METADATA_KEY: RECIPE.to_json()})
    return path


def test_videos_become_pictures_and_bad_ones_are_reported(
    checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    names = ["disc.v1.mp4", "bad.mp4", "more/disc.v1.mp4", "pictures"]
    result = visualize(checkpoint, [str(videos / name) for name in names], tmp_path / "out", device="cpu")
    expected = [
        "disc.v1.png",
        "disc.v1.mp4",
        "disc.v1_2.png",
        "disc.v1_2.mp4",
        "pictures.png",
        "pictures.mp4",
    ]
    assert [path.name for path in result.written] == expected
    assert all(path.stat().st_size > 1000 for path in result.written)
    assert len(result.failures) == 1
    assert "bad.mp4" in str(result.failures[0])


def test_drawing_has_the_inputs_of_the_model(
    videos: Path, tmp_path: Path, drawings: list[ClipDrawing]
) -> None:
    model = Oracle().train()
    draw_videos(model, [str(videos / "pictures")], tmp_path, recipe=RECIPE, seed=5)
    (drawing,), (clips, mask) = drawings, model.seen[0]
    pixels = (clips[0].permute(1, 2, 3, 0) * 0.225 + 0.45) * 255  # [T, H, W, C]
    np.testing.assert_allclose(drawing.frames, pixels, atol=1e-3)  # float32 there and back
    np.testing.assert_array_equal(drawing.mask, mask[0])
    assert drawing.mask.mean() == 0.5
    np.testing.assert_array_equal(drawing.prediction, drawing.target)
    assert drawing.title == "pictures"
    assert drawing.frame_labels == ("frame 6", "frame 8", "frame 10", "frame 13")  # the middle 8 of 20 frames
    center = cv2.imread(str(videos / "pictures/8.png"))[:, 8:40, ::-1]
    np.testing.assert_array_equal(drawing.frames[1], center)
    assert model.training


@pytest.mark.parametrize("arguments", [{}, {"normalized": False, "frames": "all"}])
def test_true_pixels_are_drawn_as_the_frames_that_they_are(
    videos: Path, tmp_path: Path, drawings: list[ClipDrawing], arguments: dict[str, Any]
) -> None:
    """Pixels are converted to 8 bits and back; exact predictions equal the frames."""
    recipe = replace(RECIPE, target="pixels", target_arguments=arguments)
    draw_videos(Oracle(PixelTarget(**arguments)), [str(videos / "pictures")], tmp_path, recipe=recipe)
    (drawing,) = drawings
    prediction, filled = drawing.pictures
    first = drawing.frames[::2]  # of each cube
    np.testing.assert_array_equal(prediction.panels, first)
    np.testing.assert_array_equal(filled.panels, first)
    assert prediction.note == "hidden error 0.0000"
    picture, film = draw_picture(drawing), next(draw_film(drawing))
    assert picture.dtype == film.dtype == np.uint8
    flat = replace(drawing, pictures=(replace(prediction, panels=prediction.panels * 0), filled))
    assert (draw_picture(flat) != picture).any()


def test_visible_pixels_do_not_change_when_gaps_are_filled(
    videos: Path, tmp_path: Path, drawings: list[ClipDrawing]
) -> None:
    recipe = replace(RECIPE, target="pixels", target_arguments={"normalized": False})

    class Black(Oracle):
        def forward(self, clips: Tensor, mask: Tensor) -> Tensor:
            return torch.full_like(super().forward(clips, mask), -0.45 / 0.225)

    draw_videos(Black(PixelTarget(normalized=False)), [str(videos / "pictures")], tmp_path, recipe=recipe)
    (drawing,) = drawings
    hidden = drawing.mask.repeat(16, axis=1).repeat(16, axis=2)  # [t, H, W]
    filled = drawing.pictures[1].panels
    assert (filled[hidden] == 0).all()
    np.testing.assert_array_equal(filled[~hidden], drawing.frames[::2][~hidden])


def test_constant_is_the_mean_of_the_hidden_targets(
    videos: Path, tmp_path: Path, drawings: list[ClipDrawing]
) -> None:
    draw_videos(Oracle(), [str(videos / "disc.v1.mp4")], tmp_path, recipe=RECIPE)
    drawing = drawings[0]
    rows = [drawing.target[t, h, w] for t, h, w in np.argwhere(drawing.mask)]  # the two grids are equal here
    slow = np.mean(rows, axis=0)
    np.testing.assert_allclose(drawing.constant, slow, atol=1e-6)  # order of a float32 sum


def test_equal_seeds_draw_equal_masks(videos: Path, tmp_path: Path, drawings: list[ClipDrawing]) -> None:
    path = str(videos / "disc.v1.mp4")
    for seed in (0, 0, 1):
        draw_videos(Oracle(), [path, path], tmp_path, recipe=RECIPE, seed=seed)
    masks = [drawing.mask for drawing in drawings]
    np.testing.assert_array_equal(masks[0:2], masks[2:4])
    assert (np.array(masks[0:2]) != np.array(masks[4:6])).any()
    assert (masks[0] != masks[1]).any()


def test_mask_and_ratio_can_be_chosen(
    checkpoint: Path, videos: Path, tmp_path: Path, drawings: list[ClipDrawing]
) -> None:
    path = str(videos / "disc.v1.mp4")
    visualize(checkpoint, [path], tmp_path, mask="frame", ratio=0.5, device="cpu")
    assert sorted(drawings[0].mask.mean(axis=(1, 2))) == [0.0, 1.0]
    with pytest.raises(UserError, match=r"mask.kind 'tubes' is unknown; did you mean 'tube'"):
        visualize(checkpoint, [path], tmp_path, mask="tubes", device="cpu")


def test_no_readable_video_is_a_mistake(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    paths = [str(videos / "bad.mp4"), str(videos / "missing.mp4")]
    with pytest.raises(UserError, match=r"none of the 2 videos could be read; the first: .*bad.mp4"):
        visualize(checkpoint, paths, tmp_path, device="cpu")


def test_weights_without_recipe_are_refused(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    save_file(load_file(checkpoint), tmp_path / "bare.safetensors")
    with pytest.raises(
        UserError,
        match=r"bare.safetensors contains weights without a recipe, not weights of a pre-training run",
    ):
        visualize(tmp_path / "bare.safetensors", [str(videos / "disc.v1.mp4")], tmp_path)


def test_target_without_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="target 'hogg' is unknown; did you mean 'hog'"):
        draw_videos(Oracle(), [], tmp_path, recipe=replace(RECIPE, target="hogg"))


def test_undrawable_target_or_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'features' cannot be drawn; only hog and pixels can"):
        draw_videos(Oracle(), [], tmp_path, recipe=replace(RECIPE, target="features"))
    with pytest.raises(UserError, match="method 'ibot' predicts nothing that can be drawn"):
        draw_videos(Oracle(), [], tmp_path, recipe=replace(RECIPE, method="ibot"))


def test_picture_covers_the_share_that_is_hidden(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    result = visualize(checkpoint, [str(videos / "disc.v1.mp4")], tmp_path, device="cpu")
    picture = cv2.imread(str(result.written[0]))[..., ::-1]
    chequer = (picture == (42, 46, 60)).all(axis=-1) | (picture == (62, 67, 84)).all(axis=-1)
    assert chequer.sum() == pytest.approx(0.5 * 2 * 400 * 400, rel=0.01)  # two panels; some strokes match too


def test_a_folder_stands_for_the_videos_below_it_and_any_name_is_drawn(
    checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    shutil.copy(videos / "disc.v1.mp4", folder + b"/caf\xe9.mp4")
    shutil.copy(videos / "disc.v1.mp4", folder + b"/two\nlines.mp4")
    result = visualize(checkpoint, [os.fsdecode(folder)], tmp_path / "out")
    assert [path.name for path in result.written if path.suffix == ".png"] == [
        "caf\udce9.png",
        "two\nlines.png",
    ]
    assert not result.failures
