"""Clip settings that fine-tuning and detection take from their initial weights."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from videomaskfeat.config import load_config
from videomaskfeat.config_keys import flat
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file
from videomaskfeat.recipe import ClipRecipe, sides_of_crop
from videomaskfeat.stored_recipe import (
    CLASSIFY_KEY,
    DETECT_KEY,
    ENCODER_KEY,
    read_clip_recipe,
    read_detect_recipe,
    read_testing_recipe,
    recipe_texts,
)

_TIME_SETTINGS = ("clip.frames", "clip.stride", "clip.target_fps")
_CLIP_SETTINGS = ("frames", "stride", "target_fps", "crop", "mean", "std")  # that weights were trained with
INHERITED = (*(f"clip.{name}" for name in _CLIP_SETTINGS), "clip.short_side", "evaluate.short_side")
"""Keys that a config takes from its weights, see :func:`inherited_settings`."""


def inherited_settings(config: Any, own: Collection[str]) -> dict[str, Any]:
    """Clip settings that a config of fine-tuning or detection takes from ``model.weights``.

    These are frames, stride, frame rate (of videos only), crop and normalization. The short sides go with the
    crop: that of a classifier's or detector's test views, otherwise the values of the config times the ratio
    of the crops. A run that is resumed keeps the settings in its run folder. The result is empty if the
    weights have no recipe, such as those of other projects before ``import-weights``.

    Args:
        config: a FinetuneConfig or DetectConfig.
        own: names of the keys that the config sets, ``section.key``.
    """
    path = config.model.weights
    try:
        if any(Path(config.run.folder, "checkpoints").glob("*.pt")):
            earlier = flat(load_config(type(config), os.path.join(config.run.folder, "config.yaml")))
            return {name: earlier[name] for name in INHERITED}
        if not path.endswith(".safetensors") or not is_file(path) or not recipe_texts(path):
            return {}
        recipe = read_testing_recipe(path)
        keys = recipe_texts(path)
        detector = read_detect_recipe(path) if DETECT_KEY in keys else None
    except UserError:  # loading the weights or opening the run folder reports it
        return {}
    clip = recipe.clip
    values = {f"clip.{name}": getattr(clip, name) for name in _CLIP_SETTINGS}
    if clip.frames == 1:  # the weights of pictures may train videos
        values = {name: value for name, value in values.items() if name not in _TIME_SETTINGS}
    elif clip.stride != int(clip.stride):
        del values["clip.stride"]
    else:
        values["clip.stride"] = int(clip.stride)
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if "clip.crop" in own:
        return values
    ratio = clip.short_side / min(sides_of_crop(config.clip.crop))
    values["clip.short_side"] = [round(side * ratio) for side in config.clip.short_side]
    side = round(config.evaluate.short_side * ratio)
    if detector is not None and hasattr(config.evaluate, "area"):
        side = detector.short_side
    elif not hasattr(config.evaluate, "area") and {CLASSIFY_KEY, ENCODER_KEY} & set(keys):
        side = recipe.short_side
    return {**values, "evaluate.short_side": side}


def describe_inherited(path: str, own: ClipRecipe) -> list[str]:
    """A line of the plan: how clips differ from those that the weights were trained with.

    Empty without weights, or if they have no recipe.
    """
    if not path.endswith(".safetensors") or not recipe_texts(path):
        return []
    theirs = read_clip_recipe(path)
    names = [name for name in _CLIP_SETTINGS if getattr(own, name) != getattr(theirs, name)]
    if not names:
        return [f"weights   frames, stride, crop and normalization of clips are those of {path}"]
    shown = ", ".join(
        f"clip.{name} {getattr(own, name)} instead of {getattr(theirs, name)}" for name in names
    )
    return [f"weights   clips differ from those of {path}: {shown}"]
