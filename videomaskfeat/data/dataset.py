"""Map-style datasets for any PyTorch loop: a list or folder of videos -> dicts of tensors."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from videomaskfeat.ava import read_label_map
from videomaskfeat.data.ava import ActionClips, numbered_boxes
from videomaskfeat.data.ava_lists import training_key_frames
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.clips import (
    ClipSample,
    MaskDraw,
    PretrainClips,
    PretrainSample,
    RecordClips,
    SampleKey,
    sample_generator,
)
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import clip_indices_middle, clip_indices_random
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, UniformCrop
from videomaskfeat.errors import UserError
from videomaskfeat.recipe import LIMITS, ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe, DetectRecipe, EncoderRecipe
from videomaskfeat.values import build_dataclass

logger = logging.getLogger(__name__)

Clip = ClipRecipe | Mapping[str, Any]
"""A :class:`~videomaskfeat.recipe.ClipRecipe`, or a mapping of its attributes."""
PixelTransform = Callable[[Tensor], Tensor]
"""Changes the pixels of a clip, [T, C, H, W] -> [T, C, H', W'] (the layout of torchvision.transforms.v2). It
receives uint8, and returns uint8, or float in 0..1."""
Path = str | os.PathLike[str]


class _ClipDataset(Dataset[dict[str, Tensor]]):
    """Base of the datasets: random clips in training, otherwise always the same clip of a record.

    Training clips are drawn from torch's generator, so ``torch.manual_seed`` repeats them, and they differ in
    every epoch and worker of a ``DataLoader``. In training, a video that cannot be read is replaced by
    another one, with a warning in the log.
    """

    _clips: RecordClips[Any, Any]
    clip: ClipRecipe
    training: bool
    transform: PixelTransform | None

    def __len__(self) -> int:
        return len(self._clips)

    def _load(self, index: int) -> Any:
        """The sample of a record."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} {self._clips.unit}s")
        index %= len(self)
        if not self.training:
            return self._clips.load(index, sample_generator(0, 0, index))
        sample: ClipSample = self._clips[SampleKey(int(torch.randint(2**62, ())), index)]
        for failure in sample.failures:
            logger.warning("%s cannot be read (%s); another one replaces it", failure.path, failure.cause)
        return sample

    def _pixels(self, frames: np.ndarray) -> Tensor:
        """A clip uint8 [T, H, W, C] -> float32 [C, T, H, W], transformed and normalized."""
        clip = torch.from_numpy(frames)
        if self.transform is None:
            return self.clip.normalize(clip[None])[0]
        changed = self.transform(clip.permute(0, 3, 1, 2))  # [T, C, H, W]
        if not isinstance(changed, Tensor) or changed.ndim != 4 or changed.shape[1] != clip.shape[3]:
            shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise UserError(
                f"transform returned {shape} for a clip {tuple(clip.permute(0, 3, 1, 2).shape)}; it must "
                "return a tensor [T, C, H, W], uint8 or float in 0..1"
            )
        pixels = changed if changed.dtype == torch.uint8 else changed.float() * 255.0
        return self.clip.normalize(pixels.permute(0, 2, 3, 1)[None])[0]


