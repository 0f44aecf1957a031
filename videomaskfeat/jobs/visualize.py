"""``visualize``: run a pre-trained model on videos and draw clip, mask, target and prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from videomaskfeat.data.formats import expand_folders
from videomaskfeat.errors import UserError
from videomaskfeat.inference.classifiers import load_classifier, load_network
from videomaskfeat.inference.drawing import (
    CLASS_ENDING,
    Visualized,
    draw_class_maps,
    draw_videos,
    drawn_files,
)
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import check_outputs
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
    attention: bool = False,
    label: int | None = None,
    overwrite: bool = False,
) -> Visualized:
    """Draw the center crop of the middle clip of each video with a pre-trained model or a classifier.

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
        attention: draw the positions that raise the logit of a class, with the weights of a classifier.
        label: the class for ``attention``; None: the most probable one of each video.
        overwrite: replace earlier drawings.

    Raises:
        UserError: the weights or an argument are wrong, the target cannot be drawn, a drawing exists, or no
            video could be read.
    """
    if attention:
        return _visualize_classes(weights, videos, out, label, device, reader, columns, overwrite)
    if label is not None:
        raise UserError("label is the class of --attention; add --attention, or leave label out")
    recipe = read_recipe(weights)
    own = recipe.mask
    ratio = own.ratio if ratio is None else ratio
    arguments = own.arguments if mask in (None, own.kind) else {}
    changed = replace(own, kind=mask or own.kind, ratio=ratio, arguments=arguments)
    recipe = replace(recipe, mask=changed)
    videos = expand_folders(videos, stills=recipe.clip.frames == 1)
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    check_outputs(drawn_files(out, videos), overwrite=overwrite)
    machine = Machine(device, "fp32")
    model = load_network(weights, machine)
    choose_inference_threads(model, recipe.clip, machine, network=model.features)
    result = draw_videos(model, videos, out, recipe=recipe, seed=seed, reader=reader, columns=columns)
    return _check_written(result, videos)


def _visualize_classes(
    weights: str | os.PathLike[str],
    videos: Sequence[str],
    out: str | os.PathLike[str],
    label: int | None,
    device: str,
    reader: str,
    columns: int,
    overwrite: bool,
) -> Visualized:
    classifier = load_classifier(weights, device=device, precision="fp32", reader=reader)
    videos = expand_folders(videos, stills=classifier.recipe.clip.frames == 1)
    check_outputs(drawn_files(out, videos, CLASS_ENDING), overwrite=overwrite)
    result = draw_class_maps(classifier, videos, out, label=label, columns=columns)
    return _check_written(result, videos)


def _check_written(result: Visualized, videos: Sequence[str]) -> Visualized:
    if not result.written:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result
