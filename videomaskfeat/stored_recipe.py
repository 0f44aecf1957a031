"""Recipes of trained classifiers, encoders and detectors, and the recipes in weights files of all kinds."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from videomaskfeat.config_keys import SPELLINGS
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.recipe import (
    AREAS,
    LIMITS,
    METADATA_KEY,
    ChannelValues,
    ClipRecipe,
    PretrainRecipe,
    clip_of,
    parse_recipe,
)
from videomaskfeat.tensor_files import DamagedFile, read_metadata
from videomaskfeat.values import build_dataclass

T = TypeVar("T")
CLASSIFY_KEY = "classify"
ENCODER_KEY = "encoder"
DETECT_KEY = "detect"
KINDS = {
    METADATA_KEY: "weights of a pre-training run",
    CLASSIFY_KEY: "weights of a classifier",
    ENCODER_KEY: "weights of an encoder without a head",
    DETECT_KEY: "weights of a detector of actions",
}
"""Kinds of weights by the metadata key of their recipe, which is JSON, in a safetensors file."""
_TORCH_SUFFIXES = (".pyth", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ClassifyRecipe:
    """Recipe of a classifier: clips in training, and default views at test time.

    Attributes:
        clip: how clips are cut.
        sampling: "clip" (frames at a stride) or "segments" (one frame of each of ``clip.frames`` equal
            segments of the video; ``clip.stride`` has no effect).
        views: temporal views per video at test time, evenly spaced; 1 with "segments".
        crops: crops per view at test time, along the longer side: 1 (center) or 3.
        short_side: length in pixels of the resized short side at test time.
        average: outputs that are averaged over the views of a video: "softmax" or "logits"; "sigmoid" for a
            multi-label classifier, whose classes are independent.
        class_names: class names, indexed by label; empty if unknown.
    """

    key: ClassVar[str] = CLASSIFY_KEY
    clip: ClipRecipe
    sampling: str = "clip"
    views: int = 5
    crops: int = 1
    short_side: int = 256
    average: str = "softmax"
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, clip: Any, evaluate: Any, class_names: tuple[str, ...] = ()) -> ClassifyRecipe:
        """Build from the sections ``clip`` and ``evaluate`` of a fine-tuning config."""
        return cls(
            clip=ClipRecipe.of(clip),
            sampling=clip.sampling,
            views=evaluate.views,
            crops=evaluate.crops,
            short_side=evaluate.short_side,
            average=evaluate.average,
            class_names=class_names,
        )

    @property
    def is_multi_label(self) -> bool:
        """Whether a video has any number of classes."""
        return self.average == "sigmoid"

    def with_views(self, *, views: int | None = None, crops: int | None = None) -> ClassifyRecipe:
        """The recipe with other numbers of views and crops at test time; None: no change.

        Changing to 3 crops sets the short side to the crop, as in all published results with 3 crops, so that
        the crops cover the frame.
        """
        short_side = self.clip.short_side if crops == 3 and self.crops != 3 else self.short_side
        return dataclasses.replace(
            self,
            views=self.views if views is None else views,
            crops=self.crops if crops is None else crops,
            short_side=short_side,
        )

    def to_json(self) -> str:
        """JSON for the key ``CLASSIFY_KEY``, or ``ENCODER_KEY`` for an encoder without a head."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClassifyRecipe:
        """The inverse of :meth:`to_json`; raises as :meth:`PretrainRecipe.from_json`."""
        return parse_recipe(text, "classifier's", lambda fields: build_dataclass(cls, fields, limits=LIMITS))


class EncoderRecipe(ClassifyRecipe):
    """Recipe of an encoder without classes."""

    key: ClassVar[str] = ENCODER_KEY


