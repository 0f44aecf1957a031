"""Recipes in weights files (clips, mask, target, views, classes, actions), and normalization of pixels."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.config import SPELLINGS, current_arguments
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.io import is_file, is_folder
from videomaskfeat.masking import MASKS, Mask, MaskFunction, build_policy
from videomaskfeat.plugins import is_plugin
from videomaskfeat.tensor_files import DamagedFile, read_metadata
from videomaskfeat.texts import parse_json
from videomaskfeat.values import Limits, build_dataclass, conform

T = TypeVar("T")
ChannelValues = float | tuple[float, ...]
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
"""Kinds of weights by the metadata key of their recipe, which is JSON, in a safetensors file."""
AREAS = ("whole", "center")
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
    "average": ("softmax", "logits", "sigmoid"),
    "area": AREAS,
}
"""Valid range or choices of the values of a recipe in a file; other values mean that the file is damaged."""
_LARGEST_CLIP = 2**31  # pixels of a clip
_TORCH_SUFFIXES = (".pyth", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut from a video and normalized.

    Attributes:
        frames: frames per clip.
        stride: frame stride, in frames at ``target_fps``.
        crop: height and width in pixels: one number for a square, or (height, width).
        target_fps: frame rate for ``stride``; None: the video's own.
        short_video: policy for videos shorter than a clip: clamp, loop or error.
        mean: mean for the normalization of pixels in 0..1; see :data:`ChannelValues`.
        std: standard deviation for the normalization.

    Raises:
        UserError: mean or std are invalid or differ in their number of channels, or a clip has too many
            pixels.
    """

    frames: int
    stride: float
    crop: int | tuple[int, int]
    target_fps: float | None = 30.0
    short_video: str = "clamp"
    mean: ChannelValues = 0.45
    std: ChannelValues = 0.225

    @classmethod
    def of(cls, section: Any) -> ClipRecipe:
        """Build from an object with some of the attributes, such as the section ``clip`` of a config."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(section, field.name)]
        return cls(**{name: getattr(section, name) for name in names})

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return (self.frames, *sides_of_crop(self.crop))

    @property
    def short_side(self) -> int:
        """The shorter one of height and width, in pixels."""
        return min(self.size[1:])

    def frame_sampler(self, sample_indices: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """Build the sampler of frames: (number of frames, fps, rng=generator) -> indices [T].

        Args:
            sample_indices: such as :func:`~videomaskfeat.data.sampling.clip_indices_random`.

        Raises:
            UserError: the policy for short videos is unknown.
        """
        check_name("clip.short_video", self.short_video, LIMITS["short_video"])
        return functools.partial(
            sample_indices,
            frames=self.frames,
            stride=self.stride,
            target_fps=self.target_fps,
            short=self.short_video,
        )

    def __post_init__(self) -> None:
        mean, std = as_channel_values(self.mean, "mean"), as_channel_values(self.std, "std")
        if min(std if isinstance(std, tuple) else (std,)) <= 0:
            raise UserError(f"std {self.std} must be above 0: pixels are divided by it")
        if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
            raise UserError(f"mean {mean} and std {std} must have the same number of channels")
        height, width = sides_of_crop(self.crop)
        object.__setattr__(self, "crop", height if height == width else (height, width))
        if isinstance(self.frames, int):
            pixels = self.frames * height * width
            if pixels > _LARGEST_CLIP:
                raise UserError(
                    f"a clip of {self.frames} frames of {height}x{width} has {pixels} pixels; the "
                    f"maximum is {_LARGEST_CLIP}: use a smaller crop, or fewer frames"
                )
        object.__setattr__(self, "mean", mean)  # tuples instead of the lists of configs and JSON
        object.__setattr__(self, "std", std)

    def normalize(self, clips: Tensor) -> Tensor:
        """See :func:`normalize`."""
        return normalize(clips, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class MaskRecipe:
    """How masks are sampled.

    Attributes:
        kind: a name in ``MASKS``, or a plug-in ``package.module:name``.
        ratio: fraction of hidden mask cells.
        cell: size of a mask cell: frames, rows and columns of pixels.
        arguments: arguments of the policy that differ from its defaults.
    """

    kind: str = "cube"
    ratio: float = 0.4
    cell: tuple[int, int, int] = (2, 32, 32)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> str:
        """How much is hidden, for the plan."""
        if self.kind == "multi_block":
            return str(build_policy(self.kind, self.arguments))
        return f"ratio {self.ratio:g}"


@dataclass(frozen=True)
class PretrainRecipe:
    """Recipe of a pre-training run.

    Attributes:
        clip: how clips are cut.
        mask: how masks are sampled.
        target: a name in ``TARGETS``, or a plug-in.
        target_arguments: arguments of the target that differ from the defaults.
        method: a name in ``METHODS``, or a plug-in; only "masked" needs both mask and target.
    """

    key: ClassVar[str] = METADATA_KEY
    clip: ClipRecipe
    mask: MaskRecipe = MaskRecipe()
    target: str = "hog"
    target_arguments: Mapping[str, Any] = field(default_factory=dict)
    method: str = "masked"

    @classmethod
    def of(cls, config: Any) -> PretrainRecipe:
        """Build from the sections clip, mask, target and method of a pre-training config."""
        mask = config.mask
        frames, rows, columns = mask.cell
        return cls(
            clip=ClipRecipe.of(config.clip),
            mask=MaskRecipe(mask.kind, mask.ratio, (frames, rows, columns), dict(mask.arguments)),
            target=config.target.name,
            target_arguments=dict(config.target.arguments),
            method=config.method.name,
        )

    @property
    def mask_grid(self) -> TokenGrid:
        """The grid of masks: the clip divided into mask cells.

        Raises:
            UserError: the cells do not tile the clip.
        """
        cell, size = self.mask.cell, self.clip.size
        if any(step < 1 or length % step for length, step in zip(size, cell, strict=True)):
            raise UserError(
                f"mask.cell {list(cell)} does not tile a clip of {size[0]} frames and {size[1]}x{size[2]} "
                "pixels: its sizes must divide those of the clip (clip.frames, clip.crop)"
            )
        return TokenGrid(*(length // step for length, step in zip(size, cell, strict=True)))

    @property
    def mask_policy(self) -> MaskFunction:
        """The function that samples masks: (grid, ratio, rng) -> bool [t', h', w'], True = hidden.

        Raises:
            UserError: the kind or an argument is unknown, or an argument is wrong.
        """
        return build_policy(self.mask.kind, self.mask.arguments)

    def draw_mask(self, rng: np.random.Generator) -> Mask:
        """Sample one mask, bool [t', h', w'], True = hidden.

        Raises:
            UserError: the kind or an argument is wrong, the cells do not tile the clip, or the ratio leaves
                no visible or no hidden cells.
        """
        policy, grid = self.mask_policy, self.mask_grid
        try:
            return policy(grid, self.mask.ratio, rng)
        except UserError as error:
            raise UserError(
                f"mask.ratio {self.mask.ratio:g} with mask.cell {list(self.mask.cell)}: {error}"
            ) from error

    def to_json(self) -> str:
        """JSON for the key ``METADATA_KEY``."""
        target = {"name": self.target, **self.target_arguments}
        clip, mask = dataclasses.asdict(self.clip), dataclasses.asdict(self.mask)
        return json.dumps({"clip": clip, "mask": mask, "target": target, "method": self.method})

    @classmethod
    def from_json(cls, text: str) -> PretrainRecipe:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the text is not JSON, or a value is missing, unknown or wrong.
        """

        def parse(fields: Any) -> PretrainRecipe:
            clip = _clip_of(fields)
            mask = build_dataclass(MaskRecipe, fields.get("mask", {}), name="mask", limits=LIMITS)
            if not is_plugin(mask.kind):
                check_name("mask.kind", mask.kind, MASKS)
            target = current_arguments(conform(fields.get("target"), Mapping[str, Any], "target"))
            name = conform(target.pop("name", None), str, "target.name")
            return cls(clip, mask, name, target, conform(fields.get("method", "masked"), str, "method"))

        return _parse(text, "pre-training", parse)


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
        return _parse(text, "classifier's", lambda fields: build_dataclass(cls, fields, limits=LIMITS))


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

        return _parse(text, "detector's", parse)


def sides_of_crop(crop: Any) -> tuple[int, int]:
    """Height and width of ``clip.crop``: a number, or a list of two.

    Raises:
        UserError: it is neither.
    """
    sides = list(crop) if isinstance(crop, Sequence) and not isinstance(crop, str) else [crop, crop]
    if len(sides) != 2 or any(not isinstance(side, int) or isinstance(side, bool) for side in sides):
        raise UserError(
            f"clip.crop {crop!r} is neither a number of pixels nor a list of height and width, such as "
            "[224, 320]"
        )
    return sides[0], sides[1]


def as_channel_values(value: Any, name: str) -> ChannelValues:
    """Convert to a number or a tuple of numbers; raises UserError for other values."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    values = value if several else (value,)
    if not values or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
        raise UserError(
            f"{name} {value!r} is neither a number for all channels nor a list with one number per channel, "
            "such as [0.485, 0.456, 0.406]"
        )
    return tuple(map(float, values)) if several else float(value)


def normalize(
    clips: Tensor, *, mean: ChannelValues | Sequence[float], std: ChannelValues | Sequence[float]
) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], (pixel / 255 - mean) / std."""
    pixels = clips.permute(0, 4, 1, 2, 3).to(torch.float32).div(255.0)
    return pixels.sub(_by_channel(mean, pixels)).div(_by_channel(std, pixels))


def denormalize(
    clips: Tensor, *, mean: ChannelValues | Sequence[float], std: ChannelValues | Sequence[float]
) -> Tensor:
    """The inverse of :func:`normalize`: float [B, C, T, H, W] -> uint8 [B, T, H, W, C], clamped to 0..255."""
    pixels = clips.float().mul(_by_channel(std, clips)).add(_by_channel(mean, clips)).mul(255.0)
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _by_channel(values: ChannelValues | Sequence[float], pixels: Tensor) -> float | Tensor:
    if isinstance(values, int | float):
        return values
    return torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1, 1)


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
        clip = _read(lambda text: _parse(text, "clip's", _clip_of), texts, DETECT_KEY, path)
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


def _clip_of(fields: Any) -> ClipRecipe:
    if "clip" not in conform(fields, Mapping[str, Any], "it"):
        raise UserError("clip is missing")
    return build_dataclass(ClipRecipe, fields["clip"], name="clip", limits=LIMITS)


def _parse(text: str, kind: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(parse_json(text, "metadata"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a valid {kind} recipe: {error}") from error


def _read(parse: Callable[[str], T], texts: Mapping[str, str], key: str, path: str | os.PathLike[str]) -> T:
    try:
        return parse(texts[key])
    except ValueError as error:
        raise UserError(f"{os.fspath(path)}: metadata key {key!r}: {error}") from error
