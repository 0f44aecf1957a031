"""What a weights file knows besides the model: how its clips were cut and normalised, mask and target."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.masking import MASKS
from videomaskfeat.tensor_files import DamagedFile, read_metadata
from videomaskfeat.texts import parse_json
from videomaskfeat.values import Limits, conform, from_parts

T = TypeVar("T")
Levels = float | tuple[float, ...]
"""A number for every channel, or one a channel."""
METADATA_KEY = "pretrain"
"""Key of a pre-training recipe, as JSON, in the metadata of a safetensors file."""
CLASSIFY_KEY = "classify"
"""Key of a classifier's recipe, likewise."""
ENCODER_KEY = "encoder"
"""Key of an encoder's without a head: a :class:`ClassifyRecipe` that knows no classes."""
DETECT_KEY = "detect"
"""Key of a detector's of actions: a :class:`~videomaskfeat.inference.detectors.DetectRecipe`."""
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
    "area": ("whole", "centre"),
    "kind": tuple(MASKS),
}
"""Smallest and largest numbers, or the words, in a recipe that is read: values outside are damage, or need
memory that no machine has."""
_LARGEST_CLIP = 2**31  # pixels of a clip
_TORCH_SUFFIXES = (".pyth", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut from a video and normalised.

    Attributes:
        frames: frames a clip.
        stride: source frames from one frame of the clip to the next, counted at ``target_fps``.
        target_fps: frames a second at which the stride counts; None counts the source's own.
        short_video: clamp, loop or error: what a video shorter than the clip does.
        crop: height and width in pixels.
        mean: subtracted from pixels in 0..1: of every channel, or one a channel.
        std: divides them after that, likewise.
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

    def __post_init__(self) -> None:
        """Bring mean and standard deviation to plain numbers, as configs and JSON have them in lists.

        Raises:
            UserError: they are not numbers, or not of as many channels, or a deviation is not positive.
        """
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
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)


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
        clip: see :class:`ClipRecipe`.
        mask: see :class:`MaskRecipe`.
        target: a name in ``TARGETS``.
        target_arguments: what differs from that target's own arguments.
        method: a name in ``METHODS``; of another than "masked" mask and target may say nothing.
    """

    clip: ClipRecipe
    mask: MaskRecipe = MaskRecipe()
    target: str = "hog"
    target_arguments: Mapping[str, Any] = field(default_factory=dict)
    method: str = "masked"

    def to_json(self) -> str:
        """The recipe as the text that belongs under :data:`METADATA_KEY`."""
        parts = {
            "clip": dataclasses.asdict(self.clip),
            "mask": dataclasses.asdict(self.mask),
            "target": {"name": self.target, **self.target_arguments},
            "method": self.method,
        }
        return json.dumps(parts)

    @classmethod
    def from_json(cls, text: str) -> PretrainRecipe:
        """The recipe in the words of :meth:`to_json`.

        Raises:
            ValueError: no JSON, a part that is missing, or a key that no part has.
        """
        with _as_recipe("pre-training"):
            parts = conform(parse_json(text, "metadata"), Mapping[str, Any], "it")
            clip = _clip_of(parts)
            mask = from_parts(MaskRecipe, parts.get("mask", {}), name="mask", limits=LIMITS)
            target = conform(parts.get("target"), Mapping[str, Any], "target")
            name = conform(target.pop("name", None), str, "target.name")
            method = conform(parts.get("method", "masked"), str, "method")
        return cls(clip, mask, name, target, method)


@dataclass(frozen=True)
class ClassifyRecipe:
    """How a classifier sees videos, in training and, unless told otherwise, in testing.

    Attributes:
        clip: see :class:`ClipRecipe`.
        sampling: "clip" (frames at a stride) or "segments" (one frame of each of as many equal parts of the
            video as the clip has frames; ``clip.stride`` then says nothing).
        views: clips a video in testing, spread evenly over time; 1 with "segments".
        crops: crops a clip in testing, along the longer side: 1 (centre) or 3.
        short_side: pixels that the short side is resized to before a crop is cut in testing.
        average: what is averaged over a video's views: "softmax" or "logits".
        class_names: a name a class, by label; empty where none are known.
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
        """The recipe with another number of views or crops in testing; None keeps its own.

        Going over to 3 crops brings the short side down to the crop's own, as all published figures of 3
        crops were measured: together the crops then cover the frame. Nothing else moves it.
        """
        short_side = self.clip.crop if crops == 3 and self.crops != 3 else self.short_side
        return dataclasses.replace(
            self,
            views=self.views if views is None else views,
            crops=self.crops if crops is None else crops,
            short_side=short_side,
        )

    def to_json(self) -> str:
        """The recipe as the text that belongs under :data:`CLASSIFY_KEY`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClassifyRecipe:
        """The recipe in the words of :meth:`to_json`.

        Raises:
            ValueError: no JSON, a part that is missing, or a key that no part has.
        """
        with _as_recipe("classifier's"):
            return from_parts(cls, parse_json(text, "metadata"), limits=LIMITS)


def as_levels(value: Any, name: str) -> Levels:
    """A number for every channel, or a tuple of one a channel.

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


