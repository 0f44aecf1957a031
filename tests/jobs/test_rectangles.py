"""Rectangular clips: crops, masks, positions, and runs from pre-training to features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videomaskfeat.cli import CommandLine
from videomaskfeat.data.transforms import (
    ClipTransform,
    RandomResizedCrop,
    ShortSideJitterCrop,
    UniformCrop,
    resize_frame,
)
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_classifier
from videomaskfeat.inference.scores import load_scores
from videomaskfeat.masking import MASKS
from videomaskfeat.models import create_model
from videomaskfeat.recipe import ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import read_classify_recipe, read_recipe
from videomaskfeat.targets.hog import hog_features

from .conftest import Verb
from .test_pretrain import rows

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 60, 100, 3), np.uint8)


@pytest.mark.parametrize(("crop", "left"), [(0, 0), (1, 18), (2, 36)])
def test_crop_of_a_rectangle_is_a_slice_of_the_resized_frame(crop: int, left: int) -> None:
    geometry = UniformCrop((48, 64), 60, crop).sample(60, 100)
    np.testing.assert_array_equal(geometry.apply_clip(FRAMES), FRAMES[:, 6:54, left : left + 64])
    geometry = UniformCrop((24, 32), 30, crop).sample(60, 100)
    small = np.stack([resize_frame(frame, (30, 50)) for frame in FRAMES])
    np.testing.assert_array_equal(
        geometry.apply_clip(FRAMES), small[:, 3:27, (0, 9, 18)[crop] : (0, 9, 18)[crop] + 32]
    )


def test_upright_video_is_enlarged_until_a_wide_crop_fits() -> None:
    """100 x 60 pixels, crop 48 x 64: a short side of 48 is too narrow, so the width becomes 64."""
    geometry = UniformCrop((48, 64), 48).sample(100, 60)
    assert geometry.resized == (107, 64)
    assert dataclasses.astuple(geometry.window) == (30, 0, 48, 64)


@pytest.mark.parametrize(
    "build",
    [
        RandomResizedCrop,
        lambda size: ShortSideJitterCrop(size, short_side=(40, 50)),
        lambda size: UniformCrop(size, 40, 2),
    ],
)
def test_a_square_given_as_a_pair_has_the_same_pixels(build: Any) -> None:
    for seed in range(20):
        clips = []
        for size in (32, (32, 32)):
            transform: ClipTransform = build(size)
            geometry = transform.sample(60, 100, np.random.default_rng(seed))
            clips.append(geometry.apply_clip(FRAMES))
        np.testing.assert_array_equal(*clips)


@pytest.mark.parametrize("size", [(24, 48), (48, 24)])
def test_random_crops_keep_the_aspect_of_a_rectangle(size: tuple[int, int]) -> None:
    """Width / height of the source, relative to the clip's, is in 3/4..4/3 up to rounding."""
    transform = RandomResizedCrop(size, area=(0.2, 0.3))
    for seed in range(50):
        geometry = transform.sample(120, 160, np.random.default_rng(seed))
        ratio = geometry.source.width / geometry.source.height / (size[1] / size[0])
        assert 0.72 < ratio < 1.39
        assert geometry.resized == size
    jitter = ShortSideJitterCrop(size, short_side=(48, 60))
    clip = jitter.sample(60, 100, np.random.default_rng(0)).apply_clip(FRAMES)
    assert clip.shape == (2, *size, 3)


def test_a_recipe_with_a_square_pair_is_the_one_with_a_number() -> None:
    assert ClipRecipe(4, 2, (32, 32)) == ClipRecipe(4, 2, 32)
    recipe = PretrainRecipe(ClipRecipe(4, 2, (32, 48)), MaskRecipe(cell=(2, 16, 16)))
    assert recipe.clip.size == (4, 32, 48)
    assert str(recipe.mask_grid) == "2x2x3"
    assert PretrainRecipe.from_json(recipe.to_json()) == recipe
    for crop in ((32,), (1.5, 2), "32", (32, 32, 32)):
        with pytest.raises(UserError, match="neither a number of pixels nor a list of height and width"):
            ClipRecipe(4, 2, crop)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(MASKS))
