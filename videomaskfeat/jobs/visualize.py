"""``visualize``: run a pre-trained model on videos and draw clip, mask, target and prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from videomaskfeat.data.formats import expand_folders
from videomaskfeat.engine.distributed import choose_device
from videomaskfeat.errors import UserError
from videomaskfeat.inference.drawing import Visualized, draw_videos
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.models.weights import load_model
from videomaskfeat.recipe import read_recipe


def visualize(
    checkpoint: str | os.PathLike[str],
    videos: Sequence[str],
    out: str | os.PathLike[str],
    *,
    mask: str | None = None,
    ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
    reader: str = "auto",
    columns: int = 8,
) -> Visualized:
    """Draw videos with a pre-trained model: the center crop of the middle clip of each.

    Args:
        checkpoint: weights file (safetensors) of a pre-training run.
        videos: paths, at least one; a folder stands for all videos below it, or for the one whose pictures it
            holds.
        out: folder to write ``NAME.png`` into, and ``NAME.mp4`` if clips have more than one frame.
        mask: kind of mask; None: the run's own.
        ratio: share to hide; None: the run's own.
        seed: of the masks.
        device: auto, cpu or cuda.
        reader: auto, decord or pyav.
        columns: maximum number of time steps in a picture.

    Raises:
        UserError: the checkpoint, the mask, the seed or the device is wrong, the target cannot be drawn, or
            no video could be read.
    """
    recipe = read_recipe(checkpoint)
    own = recipe.mask
    chosen = replace(own, kind=mask or own.kind, ratio=own.ratio if ratio is None else ratio)
    videos = expand_folders(videos, stills=recipe.clip.frames == 1)
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    place = choose_device(device)
    model: Any = load_model(checkpoint, device=place)
    recipe = replace(recipe, mask=chosen)
    choose_inference_threads(model, recipe.clip, Machine(str(place), "fp32"), network=model.features)
    result = draw_videos(model, videos, out, recipe=recipe, seed=seed, reader=reader, columns=columns)
    if not result.written:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result
