"""What a result depends on, in words and hashes: how videos were cut, of which list, by which weights."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from videomaskfeat.data.records import Records
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.io import open_file
from videomaskfeat.tasks.recipe import ClassifyRecipe

_BLOCK = 1 << 20  # bytes


def protocol_of(recipe: ClassifyRecipe) -> dict[str, Any]:
    """How a recipe's videos are cut in testing, as plain data."""
    clip = recipe.clip
    # With segments neither stride nor rate plays a part, and a short video repeats frames.
    pace = {"stride": clip.stride, "target_fps": clip.target_fps, "short_video": clip.short_video}
    return {
        "views": recipe.views,
        "crops": recipe.crops,
        "sampling": recipe.sampling,
        "frames": clip.frames,
        **(pace if recipe.sampling == "clip" else {}),
        "crop": clip.crop,
        "short_side": recipe.short_side,
        "mean": clip.mean,
        "std": clip.std,
    }


def views_of(records: Records, recipe: ClassifyRecipe, *, reader: str = "auto") -> EvaluationViews:
    """The views of a list's videos as a recipe has them cut in testing.

    Raises:
        UserError: views, crops or a clip setting that cannot be.
    """
    clip = recipe.clip
    sampling: Any = recipe.sampling  # both are checked by the views
    short: Any = clip.short_video
    return EvaluationViews(
        records,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        short=short,
        sampling=sampling,
        views=recipe.views,
        crops=recipe.crops,
        crop=clip.crop,
        short_side=recipe.short_side,
        reader=reader,
    )


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: no such file.
    """
    digest = hashlib.sha256()
    with open_file(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def records_sha256(records: Records) -> str:
    """The SHA-256 of a list's rows, path and label, in their order: of a folder as of any format of list."""
    digest = hashlib.sha256()
    for record in records:
        label = "" if record.label is None else str(record.label)
        digest.update(os.fsencode(record.path) + b"\0" + label.encode() + b"\0")
    return digest.hexdigest()
