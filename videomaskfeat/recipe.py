"""What a weights file knows of its training: clips, mask, target, views, classes, actions; and pixels."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.masking import MASKS, Mask, MaskFunction
from videomaskfeat.tensor_files import DamagedFile, read_metadata
from videomaskfeat.texts import parse_json
from videomaskfeat.values import Limits, build_dataclass, conform

T = TypeVar("T")
Levels = float | tuple[float, ...]
"""One number for all channels, or one per channel."""
METADATA_KEY = "pretrain"
CLASSIFY_KEY = "classify"
ENCODER_KEY = "encoder"
DETECT_KEY = "detect"
KINDS = {
    METADATA_KEY: "weights of a pre-training run",
    CLASSIFY_KEY: "weights of a classifier",
    ENCODER_KEY: "weights of an encoder without a head",
    DETECT_KEY: "weights of a detector of actions",
}
"""Key of a recipe, as JSON, in the metadata of a safetensors file -> what the file holds."""
AREAS = ("whole", "centre")
LIMITS: Limits = {
    "frames": (1, 10_000),
    "stride": (1e-6, 1e6),
    "target_fps": (1e-3, 1e4),
    "crop": (1, 8192),
    "mean": (-1e3, 1e3),
    "std": (1e-6, 1e3),
    "ratio": (0, 1),
    "cell": (1, 10_000),
    "views": (1, 10_000),
    "crops": (1, 3),
    "short_side": (1, 8192),
    "classes": (1, 1e7),
    "poses": (1, 1e7),
    "score_threshold": (0, 1),
    "short_video": ("clamp", "loop", "error"),
    "sampling": ("clip", "segments"),
    "average": ("softmax", "logits"),
    "area": AREAS,
    "kind": tuple(MASKS),
}
"""Smallest and largest numbers, or the words, of a recipe in a file; other values are damage, or need memory
that no machine has."""
_LARGEST_CLIP = 2**31  # pixels of a clip
_TORCH_SUFFIXES = (".pyth", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut from a video and normalized.

    Attributes:
        frames: frames per clip.
        stride: source frames from one frame of the clip to the next, counted at ``target_fps``.
        crop: height and width in pixels.
        target_fps: frames per second at which the stride counts; None: the source's own.
        short_video: clamp, loop or error: what happens if a video is shorter than the clip.
        mean: subtracted from pixels in 0..1; see :data:`Levels`.
        std: divides them after that.

    Raises:
        UserError: mean and std are not numbers, or not of as many channels; a std is not positive; or a clip
            has too many pixels.
    """

    frames: int
    stride: float
    crop: int
    target_fps: float | None = 30.0
    short_video: str = "clamp"
    mean: Levels = 0.45
    std: Levels = 0.225

    @classmethod
    def of(cls, section: Any) -> ClipRecipe:
        """The recipe in an object with some of its attributes, such as the section ``clip`` of a config."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(section, field.name)]
        return cls(**{name: getattr(section, name) for name in names})

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return (self.frames, self.crop, self.crop)

    def frame_sampler(self, choose: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """What chooses the frames of a clip: (frames of the video, its fps, rng=generator) -> indices [T].

        Args:
            choose: such as :func:`~videomaskfeat.data.sampling.clip_indices_random`.

        Raises:
            UserError: an unknown policy for short videos.
        """
        check_name("clip.short_video", self.short_video, LIMITS["short_video"])
        return functools.partial(
            choose,
            frames=self.frames,
            stride=self.stride,
            target_fps=self.target_fps,
            short=self.short_video,
        )

    def __post_init__(self) -> None:
        mean, std = as_levels(self.mean, "mean"), as_levels(self.std, "std")
        if min(std if isinstance(std, tuple) else (std,)) <= 0:
            raise UserError(f"std {self.std} must be above 0: pixels are divided by it")
        if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
            raise UserError(f"mean {mean} and std {std} must be of as many channels")
        if isinstance(self.frames, int) and isinstance(self.crop, int):
            pixels = self.frames * self.crop**2
            if pixels > _LARGEST_CLIP:
                raise UserError(
                    f"a clip of {self.frames} frames of {self.crop}x{self.crop} has {pixels} pixels; at most "
                    f"{_LARGEST_CLIP} can be used: take a smaller crop, or fewer frames"
                )
        object.__setattr__(self, "mean", mean)  # plain numbers, of lists in configs and JSON too
        object.__setattr__(self, "std", std)

    def normalize(self, clips: Tensor) -> Tensor:
        """See :func:`normalize`."""
        return normalize(clips, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class MaskRecipe:
    """What is hidden.

    Attributes:
        kind: a name in ``MASKS``.
        ratio: share of the mask's cells to hide.
        cell: size of a mask cell: frames, rows and columns of pixels.
    """

    kind: str = "cube"
    ratio: float = 0.4
    cell: tuple[int, int, int] = (2, 32, 32)


@dataclass(frozen=True)
class PretrainRecipe:
    """Clip, mask and target of a pre-training run.

    Attributes:
        clip: how clips are cut.
        mask: what is hidden.
        target: a name in ``TARGETS``.
        target_arguments: arguments of the target that differ from its defaults.
        method: a name in ``METHODS``; only "masked" needs both mask and target.
    """

    clip: ClipRecipe
    mask: MaskRecipe = MaskRecipe()
    target: str = "hog"
    target_arguments: Mapping[str, Any] = field(default_factory=dict)
    method: str = "masked"

    @classmethod
    def of(cls, config: Any) -> PretrainRecipe:
        """The recipe in the sections clip, mask, target and method of a pre-training config."""
        mask = config.mask
        return cls(
            clip=ClipRecipe.of(config.clip),
            mask=MaskRecipe(
                kind=mask.kind, ratio=mask.ratio, cell=(mask.cell[0], mask.cell[1], mask.cell[2])
            ),
            target=config.target.name,
            target_arguments=dict(config.target.arguments),
            method=config.method.name,
        )

    @property
    def mask_grid(self) -> TokenGrid:
        """The grid on which masks are drawn: the clip cut into mask cells.

        Raises:
            UserError: the cells do not tile the clip.
        """
        cell, size = self.mask.cell, self.clip.size
        if any(step < 1 or length % step for length, step in zip(size, cell, strict=True)):
            raise UserError(
                f"mask.cell {list(cell)} does not tile a clip of {size[0]} frames and {size[1]}x{size[2]} "
                "pixels: each of its sizes must divide the clip's (clip.frames, clip.crop, clip.crop)"
            )
        return TokenGrid(*(length // step for length, step in zip(size, cell, strict=True)))

    @property
    def mask_policy(self) -> MaskFunction:
        """The function that draws masks: (grid, ratio, rng) -> bool [t', h', w'], True = hidden.

        Raises:
            UserError: an unknown kind.
        """
        check_name("mask.kind", self.mask.kind, MASKS)
        return MASKS[self.mask.kind]

    def draw_mask(self, rng: np.random.Generator) -> Mask:
        """One mask, bool [t', h', w'], True = hidden.

        Raises:
            UserError: an unknown kind, cells that do not tile the clip, or a ratio that leaves nothing
                visible or nothing hidden.
        """
        policy, grid = self.mask_policy, self.mask_grid
        try:
            return policy(grid, self.mask.ratio, rng)
        except UserError as error:
            raise UserError(
                f"mask.ratio {self.mask.ratio:g} with mask.cell {list(self.mask.cell)}: {error}"
            ) from error

    def to_json(self) -> str:
        """The text for the key ``METADATA_KEY``."""
        target = {"name": self.target, **self.target_arguments}
        clip, mask = dataclasses.asdict(self.clip), dataclasses.asdict(self.mask)
        return json.dumps({"clip": clip, "mask": mask, "target": target, "method": self.method})

    @classmethod
    def from_json(cls, text: str) -> PretrainRecipe:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: not JSON, or a value that is missing, unknown or wrong.
        """

        def parse(parts: Any) -> PretrainRecipe:
            clip = _clip_of(parts)
            mask = build_dataclass(MaskRecipe, parts.get("mask", {}), name="mask", limits=LIMITS)
            target = conform(parts.get("target"), Mapping[str, Any], "target")
            name = conform(target.pop("name", None), str, "target.name")
            return cls(clip, mask, name, target, conform(parts.get("method", "masked"), str, "method"))

        return _parse(text, "pre-training", parse)


@dataclass(frozen=True)
class ClassifyRecipe:
    """How a classifier sees videos, in training and by default at test time.

    Attributes:
        clip: how clips are cut.
        sampling: "clip" (frames at a stride) or "segments" (one frame of each of as many equal parts of the
            video as the clip has frames; ``clip.stride`` has no effect).
        views: temporal views per video at test time, evenly spaced; 1 with "segments".
        crops: crops per view at test time, along the longer side: 1 (center) or 3.
        short_side: pixels to which the short side is resized before a crop is cut at test time.
        average: what is averaged over a video's views: "softmax" or "logits".
        class_names: class names, indexed by label; empty if unknown.
    """

    clip: ClipRecipe
    sampling: str = "clip"
    views: int = 5
    crops: int = 1
    short_side: int = 256
    average: str = "softmax"
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, clip: Any, evaluate: Any, class_names: tuple[str, ...] = ()) -> ClassifyRecipe:
        """The recipe in the sections ``clip`` and ``evaluate`` of a fine-tuning config."""
        return cls(
            clip=ClipRecipe.of(clip),
            sampling=clip.sampling,
            views=evaluate.views,
            crops=evaluate.crops,
            short_side=evaluate.short_side,
            average=evaluate.average,
            class_names=class_names,
        )

    def with_views(self, *, views: int | None = None, crops: int | None = None) -> ClassifyRecipe:
        """The recipe with another number of views or crops at test time; None keeps its own.

        Changing to 3 crops sets the short side to the crop, as in all published figures of 3 crops: together
        the crops then cover the frame.
        """
        short_side = self.clip.crop if crops == 3 and self.crops != 3 else self.short_side
        return dataclasses.replace(
            self,
            views=self.views if views is None else views,
            crops=self.crops if crops is None else crops,
            short_side=short_side,
        )

    def to_json(self) -> str:
        """The text for the key ``CLASSIFY_KEY``, or ``ENCODER_KEY`` for an encoder without a head."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClassifyRecipe:
        """The inverse of :meth:`to_json`; raises as :meth:`PretrainRecipe.from_json`."""
        return _parse(text, "classifier's", lambda parts: build_dataclass(cls, parts, limits=LIMITS))


@dataclass(frozen=True)
class DetectRecipe:
    """How a detector sees key frames, and which actions it knows.

    Attributes:
        clip: how clips are cut; the key frame is in the middle.
        actions: id to name of the actions with a name. The logit in column i is of the action with the id
            i + 1.
        classes: number of actions, L; ids count from 1 to this.
        poses: ids of which a person has exactly one: their scores are a softmax, those of the others
            sigmoids. Empty: all are sigmoids.
        short_side: pixels to which a frame's short side is resized at test time.
        area: "whole" (the frame in its aspect) or "centre" (a square crop, boxes cut to it).
        score_threshold: minimum score of a detected box.

    Raises:
        UserError: an unknown area, an id outside 1..classes, or a threshold outside 0..1.
    """

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
                f"score_threshold={self.score_threshold:g} is not in 0..1; it is a detected box's least score"
            )
        wrong = [number for number in (*self.actions, *self.poses) if not 1 <= number <= self.classes]
        if wrong:
            raise UserError(
                f"the action {wrong[0]} is none of the {self.classes} that the model knows: ids count from 1 "
                f"to {self.classes}"
            )

    @property
    def pose_mask(self) -> Tensor:
        """bool [L], which columns exclude each other."""
        mask = torch.zeros(self.classes, dtype=torch.bool)
        mask[[number - 1 for number in self.poses]] = True
        return mask

    def name_of(self, column: int) -> str:
        """Name of the action of a column."""
        return self.actions.get(column + 1, f"action {column + 1}")

    def to_json(self) -> str:
        """The text for the key ``DETECT_KEY``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DetectRecipe:
        """The inverse of :meth:`to_json`; raises as :meth:`PretrainRecipe.from_json`."""
        return _parse(text, "detector's", lambda parts: build_dataclass(cls, parts, limits=LIMITS))


def as_levels(value: Any, name: str) -> Levels:
    """A number, or a list of numbers as a tuple.

    Raises:
        UserError: neither.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    values = value if several else (value,)
    if not values or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
        raise UserError(
            f"{name} {value!r} is neither a number for every channel nor a list of one a channel, "
            "such as [0.485, 0.456, 0.406]"
        )
    return tuple(map(float, values)) if several else float(value)


def normalize(clips: Tensor, *, mean: Levels | Sequence[float], std: Levels | Sequence[float]) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], (pixel / 255 - mean) / std."""
    pixels = clips.permute(0, 4, 1, 2, 3).to(torch.float32).div(255.0)
    return pixels.sub(_by_channel(mean, pixels)).div(_by_channel(std, pixels))


def denormalize(clips: Tensor, *, mean: Levels | Sequence[float], std: Levels | Sequence[float]) -> Tensor:
    """The inverse of :func:`normalize`: float [B, C, T, H, W] -> uint8 [B, T, H, W, C], clamped to 0..255."""
    pixels = clips.float().mul(_by_channel(std, clips)).add(_by_channel(mean, clips)).mul(255.0)
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _by_channel(levels: Levels | Sequence[float], pixels: Tensor) -> float | Tensor:
    if isinstance(levels, int | float):
        return levels
    return torch.tensor(levels, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1, 1)


def read_recipe(path: str | os.PathLike[str]) -> PretrainRecipe:
    """The recipe of a pre-training run's safetensors file.

    Raises:
        UserError: the file is missing, is not a safetensors file, or has no such recipe.
    """
    texts = recipe_texts(path)
    if METADATA_KEY not in texts:
        raise UserError(
            f"{os.fspath(path)}: holds no pre-training recipe (metadata key {METADATA_KEY!r}); "
            "give the weights.safetensors of a pre-training run"
        )
    return _read(PretrainRecipe.from_json, texts, METADATA_KEY, path)


def read_classify_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """The recipe of a classifier's safetensors file; raises as :func:`read_recipe`."""
    texts = recipe_texts(path)
    if CLASSIFY_KEY not in texts:
        what = next((KINDS[key] for key in KINDS if key in texts), "weights without a recipe")
        raise UserError(
            f"{os.fspath(path)}: {what}, and a classifier's are needed (metadata key {CLASSIFY_KEY!r}); give "
            "the weights.safetensors of a fine-tuning run, or what `videomaskfeat import-slowfast` wrote"
        )
    return _read(ClassifyRecipe.from_json, texts, CLASSIFY_KEY, path)


def read_detect_recipe(path: str | os.PathLike[str]) -> DetectRecipe:
    """The recipe of a detector's safetensors file; raises as :func:`read_recipe`."""
    texts = recipe_texts(path)
    if DETECT_KEY not in texts:
        what = f"weights of another kind ({', '.join(texts)})" if texts else "weights without a recipe"
        raise UserError(
            f"{os.fspath(path)}: {what}, and a detector's are needed (metadata key {DETECT_KEY!r}); give the "
            "best.safetensors of a run of detect-train"
        )
    return _read(DetectRecipe.from_json, texts, DETECT_KEY, path)


def read_clip_recipe(path: str | os.PathLike[str]) -> ClipRecipe:
    """How clips are cut for the model in a safetensors file of any kind; raises as :func:`read_recipe`."""
    return read_testing_recipe(path).clip


def read_testing_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """How videos are cut for the model in a safetensors file of any kind; raises as :func:`read_recipe`.

    For weights of a pre-training run or of a detector: one center crop of the middle clip.
    """
    texts = recipe_texts(path)
    for key in (CLASSIFY_KEY, ENCODER_KEY):
        if key in texts:
            return _read(ClassifyRecipe.from_json, texts, key, path)
    if METADATA_KEY in texts:
        clip = _read(PretrainRecipe.from_json, texts, METADATA_KEY, path).clip
    elif DETECT_KEY in texts:
        clip = _read(lambda text: _parse(text, "clip's", _clip_of), texts, DETECT_KEY, path)
    else:
        raise UserError(
            f"{os.fspath(path)}: weights without a recipe, so nothing says which clips they want; give the "
            "weights.safetensors of a run, or what `videomaskfeat import-slowfast` wrote"
        )
    return ClassifyRecipe(clip, views=1, crops=1, short_side=clip.crop)


def compare_levels(path: str, own: ClipRecipe) -> str:
    """A sentence if clips were normalized otherwise for some weights, or it is unknown how; else empty.

    Args:
        path: of the weights.
        own: how clips are normalized now.
    """
    if not path.endswith(".safetensors"):
        return (
            f"{path} does not say in which order its model takes colours, nor how they were normalised; red, "
            f"green, blue, clip.mean {own.mean} and clip.std {own.std} are taken here. "
            "`videomaskfeat import-slowfast` reads a YAML along, which knows"
        )
    if not recipe_texts(path):
        return ""
    theirs = read_clip_recipe(path)
    if (theirs.mean, theirs.std) == (own.mean, own.std):
        return ""
    return (
        f"these weights saw pixels less {theirs.mean}, by {theirs.std}; here clip.mean is {own.mean}, "
        f"clip.std {own.std}: set them alike, unless that is meant"
    )


def recipe_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The recipes in a safetensors file as JSON, by key of :data:`KINDS`, for a copy.

    Raises:
        UserError: the file is missing or is not a safetensors file.
    """
    name = os.fspath(path)
    if name.endswith(_TORCH_SUFFIXES):
        raise UserError(
            f"{name}: a PyTorch checkpoint, and a safetensors file is needed, which says how clips are cut; "
            "of our own run give its weights.safetensors, and PySlowFast's are turned into one by "
            "`videomaskfeat import-slowfast --config X.yaml --checkpoint X.pyth OUT`"
        )
    if is_folder(name):
        raise UserError(f"{name}: is a folder; give the weights file in it, such as weights.safetensors")
    if not os.path.exists(name) and not is_file(name):
        raise UserError(f"{name}: no such file; give the weights.safetensors of a run")
    try:
        metadata = read_metadata(name)
    except DamagedFile as error:
        if error.reason == "unknown format":
            raise
        raise UserError(
            f"{name}: not a safetensors file ({error.reason}); give the one a run has written"
        ) from error
    return {key: metadata[key] for key in KINDS if key in metadata}


def _clip_of(parts: Any) -> ClipRecipe:
    if "clip" not in conform(parts, Mapping[str, Any], "it"):
        raise UserError("clip is missing")
    return build_dataclass(ClipRecipe, parts["clip"], name="clip", limits=LIMITS)


def _parse(text: str, kind: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(parse_json(text, "metadata"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no {kind} recipe: {error}") from error


def _read(parse: Callable[[str], T], texts: Mapping[str, str], key: str, path: str | os.PathLike[str]) -> T:
    try:
        return parse(texts[key])
    except ValueError as error:
        raise UserError(f"{os.fspath(path)}: its metadata key {key!r} holds {error}") from error
