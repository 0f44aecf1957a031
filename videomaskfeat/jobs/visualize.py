"""``visualize``: run a pre-trained model on videos and draw clip, mask, target and prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from videomaskfeat.data.formats import expand_folders
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_network
from videomaskfeat.inference.drawing import Visualized, draw_videos
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.recipe import read_recipe


def visualize(
    weights: str | os.PathLike[str],
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
    """Draw the center crop of the middle clip of each video with a pre-trained model.

    Args:
        weights: weights file (safetensors) of a pre-training run.
        videos: paths, at least one; a folder means all videos below it, a folder with one image per frame is
            one video.
        out: folder for ``NAME.png``, and for ``NAME.mp4`` if clips have more than one frame.
        mask: mask policy; None: as in the run.
        ratio: share of the cells to hide; None: as in the run.
        seed: seed of the masks.
        device: auto, cpu or cuda.
        reader: auto, decord or pyav.
        columns: maximum number of time steps in an image.

    Raises:
        UserError: the weights or an argument are wrong, the target cannot be drawn, or no video could be
            read.
    """
    recipe = read_recipe(weights)
    own = recipe.mask
    ratio = own.ratio if ratio is None else ratio
    arguments = own.arguments if mask in (None, own.kind) else {}
    changed = replace(own, kind=mask or own.kind, ratio=ratio, arguments=arguments)
    recipe = replace(recipe, mask=changed)
    videos = expand_folders(videos, stills=recipe.clip.frames == 1)
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    machine = Machine(device, "fp32")
    model = load_network(weights, machine)
    choose_inference_threads(model, recipe.clip, machine, network=model.features)
    result = draw_videos(model, videos, out, recipe=recipe, seed=seed, reader=reader, columns=columns)
    if not result.written:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result