def test_masks_of_every_kind_cover_a_rectangle(kind: str) -> None:
    """In 100 draws, each cell of a grid of 2 x 4 x 6 is hidden at least once, and visible at least once."""
    recipe = PretrainRecipe(ClipRecipe(4, 2, (64, 96)), MaskRecipe(kind, 0.5, (2, 16, 16)))
    rng = np.random.default_rng(0)
    masks = np.stack([recipe.draw_mask(rng) for _ in range(100)])
    assert masks.shape == (100, 2, 4, 6)
    assert masks.any(axis=0).all()
    assert not masks.all(axis=0).any()


def test_hog_of_a_rectangle_is_that_of_the_picture_on_its_side() -> None:
    """A transposed picture has transposed cells with the bins of the mirrored orientation."""
    frames = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    wide = hog_features(frames)
    assert wide.shape == (1, 3, 9, 4, 6)
    part = hog_features(frames[..., :32])
    # Cells whose gradients do not reach the cut are those of the square picture.
    torch.testing.assert_close(wide[..., :3], part[..., :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["maskfeat_mvitv2_pico", "vit_pico"])
def test_positions_of_a_square_fit_a_rectangle(name: str) -> None:
    """Learned and relative positions are resized; the model of the rectangle has one output per cube."""
    arguments = {"absolute_positions": "joint"} if name == "vit_pico" else {}
    square = create_model(name, clip_size=(4, 32, 32), **arguments)
    wide = create_model(name, clip_size=(4, 32, 48), **arguments)
    clips = torch.rand(1, 3, 4, 32, 48)
    assert square.features(clips, pooled=False).shape == wide.features(clips, pooled=False).shape


def run(verb: Verb, name: str, *arguments: str | Path) -> str:
    """Standard output and standard error of a verb."""
    code, out, err = verb(name, *arguments)
    assert code == 0, err
    return out + err


def frames_by_hand(video: Path, *, crop: int) -> np.ndarray:
    """Crop 0, 1 or 2 (from row 0, 8 or 16) of the middle clip of a 48x48 video: uint8 [4, 32, 48, 3].

    A clip of 7 frames in 12 starts at frame 2; the frames have the width of the clip, so only rows are cut.
    """
    with open_video(video) as source:
        assert (source.frames, source.info.height, source.info.width) == (12, 48, 48)
        frames = source.read([2, 4, 6, 8])
    return frames[:, 8 * crop : 8 * crop + 32]


def views_by_hand(video: Path, *, crops: int) -> torch.Tensor:
    """Normalized crops float [crops, 3, 4, 32, 48]."""
    clips = torch.stack([torch.from_numpy(frames_by_hand(video, crop=crop)) for crop in range(crops)])
    return ((clips.float() / 255 - 0.45) / 0.225).permute(0, 4, 1, 2, 3)


def test_square_pair_in_a_config_is_one_number() -> None:
    """Everything is built from the recipe, so that both give the same bits."""
    one, pair = (CommandLine("pretrain").read([f"clip.crop={crop}"]) for crop in ("32", "[32,32]"))
    assert PretrainRecipe.of(one) == PretrainRecipe.of(pair)


def test_all_commands_from_pretraining_to_export(sample: Path, tmp_path: Path, verb: Verb) -> None:
    """One step of each training with clips of 32 x 48 pixels, and a second one of a resumed run.

    Fine-tuning takes the clips from the weights.
    """
    common = [
        f"data.train={sample / 'train.csv'}",
        "data.workers=0",
        "optim.epochs=0.25",
        "optim.warmup_epochs=0",
        "optim.batch_size=4",
        "run.device=cpu",
        "run.threads=1",
        "run.loggers=[]",
    ]
    stride = "target.arguments={output_stride: [2, 8, 8]}"
    model = ["model.name=maskfeat_mvitv2_pico", stride, "mask.cell=[2,16,16]", "run.pictures=1"]
    clip = ["clip.frames=4", "clip.stride=2", "clip.crop=[32,48]", f"run.folder={tmp_path / 'wide'}"]
    text = run(verb, "pretrain", *common, *model, *clip)
    assert "4 frames x stride 2, 32x48 pixels: 2x4x6 = 48 tokens" in text
    weights = tmp_path / "wide/weights.safetensors"
    assert read_recipe(weights).clip.crop == (32, 48)
    assert list((tmp_path / "wide/pictures").glob("*.png"))
    longer = ["optim.epochs=0.5", "run.extend=true"]
    run(verb, "pretrain", *common, *model, *clip, *longer)
    assert [row["step"] for row in rows(tmp_path / "wide")] == [1, 2]
    drawn, cpu = tmp_path / "drawn", ("--device", "cpu")
    video = sample / "videos/000001.mp4"
    run(verb, "visualize", weights, video, "--out", drawn, "--columns", "2", *cpu)
    with open_video(next(drawn.glob("*.mp4"))) as film:
        assert (film.frames, film.info.height < film.info.width) == (4, True)
    tuned = ["model.name=maskfeat_mvitv2_pico_classifier", f"model.weights={weights}", "augment.randaugment="]
    views = ["evaluate.crops=3", "evaluate.views=1", f"data.validation={sample / 'val.csv'}"]
    text = run(verb, "finetune", *common, *tuned, *views, f"run.folder={tmp_path / 'tuned'}")
    assert "4 frames x stride 2, 32x48 pixels" in text
    best = tmp_path / "tuned/best.safetensors"
    recipe = read_classify_recipe(best)
    assert (recipe.clip.crop, recipe.crops) == ((32, 48), 3)
    run(verb, "predict", best, video, "--json", tmp_path / "predicted.json", *cpu)
    (result,) = json.loads((tmp_path / "predicted.json").read_text())
    assert result["protocol"]["crop"] == [32, 48]
    classifier = load_classifier(best, device="cpu")
    expected = classifier.model(views_by_hand(video, crops=3)).softmax(dim=-1).mean(dim=0)
    for entry in result["predictions"]:  # 1e-5: float32 rounding
        assert entry["probability"] == pytest.approx(float(expected[entry["label"]]), abs=1e-5)

    scores = tmp_path / "scores"
    run(verb, "evaluate", best, sample / "val.csv", "--out", scores, "--workers", "0", *cpu)
    tested = json.loads((scores / "result.json").read_text())
    assert tested["protocol"]["crop"] == [32, 48]
    assert tested["top1"] == json.loads((tmp_path / "tuned/summary.json").read_text())["top1"]
    held_out = load_scores(scores)
    for path, row in zip(held_out.paths, held_out.scores, strict=True):
        hand = classifier.model(views_by_hand(Path(path), crops=3)).softmax(dim=-1).mean(dim=0)
        np.testing.assert_allclose(row, hand.detach().numpy(), atol=1e-5)  # float32 rounding

    for kind in ("gradcam", "attention", "rollout"):
        run(verb, "visualize", best, video, "--out", tmp_path / kind, "--attention", "--map", kind, *cpu)
        with open_video(next((tmp_path / kind).glob("*.mp4"))) as film:
            assert film.frames == 4
    exported = tmp_path / "model.pt2"
    assert "[1, 4, 32, 48, 3]" in run(verb, "export", best, exported, "--batch", "1")
    graph = torch.export.load(exported).module()
    frames = torch.from_numpy(frames_by_hand(video, crop=1)[None].copy())
    with torch.inference_mode():
        direct = classifier.model(views_by_hand(video, crops=3)[1:2])
        torch.testing.assert_close(graph(frames), direct, atol=1e-4, rtol=1e-4)

    out = tmp_path / "features"
    run(verb, "extract-features", best, sample / "val.csv", out, "--grid", "--workers", "0", *cpu)
    assert np.load(out / "features.npy").shape[1:4] == (2, 4, 6)


def test_detection_needs_a_square() -> None:
    config = CommandLine("detect-train").read(["clip.crop=[32,48]"])
    from videomaskfeat.jobs.detect import ActionLists, build_recipe

    lists = ActionLists.__new__(ActionLists)
    with pytest.raises(UserError, match=r"clip.crop \[32, 48\]: detection trains on square crops"):
        build_recipe(config, lists)
