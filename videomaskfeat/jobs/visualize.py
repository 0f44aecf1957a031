"""``visualize``: run a pre-trained model on videos and draw clip, mask, target and prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from videomaskfeat.data.formats import expand_folders
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.inference.classifiers import ClipMap, load_classifier, load_encoder, load_network
from videomaskfeat.inference.drawing import Visualized, draw_videos, drawn_files
from videomaskfeat.inference.map_drawing import draw_maps
from videomaskfeat.inference.multiview import Machine
from videomaskfeat.inference.threads import choose_inference_threads
from videomaskfeat.io import check_outputs
from videomaskfeat.stored_recipe import CLASSIFY_KEY, read_recipe, recipe_texts

MAPS = {"gradcam": "class", "attention": "attention", "rollout": "rollout"}
"""Maps of ``--attention``, and the ends of their file names."""


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
    map: str = "auto",
    label: int | None = None,
    block: int | None = None,
    overwrite: bool = False,
) -> Visualized:
    """Draw the center crop of the middle clip of each video with a pre-trained model or a classifier.

    Args:
        weights: weights file (safetensors) of a pre-training run; with ``attention`` of any run.
        videos: paths, at least one; a folder means all videos below it, a folder with one image per frame is
            one video.
        out: folder for ``NAME.png``, and for ``NAME.mp4`` if clips have more than one frame.
        mask: mask policy; None: as in the run.
        ratio: share of the cells to hide; None: as in the run.
        seed: seed of the masks.
        device: auto, cpu or cuda.
        reader: video reader, see `open_video`.
        columns: maximum number of time steps in an image.
        attention: draw a map of the clip instead.
        map: "gradcam" (positions that raise the logit of a class, of a classifier), "attention" (of a block,
            mean over heads), "rollout" (attention of all blocks up to one) or "auto".
        label: the class of "gradcam"; None: the most probable one of each video.
        block: the block of "attention" and "rollout", from 1; None: the last.
        overwrite: replace earlier drawings.

    Raises:
        UserError: the weights or an argument are wrong, the target cannot be drawn, a drawing exists, or no
            video could be read.
    """
    if attention:
        chosen = _choose_map(weights, map, label, block)
        return _draw_maps(weights, videos, out, chosen, device, reader, columns, overwrite)
    chosen_options = {"map": map != "auto", "label": label is not None, "block": block is not None}
    if any(chosen_options.values()):
        name = next(name for name, is_set in chosen_options.items() if is_set)
        raise UserError(f"{name} is an option of --attention; add --attention, or leave {name} out")
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


@dataclass(frozen=True)
class _Map:
    """A map, its class and its block."""

    kind: str
    label: int | None
    block: int | None


def _choose_map(weights: str | os.PathLike[str], kind: str, label: int | None, block: int | None) -> _Map:
    """The chosen map; "auto" is Grad-CAM for a classifier, unless a block is chosen_options.

    Raises:
        UserError: the map is unknown, or has no class or no block.
    """
    check_name("map", kind, ("auto", *MAPS))
    if kind == "auto":
        has_classes = CLASSIFY_KEY in recipe_texts(weights)
        kind = "gradcam" if label is not None or (has_classes and block is None) else "attention"
    if label is not None and kind != "gradcam":
        raise UserError(f"label is the class of the map gradcam; leave label out for the map {kind}")
    if block is not None and kind == "gradcam":
        raise UserError("block has no meaning for the map gradcam; use --map attention, or leave block out")
    return _Map(kind, label, block)


def _draw_maps(
    weights: str | os.PathLike[str],
    videos: Sequence[str],
    out: str | os.PathLike[str],
    chosen: _Map,
    device: str,
    reader: str,
    columns: int,
    overwrite: bool,
) -> Visualized:
    compute: Callable[[str], ClipMap]
    if chosen.kind == "gradcam":
        classifier = load_classifier(weights, device=device, precision="fp32", reader=reader)
        recipe, compute = classifier.recipe, partial(classifier.class_map, label=chosen.label)
    else:
        encoder = load_encoder(weights, device=device, precision="fp32", reader=reader)
        recipe = encoder.recipe
        compute = partial(encoder.attention_map, block=chosen.block, rollout=chosen.kind == "rollout")
    videos = expand_folders(videos, stills=recipe.clip.frames == 1)
    check_outputs(drawn_files(out, videos, f"_{MAPS[chosen.kind]}"), overwrite=overwrite)
    result = draw_maps(compute, videos, out, suffix=MAPS[chosen.kind], columns=columns)
    return _check_written(result, videos)


def _check_written(result: Visualized, videos: Sequence[str]) -> Visualized:
    if not result.written:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result
