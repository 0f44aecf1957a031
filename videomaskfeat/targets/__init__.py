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
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.models.limits import check_arguments
from videomaskfeat.plugins import find_class
from videomaskfeat.recipe import ChannelValues, ClipRecipe
from videomaskfeat.targets.target import Target

__getattr__ = partial(import_submodule, __name__)

TARGETS: dict[str, str] = {
    "hog": "videomaskfeat.targets.hog:HogTarget",
    "pixels": "videomaskfeat.targets.pixels:PixelTarget",
    "features": "videomaskfeat.targets.features:FeatureTarget",
    "combined": "videomaskfeat.targets.combined:CombinedTarget",
    "dvae": "videomaskfeat.targets.tokens:DvaeTarget",
    "codebook": "videomaskfeat.targets.tokens:CodebookTarget",
}
"""Targets by ``target.name``: "module:class", imported by :func:`target_class`."""

HUGGING_FACE = "hf:"
"""Prefix of a folder with a model of Hugging Face, as the name of a teacher."""
_SOURCES = {
    "weights": "train the tokenizer first (videomaskfeat train-tokenizer)",
    "teacher": "train the teacher first (weights.safetensors of its run folder)",
}
"""Arguments of targets that name a weights file, and how to get the file."""


def target_class(name: str) -> type[Target]:
    """The class of a target in :data:`TARGETS`, or of a plug-in ``package.module:Class``.

    Raises:
        UserError: the name is unknown, or the plug-in cannot be imported or is no :class:`Target`.
    """
    return find_class("target.name", name, TARGETS, Target)


def names_weights_file(teacher: str) -> bool:
    """Whether a teacher's name is the path of a weights file, which may be missing."""
    return not teacher.startswith(HUGGING_FACE) and (":" not in teacher or "/" in teacher or is_file(teacher))


def build_target(name: str, arguments: Mapping[str, Any], *, clip: ClipRecipe) -> Target:
    """Build a target by its name.

    Args:
        name: a key of ``TARGETS``, or ``package.module:Class``.
        arguments: arguments that differ from its defaults.
        clip: the run's clips. Its mean and std are passed as ``clip_mean`` and ``clip_std``, and this
            function as ``build``, if the target has these arguments.

    Raises:
        UserError: an unknown name, invalid arguments, or a missing file of a tokenizer or teacher.
    """
    build = target_class(name)
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
        if isinstance(path, str) and names_weights_file(path) and not is_file(path) and not is_folder(path):
            raise UserError(f"target.arguments.{key} {path}: no such file; {remedy}, or check the path")
    if "teacher_mean" in parameters:
        arguments = {**_teacher_statistics(arguments.get("teacher")), **arguments}
    try:
        return build(**{key: _as_tuple(value) for key, value in arguments.items()}, **supplied)
    except TypeError as error:
        raise UserError(f"target.arguments of {name!r}: {error}") from error


def _teacher_statistics(teacher: Any) -> dict[str, ChannelValues]:
    """Normalization of a teacher's clips, if its weights file contains it."""
    from videomaskfeat.stored_recipe import read_clip_recipe, recipe_texts

    path = str(teacher)
    if not path.endswith(".safetensors") or not is_file(path) or not recipe_texts(path):
        return {}
    clip = read_clip_recipe(path)
    return {"teacher_mean": clip.mean, "teacher_std": clip.std}


def _as_tuple(value: Any) -> Any:
    """Convert lists from YAML and JSON to tuples at all levels."""
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value
