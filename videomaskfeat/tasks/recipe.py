"""What a weights file knows besides the model: how its clips were cut and normalised, mask and target."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.io import is_file, local_path

METADATA_KEY = "pretrain"
"""Key of the recipe, as JSON, in the metadata of a safetensors file."""


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut from a video and normalised.

    Attributes:
        frames: frames a clip.
        stride: source frames from one frame of the clip to the next, counted at ``target_fps``.
        target_fps: frames a second at which the stride counts; None counts the source's own.
        short_video: clamp, loop or error: what a video shorter than the clip does.
        crop: height and width in pixels.
        mean: subtracted from pixels in 0..1, every channel.
        std: divides them after that.
    """

    frames: int
    stride: float
    crop: int
    target_fps: float | None = 30.0
    short_video: str = "clamp"
    mean: float = 0.45
    std: float = 0.225


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
    """

    clip: ClipRecipe
    mask: MaskRecipe = MaskRecipe()
    target: str = "hog"
    target_arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The recipe as the text that belongs under :data:`METADATA_KEY`."""
        parts = {
            "clip": dataclasses.asdict(self.clip),
            "mask": dataclasses.asdict(self.mask),
            "target": {"name": self.target, **self.target_arguments},
        }
        return json.dumps(parts)

    @classmethod
    def from_json(cls, text: str) -> PretrainRecipe:
        """The recipe in the words of :meth:`to_json`.

        Raises:
            ValueError: no JSON, a part that is missing, or a key that no part has.
        """
        try:
            parts = json.loads(text)
            target = dict(parts["target"])
            mask = dict(parts.get("mask", {}))
            if "cell" in mask:
                mask["cell"] = tuple(mask["cell"])
            return cls(ClipRecipe(**parts["clip"]), MaskRecipe(**mask), target.pop("name"), target)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"no pre-training recipe: {error}") from error


def normalise(clips: Tensor, *, mean: float, std: float) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], (pixel / 255 - mean) / std."""
    return clips.permute(0, 4, 1, 2, 3).to(torch.float32).div(255.0).sub(mean).div(std)


def read_recipe(path: str | os.PathLike[str]) -> PretrainRecipe:
    """The recipe in the metadata of a safetensors weights file.

    Raises:
        UserError: the file is missing, is no safetensors file, or holds no recipe.
    """
    name = os.fspath(path)
    if not is_file(name):
        raise UserError(f"{name}: no such weights file; give the weights.safetensors of a pre-training run")
    try:
        with safe_open(local_path(name), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{name}: not a safetensors file ({error}); give the one a run has written"
        ) from error
    if METADATA_KEY not in metadata:
        raise UserError(
            f"{name}: holds no pre-training recipe (metadata key {METADATA_KEY!r}); "
            "give the weights.safetensors of a pre-training run"
        )
    try:
        return PretrainRecipe.from_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise UserError(f"{name}: its metadata key {METADATA_KEY!r} holds {error}") from error