def normalise(clips: Tensor, *, mean: Levels | Sequence[float], std: Levels | Sequence[float]) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], (pixel / 255 - mean) / std.

    Mean and standard deviation are of every channel, or one a channel.
    """
    pixels = clips.permute(0, 4, 1, 2, 3).to(torch.float32).div(255.0)
    return pixels.sub(_by_channel(mean, pixels)).div(_by_channel(std, pixels))


def denormalise(clips: Tensor, *, mean: Levels | Sequence[float], std: Levels | Sequence[float]) -> Tensor:
    """The way back from :func:`normalise`: float [B, C, T, H, W] -> uint8 [B, T, H, W, C], cut to 0..255."""
    pixels = clips.float().mul(_by_channel(std, clips)).add(_by_channel(mean, clips)).mul(255.0)
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _by_channel(levels: Levels | Sequence[float], pixels: Tensor) -> float | Tensor:
    """A number, or numbers in the shape that meets pixels [B, C, T, H, W]."""
    if isinstance(levels, int | float):
        return levels
    return torch.tensor(levels, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1, 1)


def read_recipe(path: str | os.PathLike[str]) -> PretrainRecipe:
    """The recipe in the metadata of a pre-training run's safetensors file.

    Raises:
        UserError: the file is missing, is no safetensors file, or holds no recipe.
    """
    metadata = _metadata(path)
    if METADATA_KEY not in metadata:
        raise UserError(
            f"{os.fspath(path)}: holds no pre-training recipe (metadata key {METADATA_KEY!r}); "
            "give the weights.safetensors of a pre-training run"
        )
    return _read(PretrainRecipe.from_json, metadata[METADATA_KEY], path, METADATA_KEY)


def read_classify_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """The recipe in the metadata of a classifier's safetensors file.

    Raises:
        UserError: the file is missing, is no safetensors file, or is no classifier's.
    """
    metadata = _metadata(path)
    if CLASSIFY_KEY not in metadata:
        kinds = {
            METADATA_KEY: "weights of a pre-training run",
            ENCODER_KEY: "weights of an encoder without a head",
            DETECT_KEY: "weights of a detector of actions",
        }
        found = [kind for key, kind in kinds.items() if key in metadata]
        what = found[0] if found else "weights without a recipe"
        raise UserError(
            f"{os.fspath(path)}: {what}, and a classifier's are needed (metadata key {CLASSIFY_KEY!r}); give "
            "the weights.safetensors of a fine-tuning run, or what `videomaskfeat import-slowfast` wrote"
        )
    return _read(ClassifyRecipe.from_json, metadata[CLASSIFY_KEY], path, CLASSIFY_KEY)


def read_clip_recipe(path: str | os.PathLike[str]) -> ClipRecipe:
    """How the model in a safetensors file sees clips, whether it was pre-trained or classifies.

    Raises:
        UserError: as :func:`read_testing_recipe`.
    """
    return read_testing_recipe(path).clip


def read_testing_recipe(path: str | os.PathLike[str]) -> ClassifyRecipe:
    """How the model in a safetensors file is shown videos: as its classifier was tested, or as held out.

    Weights of a pre-training run see one centre crop of the clip in the middle.

    Raises:
        UserError: the file is missing, is no safetensors file, or holds no recipe of any kind.
    """
    metadata = _metadata(path)
    for key in (CLASSIFY_KEY, ENCODER_KEY):
        if key in metadata:
            return _read(ClassifyRecipe.from_json, metadata[key], path, key)
    if METADATA_KEY in metadata:
        clip = read_recipe(path).clip
        return ClassifyRecipe(clip, views=1, crops=1, short_side=clip.crop)
    if DETECT_KEY in metadata:
        clip = _read(clip_of_parts, metadata[DETECT_KEY], path, DETECT_KEY)
        return ClassifyRecipe(clip, views=1, crops=1, short_side=clip.crop)
    raise UserError(
        f"{os.fspath(path)}: weights without a recipe, so nothing says which clips they want; give the "
        "weights.safetensors of a run, or what `videomaskfeat import-slowfast` wrote"
    )


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


def clip_of_parts(text: str) -> ClipRecipe:
    """The clip in a recipe of any kind, as JSON.

    Raises:
        ValueError: no JSON, or no clip in it.
    """
    with _as_recipe("clip's"):
        return _clip_of(conform(parse_json(text, "metadata"), Mapping[str, Any], "it"))


def _clip_of(parts: Mapping[str, Any]) -> ClipRecipe:
    if "clip" not in parts:
        raise UserError("clip is missing")
    return from_parts(ClipRecipe, parts["clip"], name="clip", limits=LIMITS)


@contextmanager
def _as_recipe(kind: str) -> Iterator[None]:
    """Name the kind of a recipe that cannot be read."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"no {kind} recipe: {error}") from error


def recipe_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """The recipe in a safetensors file as it stands there, by key, for a copy; empty where there is none.

    Raises:
        UserError: the file is missing or is no safetensors file.
    """
    metadata = _metadata(path)
    known = (METADATA_KEY, CLASSIFY_KEY, ENCODER_KEY, DETECT_KEY)
    return {key: metadata[key] for key in known if key in metadata}


def _metadata(path: str | os.PathLike[str]) -> Mapping[str, str]:
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
        raise UserError(f"{name}: no such weights file; give the weights.safetensors of a run")
    try:
        return read_metadata(name)
    except DamagedFile as error:
        if error.reason == "unknown format":
            raise
        raise UserError(
            f"{name}: not a safetensors file ({error.reason}); give the one a run has written"
        ) from error


def _read(parse: Callable[[str], T], text: str, path: str | os.PathLike[str], key: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"{os.fspath(path)}: its metadata key {key!r} holds {error}") from error
