"""Datasets of training clips with labels, and checks of the labels of a list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch

from videomaskfeat.data.batches import LabeledBatch
from videomaskfeat.data.clips import BALANCED_ORDER, ClipSample, VideoClips, stack_clips
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import segment_indices
from videomaskfeat.data.uncropped import DrawnAugmentation, UncroppedClip
from videomaskfeat.errors import UserError

_SIDE = re.compile(r"\b(?:left|right)\b")  # whole words, so not "upright"


@dataclass(frozen=True, kw_only=True)
class LabeledSample(ClipSample):
    """Clips of one video, and their labels, which differ if a flip swaps left and right.

    Labels are int64 [S], or bool [S, L] in a multi-label list.
    """

    labels: np.ndarray


@dataclass(eq=False, repr=False)
class LabeledClips(VideoClips[LabeledSample, LabeledBatch]):
    """Clips and labels of the videos in a list, in which every row has a label; see `VideoClips`.

    Attributes:
        augment: augments a clip; None: no augmentation.
        flip_labels: label of a flipped clip by label of the video, see `left_right_pairs`; other labels do
            not change.
        balanced: whether an epoch has the same number of videos (plus or minus one) of each class in the
            list. Videos of small classes are then repeated with new random clips. The epoch is still as long
            as the list.

    Raises:
        UserError: a number is out of range, a row has no label, or ``flip_labels`` is not symmetric.
    """

    _: KW_ONLY
    augment: DrawnAugmentation | None = None
    flip_labels: Mapping[int, int] | None = None
    balanced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_labels()
        pairs = self.flip_labels or {}
        for label, other in pairs.items():
            back = pairs.get(other, other)
            if back != label:
                raise UserError(
                    f"flip_labels maps {label} to {other}, and {other} to {back}; flips must swap classes in "
                    "both directions"
                )

    def order(self, epoch: int) -> np.ndarray:
        """The records of an epoch in order, int64 [len(self)]; some are repeated if ``balanced``."""
        if not self.balanced:
            return super().order(epoch)
        rng = np.random.default_rng((BALANCED_ORDER, self.seed, epoch))
        return balanced_order(_all_labels(self.records), rng)

    def _batch(self, samples: Sequence[LabeledSample], **common: Any) -> LabeledBatch:
        labels = np.concatenate([sample.labels for sample in samples])
        return LabeledBatch(labels=torch.from_numpy(labels), **common)

    def _check_labels(self) -> None:
        _all_labels(self.records)

    def _labels(self, index: int, flips: Sequence[bool]) -> np.ndarray:
        """The label of each clip of a record, int64 [S]."""
        label = self.records[index].label
        assert label is not None  # checked in __post_init__
        pairs = self.flip_labels or {}
        return np.array([pairs.get(label, label) if flip else label for flip in flips], np.int64)

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> LabeledSample:
        clips, uncropped, flips = list[np.ndarray](), list[UncroppedClip](), list[bool]()
        for clip in frames:
            geometry = self.transform.sample(clip.shape[1], clip.shape[2], rng)
            if self.uncropped:
                uncropped.append(UncroppedClip.draw(clip, geometry, self.augment, rng))
            elif self.augment is None:
                clips.append(geometry.apply_clip(clip))
            else:
                clips.append(self.augment.apply(clip, geometry, rng))
            flips.append(geometry.flip)
        return LabeledSample(
            clips=uncropped if self.uncropped else stack_clips(clips),
            labels=self._labels(index, flips),
            index=index,
        )


@dataclass(eq=False, repr=False)
class MultiLabelClips(LabeledClips):
    """Clips and labels of a multi-label list; see `LabeledClips`.

    Attributes:
        classes: number of classes, L.

    Raises:
        UserError: as `LabeledClips`, or ``balanced``.
    """

    _: KW_ONLY
    classes: int

    def _check_labels(self) -> None:
        if self.balanced:
            raise UserError(
                f"{self.records.source}: videos with several labels cannot be balanced by class; set "
                "data.balanced=false"
            )

    def _labels(self, index: int, flips: Sequence[bool]) -> np.ndarray:
        """The labels of each clip of a record, bool [S, L]."""
        own, pairs = self.records[index].labels or (), self.flip_labels or {}
        labels = np.zeros((len(flips), self.classes), np.bool_)
        for clip, flip in enumerate(flips):
            labels[clip, [pairs.get(label, label) if flip else label for label in own]] = True
        return labels


def random_segments(num_frames: int, fps: float, *, frames: int, rng: np.random.Generator) -> np.ndarray:
    """`FrameSampler` of a random frame from each of ``frames`` equal segments, int64 [T]."""
    return segment_indices(num_frames, frames=frames, rng=rng)


def check_labels(records: Records, classes: int, *, class_names: str = "") -> None:
    """Raise UserError unless every row has a label in 0..classes-1.

    Args:
        records: the list.
        classes: number of classes.
        class_names: file that sets the number of classes; empty: ``data.classes`` sets it.
    """
    if records.is_multi_label:
        if records.classes > classes:
            raise UserError(
                f"{records.source}: the largest label is {records.classes - 1}, but labels of {classes} "
                f"classes are 0..{classes - 1}; correct the list, or the number of classes"
            )
        return
    labels = _all_labels(records)
    outside = labels >= classes
    if outside.any():
        row = int(outside.argmax())
        remedy = (
            f"add the missing names to the file of data.class_names ({class_names})"
            if class_names
            else f"set the number of classes (data.classes) to at least {labels.max() + 1}"
        )
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, but labels "
            f"of {classes} classes are 0..{classes - 1} ({outside.sum()} of {len(records)} rows are "
            f"outside); {remedy}, or correct the list"
        )


def left_right_pairs(classes: Mapping[str, int]) -> dict[int, int]:
    """Labels of flipped clips: ``... left to right`` <-> ``... right to left``.

    Returns:
        label -> label, in both directions; classes without "left" or "right" in their names are omitted.

    Raises:
        UserError: there is no class with the flipped name.
    """
    numbers = {name.lower(): number for name, number in classes.items()}
    pairs = {}
    for name, number in classes.items():
        flipped = _SIDE.sub(lambda side: "right" if side[0] == "left" else "left", name.lower())
        if flipped == name.lower():
            continue
        if flipped not in numbers:
            raise UserError(
                f"class {number} ({name!r}) contains left or right, but there is no class {flipped!r} for "
                f"flipped clips; disable flips (clip.flip=0)"
            )
        pairs[number] = numbers[flipped]
    return pairs


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows int64 [n] in random order, with equal numbers of rows per class, and of repetitions per row.

    Both differ by at most one. Labels are int [n].
    """
    rows = rng.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]  # class by class, each in random order
    classes, starts, sizes = np.unique(labels[rows], return_index=True, return_counts=True)
    counts = np.full(len(classes), len(labels) // len(classes))
    counts[rng.permutation(len(classes))[: len(labels) % len(classes)]] += 1
    class_rows = [
        rows[start + np.arange(count) % size]
        for start, size, count in zip(starts, sizes, counts, strict=True)
    ]
    return rng.permutation(np.concatenate(class_rows))


def _all_labels(records: Records) -> np.ndarray:
    """The labels of a list, int32 [n]; every row must have one."""
    labels = records.labels
    if labels is None:
        raise UserError(
            f"{records.source} has no labels, and classification needs one for each video; a list has rows "
            "`path label`"
        )
    if (labels < 0).any():
        row = int((labels < 0).argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, but "
            f"labels start at 0 ({(labels < 0).sum()} of {len(records)} rows are negative); correct the list"
        )
    return labels