@dataclass(frozen=True)
class DetectRecipe:
    """Recipe of a detector of actions.

    Attributes:
        clip: how clips are cut; the key frame is in the middle.
        actions: names of actions by id; actions without a name are omitted. Column i of the logits is the
            action with id i + 1.
        classes: number of actions, L; ids count from 1 to this.
        poses: ids of mutually exclusive actions: their scores are a softmax, the others are sigmoids.
        short_side: length in pixels of the resized short side at test time.
        area: "whole" (the whole frame) or "center" (a square center crop to which boxes are clipped).
        score_threshold: minimum score of a detected box.

    Raises:
        UserError: the area is unknown, an id is not in 1..classes, or the threshold is not in 0..1.
    """

    key: ClassVar[str] = DETECT_KEY
    clip: ClipRecipe
    actions: Mapping[int, str]
    classes: int
    poses: tuple[int, ...] = ()
    short_side: int = 224
    area: str = "whole"
    score_threshold: float = 0.8

    def __post_init__(self) -> None:
        check_name("area", self.area, AREAS)
        if not 0 <= self.score_threshold <= 1:
            raise UserError(
                f"score_threshold={self.score_threshold:g} is not in 0..1; it is the minimum score of a box"
            )
        wrong = [number for number in (*self.actions, *self.poses) if not 1 <= number <= self.classes]
        if wrong:
            raise UserError(f"action {wrong[0]} is out of range: action ids are 1 to {self.classes}")

    @property
    def pose_mask(self) -> Tensor:
        """bool [L], True for the columns of ``poses``."""
        mask = torch.zeros(self.classes, dtype=torch.bool)
        mask[[number - 1 for number in self.poses]] = True
        return mask

    def name_of(self, column: int) -> str:
        """Name of the action in a column."""
        return self.actions.get(column + 1, f"action {column + 1}")

    def to_json(self) -> str:
        """JSON for the key ``DETECT_KEY``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectRecipe:
        """The inverse of :meth:`to_json`; raises as :meth:`PretrainRecipe.from_json`."""

        def parse(fields: Any) -> DetectRecipe:
            if isinstance(fields, dict) and isinstance(fields.get("area"), str):
                fields["area"] = SPELLINGS.get(fields["area"], fields["area"])
            return build_dataclass(cls, fields, limits=LIMITS)

        return parse_recipe(text, "detector's", parse)


def read_recipe(path: str | os.PathLike[str]) -> PretrainRecipe:
    """Read the recipe in the safetensors file of a pre-training run.

    Raises:
        UserError: the file is missing, is not a safetensors file, or has no such recipe.
    """
    texts = recipe_texts(path)
    _check_kind(path, texts, METADATA_KEY, "give the weights.safetensors of a pre-training run")
    return _read(PretrainRecipe.from_json, texts, METADATA_KEY, path)


def read_classify_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """Read the recipe in the safetensors file of a classifier; raises as :func:`read_recipe`."""
    texts = recipe_texts(path)
    remedy = (
        "give the weights.safetensors of a fine-tuning run, or a file written by `videomaskfeat "
        "import-slowfast` or `import-weights`"
    )
    _check_kind(path, texts, CLASSIFY_KEY, remedy)
    return _read(ClassifyRecipe.from_json, texts, CLASSIFY_KEY, path)


def read_detect_recipe(path: str | os.PathLike[str]) -> DetectRecipe:
    """Read the recipe in the safetensors file of a detector; raises as :func:`read_recipe`."""
    texts = recipe_texts(path)
    _check_kind(path, texts, DETECT_KEY, "give the best.safetensors of a run of detect-train")
    return _read(DetectRecipe.from_json, texts, DETECT_KEY, path)


def _check_kind(path: str | os.PathLike[str], texts: Mapping[str, str], key: str, remedy: str) -> None:
    if key not in texts:
        kind = next((KINDS[other] for other in texts), "weights without a recipe")
        raise UserError(
            f"{os.fspath(path)} contains {kind}, not {KINDS[key]} (metadata key {key!r}); {remedy}"
        )


def read_clip_recipe(path: str | os.PathLike[str]) -> ClipRecipe:
    """Read the clip recipe in a safetensors file of any kind; raises as :func:`read_recipe`."""
    return read_testing_recipe(path).clip


def read_testing_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """Read the views at test time in a safetensors file of any kind; raises as :func:`read_recipe`.

    For weights of a pre-training run or of a detector: one center crop of the middle clip.
    """
    texts = recipe_texts(path)
    for key in (CLASSIFY_KEY, ENCODER_KEY):
        if key in texts:
            return _read(ClassifyRecipe.from_json, texts, key, path)
    if METADATA_KEY in texts:
        clip = _read(PretrainRecipe.from_json, texts, METADATA_KEY, path).clip
    elif DETECT_KEY in texts:
        clip = _read(lambda text: parse_recipe(text, "clip's", clip_of), texts, DETECT_KEY, path)
    else:
        raise UserError(
            f"{os.fspath(path)} contains weights without a recipe, so the clips of their model are unknown; "
            "give the weights.safetensors of a run, or a file written by `videomaskfeat import-slowfast` or "
            "`import-weights`"
        )
    return ClassifyRecipe(clip, views=1, crops=1, short_side=clip.short_side)


def compare_levels(
    path: str, own: ClipRecipe, known: tuple[ChannelValues, ChannelValues] | None = None
) -> str:
    """A warning if the normalization of some weights is unknown or differs from ``own``; otherwise empty.

    ``known`` is the mean and standard deviation of weights that were converted from another project.
    """
    if known is not None:
        return _compare(known, own)
    if not path.endswith(".safetensors"):
        return (
            f"{path} does not contain the order and normalization of color channels; red, green, blue, "
            f"clip.mean {own.mean} and clip.std {own.std} are used. `videomaskfeat import-slowfast` reads "
            "them from the YAML"
        )
    if not recipe_texts(path):
        return ""
    theirs = read_clip_recipe(path)
    return _compare((theirs.mean, theirs.std), own)


def _compare(theirs: tuple[ChannelValues, ChannelValues], own: ClipRecipe) -> str:
    if theirs == (own.mean, own.std):
        return ""
    return (
        f"these weights were trained with mean {theirs[0]} and std {theirs[1]}, but clip.mean is "
        f"{own.mean} and clip.std {own.std}: set them to the same values, unless this is intended"
    )


def recipe_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the recipes in a safetensors file as JSON, by key of :data:`KINDS`.

    Args:
        path: the file, or a folder with ``model.safetensors``.

    Raises:
        UserError: the file is missing or is not a safetensors file.
    """
    name = os.fspath(path)
    if name.endswith(_TORCH_SUFFIXES):
        raise UserError(
            f"{name} is a PyTorch checkpoint, not a safetensors file with a recipe; give the "
            "weights.safetensors of a run, or convert a PySlowFast checkpoint by "
            "`videomaskfeat import-slowfast --config X.yaml --checkpoint X.pyth OUT`, one of another project "
            "by `videomaskfeat import-weights FILE OUT`"
        )
    if is_folder(name) and is_file(os.path.join(name, "model.safetensors")):
        name = os.path.join(name, "model.safetensors")  # of save_pretrained
    if is_folder(name):
        raise UserError(f"{name} is a folder; give the weights file in it, such as weights.safetensors")
    if not os.path.exists(name) and not is_file(name):
        raise UserError(f"{name}: no such file; give the weights.safetensors of a run")
    try:
        metadata = read_metadata(name)
    except DamagedFile as error:
        if error.reason == "unknown format":
            raise
        raise UserError(
            f"{name} is not a safetensors file ({error.reason}); give the weights.safetensors of a run"
        ) from error
    return {key: metadata[key] for key in KINDS if key in metadata}


def _read(parse: Callable[[str], T], texts: Mapping[str, str], key: str, path: str | os.PathLike[str]) -> T:
    try:
        return parse(texts[key])
    except ValueError as error:
        raise UserError(f"{os.fspath(path)}: metadata key {key!r}: {error}") from error