class VideoDataset(_ClipDataset):
    """Clips of the videos in a list or folder, with labels or masks; see :class:`_ClipDataset`.

    ``dataset[0]`` is a dict:

    ========= ===========================================================================================
    ``clip``  float32 [C, T, H, W], normalized with ``clip.mean`` and ``clip.std``
    ``label`` int64 [], if the list has labels
    ``mask``  bool [t', h', w'], True = hidden, if ``mask`` is set
    ``index`` int64 [], row of the video (of the replacement of an unreadable one)
    ========= ===========================================================================================

    Args:
        source: list file in any format of :func:`~videomaskfeat.data.formats.load_records`; or a folder, with
            all videos below it; or records.
        clip: how clips are cut and normalized, such as ``{"frames": 8, "stride": 4, "crop": 64}``; see
            :class:`~videomaskfeat.recipe.ClipRecipe`.
        training: random frames and a random crop; otherwise the middle clip and its center crop.
        labels: True: every video has a label; those of a folder are its class folders, in sorted order.
            False: no labels. None: the labels of the list if it has any, and none of a folder.
        mask: how masks are drawn, a :class:`~videomaskfeat.recipe.MaskRecipe` or its attributes; None: no
            masks.
        crop: crop of a training clip. None: ``RandomResizedCrop`` of 0.5 to 1 of the frame, flipped with
            probability 0.5.
        transform: changes the pixels of a cropped clip; see :data:`PixelTransform`.
        class_names: class names by label, such as those of the training set: class folders then have these
            labels.
        format, prefix, separator: see :func:`~videomaskfeat.data.formats.load_records`.
        reader: video reader, see `open_video`.

    Attributes:
        records: path and label of each video.
        class_names: class names by label; empty if unknown.
        recipe: for :func:`~videomaskfeat.models.saving.save_model`, so that ``load_classifier`` and
            ``load_encoder`` cut clips as this dataset does.

    Raises:
        UserError: an argument, the list or a label is wrong.
        VideoReadError: in ``dataset[index]`` without training: the video cannot be read.
    """

    def __init__(
        self,
        source: Path | Records,
        *,
        clip: Clip,
        training: bool = True,
        labels: bool | None = None,
        mask: MaskRecipe | Mapping[str, Any] | None = None,
        crop: ClipTransform | None = None,
        transform: PixelTransform | None = None,
        class_names: Sequence[str] = (),
        format: str = "auto",
        prefix: Path = "",
        separator: str = "auto",
        reader: str = "auto",
    ) -> None:
        self.clip, self.training, self.transform = _clip_recipe(clip), training, transform
        self.records = (
            source
            if isinstance(source, Records)
            else load_records(
                source,
                format=format,
                labels="yes" if labels else "auto",
                prefix=prefix,
                separator=separator,
                known_classes=class_names,
                stills=self.clip.frames == 1,
            )
        )
        check_frames(self.records, self.clip.frames)
        self._labels = None if labels is False else _complete_labels(self.records, required=labels is True)
        self.class_names = tuple(class_names) or self.records.class_names
        draw: MaskDraw = _no_mask
        if mask is not None:
            mask = mask if isinstance(mask, MaskRecipe) else build_dataclass(MaskRecipe, mask, name="mask")
            recipe = PretrainRecipe(self.clip, mask)
            recipe.draw_mask(np.random.default_rng(0))  # raises now if no mask can be drawn
            draw = functools.partial(recipe.mask_policy, recipe.mask_grid, mask.ratio)
        self._clips = PretrainClips(
            self.records,
            sampler=self.clip.frame_sampler(clip_indices_random if training else clip_indices_middle),
            transform=_crop(self.clip, crop, training),
            reader=reader,
            mask=draw,
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample: PretrainSample = self._load(index)
        assert isinstance(sample.clips, np.ndarray)  # never uncropped
        item = {"clip": self._pixels(sample.clips[0]), "index": torch.tensor(sample.index)}
        if self._labels is not None:
            item["label"] = torch.tensor(int(self._labels[sample.index]))
        if sample.masks.size:
            item["mask"] = torch.from_numpy(sample.masks[0])
        return item

    @property
    def recipe(self) -> ClassifyRecipe:
        """Clips, and class names if there are labels; one view at test time."""
        if self._labels is None:
            return EncoderRecipe(self.clip, views=1, short_side=self.clip.short_side)
        side, names = self.clip.short_side, self.class_names
        return ClassifyRecipe(self.clip, views=1, short_side=side, class_names=names)


class ActionDataset(_ClipDataset):
    """Clips around key frames with persons' boxes and actions, from AVA's files; see :class:`_ClipDataset`.

    ``dataset[0]`` is a dict:

    ========== ==========================================================================================
    ``clip``   float32 [C, T, H, W], normalized
    ``boxes``  float32 [R, 4], x1, y1, x2, y2 in pixels of the clip
    ``labels`` bool [R, L]; column i is the action with id i + 1
    ``index``  int64 [], number of the key frame
    ========== ==========================================================================================

    Clips have different numbers of boxes: pass :meth:`collate` to the ``DataLoader`` as ``collate_fn``.

    Args:
        groundtruth: rows `video,second,x1,y1,x2,y2,action,person`.
        videos: folder of the videos, or of folders of extracted frames.
        label_map: actions (pbtxt); the largest id is the number of actions.
        clip, training, crop, transform: as in :class:`VideoDataset`. In training a crop contains a box;
            otherwise boxes are clipped to the center crop, and those outside are left out.

    Attributes:
        actions: names of actions by id.
        classes: number of actions, L.
        recipe: for :func:`~videomaskfeat.models.saving.save_model`, so that ``load_detector`` reads it.

    Raises:
        UserError: an argument or a file is wrong, or a video is missing.
    """

    def __init__(
        self,
        groundtruth: Path,
        *,
        videos: Path,
        label_map: Path,
        clip: Clip,
        training: bool = True,
        crop: ClipTransform | None = None,
        transform: PixelTransform | None = None,
    ) -> None:
        self.clip, self.training, self.transform = _clip_recipe(clip), training, transform
        self.actions = read_label_map(os.fspath(label_map))
        self.classes = max(self.actions)
        key_frames = training_key_frames([os.fspath(groundtruth)], classes=self.classes)
        self._clips = ActionClips(
            key_frames,
            sources_in_folder(key_frames, videos),
            frames=self.clip.frames,
            stride=self.clip.stride,
            target_fps=self.clip.target_fps,
            transform=_crop(self.clip, crop, training),
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self._load(index)
        return {
            "clip": self._pixels(sample.clips[0]),
            "boxes": torch.from_numpy(sample.boxes[0]),
            "labels": torch.from_numpy(sample.labels[0]),
            "index": torch.tensor(sample.index),
        }

    @staticmethod
    def collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch: ``clip`` [B, C, T, H, W], ``index`` [B], and of all boxes ``labels`` bool [R, L] and
        ``boxes`` float32 [R, 5], the number of the clip in the batch first, as detectors expect them."""
        return {
            "clip": default_collate([item["clip"] for item in items]),
            "boxes": numbered_boxes([item["boxes"].numpy() for item in items]),
            "labels": torch.cat([item["labels"] for item in items]),
            "index": default_collate([item["index"] for item in items]),
        }

    @property
    def recipe(self) -> DetectRecipe:
        """Clips and actions; whole frames at test time."""
        return DetectRecipe(self.clip, self.actions, self.classes, short_side=self.clip.short_side)


def _no_mask(*, rng: np.random.Generator) -> np.ndarray:
    """A mask without positions, for clips that are not masked."""
    return np.empty((0, 0, 0), np.bool_)


def _clip_recipe(clip: Clip) -> ClipRecipe:
    return (
        clip
        if isinstance(clip, ClipRecipe)
        else build_dataclass(ClipRecipe, clip, name="clip", limits=LIMITS)
    )


def _crop(clip: ClipRecipe, crop: ClipTransform | None, training: bool) -> ClipTransform:
    if not training:
        return UniformCrop(clip.crop, clip.short_side)
    return RandomResizedCrop(clip.crop) if crop is None else crop


def _complete_labels(records: Records, *, required: bool) -> np.ndarray | None:
    """The labels int32 [n]; None if a video has no label."""
    labels = records.labels
    if labels is not None and (labels >= 0).all():
        return labels
    if required:
        raise UserError(f"{records.source}: not every video has a label; set labels=False, or add the labels")
    return None
