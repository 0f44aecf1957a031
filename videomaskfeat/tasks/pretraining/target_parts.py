"""Targets from the words of a config or of a weights file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.models.limits import checked_arguments
from videomaskfeat.targets import TARGETS
from videomaskfeat.targets.target import Target
from videomaskfeat.targets.teachers import is_path
from videomaskfeat.tasks.recipe import Levels, read_clip_recipe, recipe_texts

_MAKERS = {
    "weights": "train the tokenizer first (videomaskfeat train-tokenizer)",
    "teacher": "run the training that makes the teacher first (its run folder's weights.safetensors)",
}
"""Arguments of targets that are files of weights, and how to come by them."""


def build_target(name: str, arguments: Mapping[str, Any], *, mean: Levels, std: Levels) -> Target:
    """The target by its name.

    Args:
        name: a key of ``TARGETS``.
        arguments: what differs from its own.
        mean: of the run's clips, given to a target that asks for ``clip_mean``.
        std: likewise, for ``clip_std``. One that asks for ``build`` is given this function.

    Raises:
        UserError: an unknown name, arguments that it does not take, or a tokenizer's or teacher's file that
            is not there.
    """
    if name not in TARGETS:
        known = ", ".join(TARGETS)
        raise UserError(f"target.name {name!r} is unknown{nearest(name, TARGETS)}; there are {known}")
    build = TARGETS[name]
    asked = inspect.signature(build).parameters
    offered = {
        "clip_mean": mean,
        "clip_std": std,
        "build": functools.partial(build_target, mean=mean, std=std),
    }
    supplied = {key: value for key, value in offered.items() if key in asked}
    check_arguments("target.arguments", name, build, arguments, supplied=supplied)
    for key, remedy in _MAKERS.items():
        path = arguments.get(key) if key in asked else None
        if isinstance(path, str) and is_path(path) and not is_file(path) and not is_folder(path):
            raise UserError(
                f"target.arguments.{key} {path}: no such file of weights; {remedy}, or check the path"
            )
    if "teacher_mean" in asked:
        arguments = {**_teacher_levels(arguments.get("teacher")), **arguments}
    try:
        return build(**{key: _as_tuple(value) for key, value in arguments.items()}, **supplied)
    except TypeError as error:
        raise UserError(f"target.arguments of {name!r}: {error}") from error


def _teacher_levels(teacher: Any) -> dict[str, Levels]:
    """What the clips of a teacher of this framework are normalised with, where its file says so."""
    path = str(teacher)
    if not path.endswith(".safetensors") or not is_file(path) or not recipe_texts(path):
        return {}
    clip = read_clip_recipe(path)
    return {"teacher_mean": clip.mean, "teacher_std": clip.std}


def check_arguments(
    where: str,
    name: str,
    build: Callable[..., object],
    given: Mapping[str, Any],
    *,
    supplied: Collection[str] = (),
) -> None:
    """Refuse arguments that a constructor does not take, also by type or size, and the lack of one it needs.

    Args:
        where: the config key that holds them.
        name: what the config calls the thing to be built.
        build: builds it.
        given: by the user.
        supplied: names of arguments that are not the user's to give.

    Raises:
        UserError: names the first such argument.
    """
    parameters = inspect.signature(build).parameters
    own = [key for key in parameters if key not in supplied]
    takes = f"it takes {', '.join(own)}" if own else "it takes none"
    for key in given:
        if key not in own:
            raise UserError(f"{where}: {name!r} has no argument {key!r}{nearest(key, own)}; {takes}")
    for key in own:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{where}: {name!r} needs {key!r}, and none is given; set {where}.{key}")
    try:
        checked_arguments(build, given)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def _as_tuple(value: Any) -> Any:
    """Lists, as YAML and JSON bring them, become tuples all the way down."""
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value
