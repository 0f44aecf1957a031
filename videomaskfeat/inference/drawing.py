"""Images and films of videos with mask, target and prediction of a pre-trained model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from videomaskfeat.data.clips import sample_generator
from videomaskfeat.data.sampling import ShortVideoError, clip_indices_middle
from videomaskfeat.data.transforms import UniformCrop
from videomaskfeat.data.video import VideoReadError, open_video
from videomaskfeat.data.worker_pool import call_in_workers
from videomaskfeat.errors import UserError, unknown_name
from videomaskfeat.io import make_folder, output_paths
from videomaskfeat.plugins import is_plugin
from videomaskfeat.recipe import PretrainRecipe, denormalize
from videomaskfeat.targets import TARGETS, build_target
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.viz.pictures import (
    ClipDrawing,
    Row,
    hidden_error,
    stretch_mask,
    write_film,
    write_picture,
)

DRAWN = ("hog", "pixels")
"""Targets that can be drawn."""


@dataclass(frozen=True)
class Visualized:
    """The drawings of videos.

    Attributes:
        written: an image and a film for each video that could be read.
        failures: one error, with path and cause, for each unreadable video.
    """

    written: list[Path]
    failures: list[Exception]


def draw_videos(
    model: nn.Module,
    videos: Sequence[str],
    out: str | os.PathLike[str],
    *,
    recipe: PretrainRecipe,
    seed: int = 0,
    reader: str = "auto",
    workers: int = 0,
    columns: int = 8,
) -> Visualized:
    """Draw the center crop of the middle clip of each video; the model's training mode is restored.

    Args:
        model: predicts the target of the recipe.
        videos: paths.
        out: folder for ``NAME.png``, and for ``NAME.mp4`` if clips have more than one frame.
        recipe: clip, mask and target.
        seed: seed of the masks.
        reader: video reader, see `open_video`.
        workers: 1 reads the videos in another process, where a crash of the decoder is a failure.
        columns: maximum number of time steps in an image.

    Raises:
        UserError: the mask is wrong, or the target cannot be drawn.
    """
    target = _build_target(recipe)
    make_folder(out)
    written: list[Path] = []
    failures: list[Exception] = []
    was_training = model.training
    model.eval()
    try:
        arguments = [(video, recipe, reader) for video in videos]
        outputs = output_paths(out, videos)
        clips = call_in_workers(_read_middle_clip, arguments, workers=workers)
        for index, ((video, *_), clip) in enumerate(zip(arguments, clips, strict=True)):
            if isinstance(clip, Exception):
                failures.append(clip)
                continue
            frames, indices = clip
            mask = recipe.draw_mask(sample_generator(seed, 0, index))
            drawing = replace(
                _predict(model, target, frames, mask, recipe),
                title=os.path.basename(video),
                frame_labels=tuple(f"frame {number}" for number in indices),
            )
            written.append(with_suffix(outputs[index], ".png"))
            write_picture(written[-1], drawing, columns=columns)
            if len(frames) > 1:
                written.append(with_suffix(outputs[index], ".mp4"))
                write_film(written[-1], drawing)
    finally:
        model.train(was_training)
    return Visualized(written, failures)


def drawn_files(out: str | os.PathLike[str], videos: Sequence[str], ending: str = "") -> list[Path]:
    """The files that the drawings of the videos may have."""
    return [with_suffix(path, end) for path in output_paths(out, videos, ending) for end in (".png", ".mp4")]


def with_suffix(path: Path, suffix: str) -> Path:
    """The path with a suffix after its name."""
    return path.with_name(f"{path.name}{suffix}")  # a name may contain a dot


def explain_undrawable(recipe: PretrainRecipe) -> str | None:
    """Why the predictions of a recipe cannot be drawn; None if they can."""
    if recipe.method != "masked":
        return f"method {recipe.method!r} predicts nothing that can be drawn"
    if recipe.target not in TARGETS and not is_plugin(recipe.target):
        return str(unknown_name("target", recipe.target, TARGETS))
    if recipe.target not in DRAWN:
        return f"target {recipe.target!r} cannot be drawn; only {' and '.join(DRAWN)} can"
    return None


def _build_target(recipe: PretrainRecipe) -> HogTarget | PixelTarget:
    reason = explain_undrawable(recipe)
    if reason is not None:
        raise UserError(reason)
    target = build_target(recipe.target, recipe.target_arguments, clip=recipe.clip)
    assert isinstance(target, HogTarget | PixelTarget)
    return target


def _read_middle_clip(
    video: str, recipe: PretrainRecipe, reader: str
) -> tuple[np.ndarray, np.ndarray] | VideoReadError | ShortVideoError:
    """Frames uint8 [T, H, W, 3] of the center crop of the middle clip, and their numbers [T]."""
    clip, rng = recipe.clip, np.random.default_rng(0)  # the middle clip draws nothing
    try:
        with open_video(video, reader) as source:
            indices = clip.frame_sampler(clip_indices_middle)(source.frames, source.fps, rng=rng)
            frames = source.read(indices)  # [T, H, W, 3]
    except (VideoReadError, ShortVideoError) as error:
        return error
    return UniformCrop(clip.crop, clip.short_side).sample(*frames.shape[1:3]).apply_clip(frames), indices


@torch.inference_mode()
def _predict(
    model: nn.Module,
    target: HogTarget | PixelTarget,
    frames: np.ndarray,
    mask: np.ndarray,
    recipe: PretrainRecipe,
) -> ClipDrawing:
    device = next(model.parameters()).device
    clip = recipe.clip.normalize(torch.from_numpy(frames)[None].to(device))  # [1, C, T, H, W]
    prediction = model(clip, torch.from_numpy(mask)[None].to(device)).float()
    truth = target(clip)[0].float().cpu().numpy()  # [t, h, w, K]
    hidden = stretch_mask(mask, truth.shape[:3])
    drawing = ClipDrawing(
        title="",
        frames=frames,
        mask=mask,
        target=truth,
        prediction=prediction[0].cpu().numpy(),
        constant=truth[hidden].mean(axis=0),  # the best constant prediction for this clip
    )
    if isinstance(target, HogTarget):
        return replace(drawing, bins=target.bins)
    return replace(drawing, pictures=_build_pixel_rows(drawing, target.as_clips(prediction, clip), recipe))


def _build_pixel_rows(drawing: ClipDrawing, predicted: Tensor, recipe: PretrainRecipe) -> tuple[Row, ...]:
    """Panels of predicted pixels, normalized [1, C, n, H, W]: alone, and in the hidden positions only."""
    assert drawing.prediction is not None
    steps = drawing.target.shape[0]
    pixels = denormalize(predicted, mean=recipe.clip.mean, std=recipe.clip.std)[0]  # uint8 [n, H, W, C]
    panels = pixels[:: len(pixels) // steps].cpu().numpy()  # the first frame of each position
    true = drawing.frames[:: len(drawing.frames) // steps]
    hidden = stretch_mask(drawing.mask, true.shape[:3])[..., None]
    error = hidden_error(drawing, drawing.prediction)
    return (
        Row("prediction", f"hidden error {error:.4f}", panels),
        Row("filled in", "only hidden positions", np.where(hidden, panels, true)),
    )
