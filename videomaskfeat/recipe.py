"""Recipe of a pre-training run (clips, mask, target), and normalization of pixels."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.config_keys import current_arguments
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import MASKS, Mask, MaskFunction, build_policy
from videomaskfeat.plugins import is_plugin
from videomaskfeat.texts import parse_json
from videomaskfeat.values import Limits, build_dataclass, conform

T = TypeVar("T")
ChannelValues = float | tuple[float, ...]
"""One number for all channels, or one per channel."""
METADATA_KEY = "pretrain"
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
            clip = clip_of(fields)
            mask = build_dataclass(MaskRecipe, fields.get("mask", {}), name="mask", limits=LIMITS)
            if not is_plugin(mask.kind):
                check_name("mask.kind", mask.kind, MASKS)
            target = current_arguments(conform(fields.get("target"), Mapping[str, Any], "target"))
            name = conform(target.pop("name", None), str, "target.name")
            return cls(clip, mask, name, target, conform(fields.get("method", "masked"), str, "method"))

        return parse_recipe(text, "pre-training", parse)


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
    # Filled on the device: the host would wait for a copy of the list.
    channels = [torch.full((), value, dtype=pixels.dtype, device=pixels.device) for value in values]
    return torch.stack(channels).view(-1, 1, 1, 1)


def clip_of(fields: Any) -> ClipRecipe:
    if "clip" not in conform(fields, Mapping[str, Any], "it"):
        raise UserError("clip is missing")
    return build_dataclass(ClipRecipe, fields["clip"], name="clip", limits=LIMITS)


def parse_recipe(text: str, kind: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(parse_json(text, "metadata"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a valid {kind} recipe: {error}") from error
