"""Prediction targets at hidden positions, one file per target.

Each is a :class:`~videomaskfeat.targets.target.Target`: a module from clips to the values to predict, with
its loss. To add one, add a file and a line here (docs/extending.md).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from videomaskfeat import import_submodule
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.models.limits import check_arguments
from videomaskfeat.recipe import ClipRecipe, Levels, read_clip_recipe, recipe_texts
from videomaskfeat.targets.combined import CombinedTarget
from videomaskfeat.targets.features import FeatureTarget, is_path
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.targets.tokens import CodebookTarget, DvaeTarget

__getattr__ = partial(import_submodule, __name__)

TARGETS: dict[str, type[Target]] = {
    "hog": HogTarget,
    "pixels": PixelTarget,
    "features": FeatureTarget,
    "combined": CombinedTarget,
    "dvae": DvaeTarget,
    "codebook": CodebookTarget,
}
_SOURCES = {
    "weights": "train the tokenizer first (videomaskfeat train-tokenizer)",
    "teacher": "train the teacher first (weights.safetensors of its run folder)",
}
"""Arguments of targets that name a weights file, and how to get the file."""


def build_target(name: str, arguments: Mapping[str, Any], *, clip: ClipRecipe) -> Target:
    """Build a target by its name.

    Args:
        name: a key of ``TARGETS``.
        arguments: arguments that differ from its defaults.
        clip: the run's clips. Its mean and std are passed as ``clip_mean`` and ``clip_std``, and this
            function as ``build``, if the target has these arguments.

    Raises:
        UserError: an unknown name, invalid arguments, or a missing file of a tokenizer or teacher.
    """
    check_name("target.name", name, TARGETS)
    build = TARGETS[name]
    parameters = inspect.signature(build).parameters
    from_run: dict[str, Any] = {
        "clip_mean": clip.mean,
        "clip_std": clip.std,
        "build": functools.partial(build_target, clip=clip),
    }
    supplied = {key: value for key, value in from_run.items() if key in parameters}
    check_arguments("target.arguments", build, arguments, name=name, supplied=supplied)
    for key, remedy in _SOURCES.items():
        path = arguments.get(key) if key in parameters else None
        if isinstance(path, str) and is_path(path) and not is_file(path) and not is_folder(path):
            raise UserError(
                f"target.arguments.{key} {path}: there is no such weights file; {remedy}, or check the path"
            )
    if "teacher_mean" in parameters:
        arguments = {**_teacher_levels(arguments.get("teacher")), **arguments}
    try:
        return build(**{key: _as_tuple(value) for key, value in arguments.items()}, **supplied)
    except TypeError as error:
        raise UserError(f"target.arguments of {name!r}: {error}") from error


def _teacher_levels(teacher: Any) -> dict[str, Levels]:
    """Normalization of a teacher's clips, if its weights file contains it."""
    path = str(teacher)
    if not path.endswith(".safetensors") or not is_file(path) or not recipe_texts(path):
        return {}
    clip = read_clip_recipe(path)
    return {"teacher_mean": clip.mean, "teacher_std": clip.std}


def _as_tuple(value: Any) -> Any:
    """Convert lists from YAML and JSON to tuples at all levels."""
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value
