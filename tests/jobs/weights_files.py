"""Weights files of networks small enough for any test, untrained, with their recipes."""

from __future__ import annotations

from pathlib import Path

import torch

from videomaskfeat.models import create_model
from videomaskfeat.models.saving import save_model
from videomaskfeat.recipe import METADATA_KEY, ClipRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import CLASSIFY_KEY, ClassifyRecipe

CLIP = ClipRecipe(frames=4, stride=2, crop=32)
NAMES = ("push", "pull", "turn left", "turn right", "stand", "fall", "Zähne putzen")
RECIPE = ClassifyRecipe(CLIP, views=2, crops=1, short_side=32, class_names=NAMES)
_SMALL = {"clip_size": (4, 32, 32), "depth": 4, "width": 16, "widen_at": (1,)}


def write_classifier(path: Path, recipe: ClassifyRecipe = RECIPE) -> Path:
    """A classifier of 7 classes whose logits differ by units, so that no probability is near another."""
    torch.manual_seed(1)
    model = create_model("maskfeat_mvitv2_nano_classifier", **_SMALL, classes=7, head_scale=40.0)
    save_model(model, path, metadata={CLASSIFY_KEY: recipe.to_json()})
    return path


def write_pretrained(path: Path, *, seed: int = 2) -> Path:
    """An encoder as a pre-training run leaves it."""
    torch.manual_seed(seed)
    model = create_model("maskfeat_mvitv2_nano", **_SMALL, values_per_token=108)
    save_model(model, path, metadata={METADATA_KEY: PretrainRecipe(CLIP).to_json()})
    return path
