"""The data set for classification: a record of a list -> augmented clips and the number of their class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from videomaskfeat.data.batches import Failure, LabelledBatch, SharedClips, join_clips
from videomaskfeat.data.clips import FrameSampler, VideoClips, stack_clips
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import segment_indices
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform
from videomaskfeat.errors import UserError

__all__ = [
    "ClipAugmentation",
    "LabelledBatch",
    "LabelledClips",
    "LabelledSample",
    "check_labels",
    "left_right_pairs",
    "middle_segments",
    "random_segments",
]

_BALANCED_ORDER = 4  # a tag as those of clips.py
_SIDE = re.compile(r"\b(?:left|right)\b")  # whole words: "upright" is no side


@dataclass(frozen=True)
class LabelledSample:
    """Clips of one video.

    clips: uint8 [S, T, H, W, C], S samples of the video.
    labels: int64 [S]; they differ where a flip swaps left and right.
    index: the record they come from; the asked one, or its replacement.
    failures: the records that were tried before.
    """

    clips: np.ndarray
    labels: np.ndarray
    index: int
    failures: tuple[Failure, ...] = ()


class ClipAugmentation(Protocol):
    """Changes the pixels of a clip on its way from whole frames to the crop, such as `Augmentation`."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, H, W, C], whole frames -> uint8 [T, h, w, C], cut by the geometry."""
        ...


class LabelledClips(VideoClips[LabelledSample, LabelledBatch]):
    """Clips and classes of the videos in a list."""

    def __init__(
        self,
        records: Records,
        *,
        sampler: FrameSampler,
        transform: ClipTransform,
        augment: ClipAugmentation | None = None,
        reader: str = "auto",
        seed: int = 0,
        samples_per_video: int = 1,
        tries: int = 10,
        flip_labels: Mapping[int, int] | None = None,
        balanced: bool = False,
    ) -> None:
        """Keep the parts, as `VideoClips` does.

        Args:
            records, sampler, transform, reader, seed, samples_per_video, tries: see `VideoClips`; every row
                of the list has a label.
            augment: changes the pixels of a clip; None leaves them alone.
            flip_labels: the class that a flipped clip shows, by the class of the video, both ways round (see
                `left_right_pairs`); a class that is not in it stays what it is.
            balanced: an epoch takes the same number of videos from each class that the list holds, give or
                take one; small classes then come several times, each time drawn anew, and of large ones a
                part. An epoch has as many videos as the list all the same.

        Raises:
            UserError: a number that cannot be, a row without a label, or a swap that goes one way only.
        """
        super().__init__(
            records,
            sampler=sampler,
            transform=transform,
            reader=reader,
            seed=seed,
            samples_per_video=samples_per_video,
            tries=tries,
        )
        _all_labels(records)
        self._augment = augment
        self._flip_labels = _check_pairs(flip_labels or {})
        self._balanced = balanced

    def order(self, epoch: int) -> np.ndarray:
        """The rows of the list that an epoch takes, in its order, int64 [n]; balanced, some repeat."""
        if not self._balanced:
            return super().order(epoch)
        return balanced_order(
            _all_labels(self.records), np.random.default_rng((_BALANCED_ORDER, self.seed, epoch))
        )

    def collate(self, samples: Sequence[LabelledSample], memory: SharedClips | None = None) -> LabelledBatch:
        """Join samples; clips are copied once, in a worker straight into its shared memory."""
        return LabelledBatch(
            clips=join_clips([sample.clips for sample in samples], memory),
            labels=torch.from_numpy(np.concatenate([sample.labels for sample in samples])),
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    def _sample(
        self,
        frames: list[np.ndarray],
        index: int,
        failures: tuple[Failure, ...],
        rng: np.random.Generator,
    ) -> LabelledSample:
        label = self.records[index].label
        assert label is not None  # checked at the start
        clips, labels = [], []
        for part in frames:
            geometry = self._transform.sample(part.shape[1], part.shape[2], rng)
            if self._augment is None:
                clips.append(geometry.apply_clip(part))
            else:
                clips.append(self._augment.apply(part, geometry, rng))
            labels.append(self._flip_labels.get(label, label) if geometry.flip else label)
        return LabelledSample(stack_clips(clips), np.array(labels, np.int64), index, failures)


def random_segments(num_frames: int, fps: float, *, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random frame from each of ``frames`` equal segments, int64 [T]: a `FrameSampler` for training.

    Args:
        num_frames: of the video, at least 1.
        fps: of the video; plays no part.
        frames: segments, T.
        rng: this sample's own generator.
    """
    return segment_indices(num_frames, frames=frames, rng=rng)


def middle_segments(num_frames: int, fps: float, *, frames: int, rng: np.random.Generator) -> np.ndarray:
    """The middle frame of each of ``frames`` equal segments, int64 [T]: a `FrameSampler` for testing."""
    return segment_indices(num_frames, frames=frames)


def check_labels(records: Records, classes: int) -> None:
    """Every row has a label that a model with so many classes can give.

    Args:
        records: the list.
        classes: of the model, L.

    Raises:
        UserError: a row without a label, or one outside 0..L-1, named by list and row.
    """
    labels = _all_labels(records)
    outside = labels >= classes
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, and with "
            f"{classes} classes labels are 0..{classes - 1} ({outside.sum()} of {len(records)} rows are "
            f"outside); set the number of classes (data.classes) to at least {labels.max() + 1}, or mend the "
            "list"
        )


def left_right_pairs(classes: Mapping[str, int]) -> dict[int, int]:
    """What each class becomes in a mirror, from the names: ``... left to right`` <-> ``... right to left``.

    Args:
        classes: name -> number, such as Something-Something-v2's templates (``ssv2_templates``).

    Returns:
        number -> number of the class whose name has left and right exchanged, both ways round; classes that
        name no side are not in it.

    Raises:
        UserError: a class names a side, and no class has the mirrored name: nobody knows what its flipped
            clips show.
    """
    known = {name.lower(): number for name, number in classes.items()}
    pairs = {}
    for name, number in classes.items():
        mirrored = _SIDE.sub(lambda side: "right" if side[0] == "left" else "left", name.lower())
        if mirrored == name.lower():
            continue
        if mirrored not in known:
            raise UserError(
                f"class {number} ({name!r}) names a side, and no class is called {mirrored!r}, so a flipped "
                "clip of it has no label; switch the flip off (clip.flip=0)"
            )
        pairs[number] = known[mirrored]
    return pairs


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows as there are, from each class the same number give or take one, in random order.

    Args:
        labels: int [n], a row's class.
        rng: draws which rows, and their order.

    Returns:
        int64 [n]. The rows of a class come equally often, give or take one.
    """
    rows = rng.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]  # class by class, each in random order
    present, starts, sizes = np.unique(labels[rows], return_index=True, return_counts=True)
    shares = np.full(len(present), len(labels) // len(present))
    shares[rng.permutation(len(present))[: len(labels) % len(present)]] += 1
    drawn = [
        rows[start + np.arange(share) % size]
        for start, size, share in zip(starts, sizes, shares, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))


def _all_labels(records: Records) -> np.ndarray:
    """The labels of a list of which every row has one, int32 [n]."""
    labels = records.labels
    if labels is None:
        raise UserError(
            f"{records.source}: has no labels, and classification needs one for each video; "
            "a list has rows `path label`"
        )
    if (labels < 0).any():
        row = int((labels < 0).argmax())
        raise UserError(
            f"{records.source}: row {row + 1} ({records[row].path}) has the label {labels[row]}, and labels "
            f"count from 0 ({(labels < 0).sum()} of {len(records)} rows are below); mend the list"
        )
    return labels


def _check_pairs(pairs: Mapping[int, int]) -> dict[int, int]:
    for label, other in pairs.items():
        if pairs.get(other, other) != label:
            raise UserError(
                f"flip_labels maps {label} to {other}, and {other} to {pairs.get(other, other)}; "
                "a mirror swaps classes both ways round"
            )
    return dict(pairs)
