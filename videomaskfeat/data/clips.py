"""Datasets of training clips: record of a list -> sample, random in each epoch -> batch."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import (
    Failure,
    LabeledBatch,
    PairBatch,
    PretrainBatch,
    SharedClips,
    join_clips,
)
from videomaskfeat.data.memory import VideoMemory, open_from
from videomaskfeat.data.operations import RandomColor
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import ShortVideoError, segment_indices
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform
from videomaskfeat.data.workers import ReadingLost, begin_reading
from videomaskfeat.errors import UserError

# Tags separate the random streams of one seed (numpy pads a seed with zeros, so (1, 2) equals (1, 2, 0)).
_SAMPLE, _REPLACEMENT, _ORDER, _BALANCED_ORDER = 1, 2, 3, 4
_SIDE = re.compile(r"\b(?:left|right)\b")  # whole words, so not "upright"


@dataclass(frozen=True)
class SampleKey:
    """Index into a dataset of clips.

    Attributes:
        epoch: the epoch.
        index: index of the record.
        turn: number of earlier samples of this record in the epoch; above 0 only if classes are balanced.
        skipped: indices of records that are not read, see `FailureCounter.skipped_records`.
    """

    epoch: int
    index: int
    turn: int = 0
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """A sample of a dataset of clips.

    Attributes:
        clips: uint8 [S, T, H, W, C], S clips of the video.
        index: index of the record, which may be a replacement.
        failures: records that could not be read.
    """

    clips: np.ndarray
    index: int
    failures: tuple[Failure, ...] = ()


SampleT = TypeVar("SampleT", bound=ClipSample)
BatchT = TypeVar("BatchT")


class FrameSampler(Protocol):
    """Samples frame indices, such as ``functools.partial(clip_indices_random, frames=16, stride=4)``."""

    def __call__(self, num_frames: int, fps: float, /, *, rng: np.random.Generator) -> np.ndarray:
        """Frame indices, int64 [T]."""
        ...


class MaskDraw(Protocol):
    """Samples one mask, such as ``functools.partial(MASKS["cube"], grid, 0.4)``."""

    def __call__(self, *, rng: np.random.Generator) -> np.ndarray:
        """bool [t, h, w], True = hidden."""
        ...


class ClipAugmentation(Protocol):
    """Changes the pixels of a clip while it is cropped, such as `Augmentation`."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """Whole frames uint8 [T, H, W, C] -> clip uint8 [T, h, w, C]."""
        ...


def sample_generator(seed: int, epoch: int, index: int, turn: int = 0) -> np.random.Generator:
    """The random generator of one sample: frames, crop, flip, augmentation and mask.

    It depends only on the seed of the run and the `SampleKey`, so a sample is the same in every worker and
    rank, and after a resume.
    """
    return _generator(_SAMPLE, seed, epoch, index, turn)


def _generator(*key: int) -> np.random.Generator:
    """A generator seeded by the key without its last number if that is 0."""
    return np.random.default_rng(key if key[-1] else key[:-1])


def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    """The order of the records in an epoch, int64 [records]."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(records)


@dataclass(eq=False, repr=False)
class RecordClips(Dataset[SampleT], Generic[SampleT, BatchT]):
    """Base of datasets of clips: ``dataset[SampleKey(epoch, index)]`` returns a sample.

    In `VideoClips` a record is a video, in `ActionClips` it is a key frame. All attributes are sent to worker
    processes, so they must be picklable (no lambdas).

    A video that cannot be read, or is too short if that is an error, is replaced by a random one, which
    depends only on (seed, epoch, index): samples are the same for any number of workers and ranks. The
    replacement uses the sample's own generator.

    Attributes:
        records: the list.
        transform: samples the crop of a clip.
        seed: random seed, at least 0.
        samples_per_video: clips per reading of a record ("repeated sampling"), each with its own crop.
        tries: maximum number of records to read for one sample.
        unit: noun for a record in messages.

    Raises:
        UserError: a number is out of range.
    """

    records: Records
    _: KW_ONLY
    transform: ClipTransform
    seed: int = 0
    samples_per_video: int = 1
    tries: int = 10
    unit: ClassVar[str] = "video"

    def __post_init__(self) -> None:
        for argument, least in (("seed", 0), ("samples_per_video", 1), ("tries", 1)):
            if getattr(self, argument) < least:
                raise UserError(f"{argument}={getattr(self, argument)}: must be at least {least}")

    def __len__(self) -> int:
        return len(self.records)

    def order(self, epoch: int) -> np.ndarray:
        """The records of an epoch in order, int64 [len(self)]."""
        return epoch_order(self.seed, epoch, len(self.records))

    def __getitem__(self, key: SampleKey) -> SampleT:
        """The sample of a record or of its replacement.

        Raises:
            UserError: too many records in succession cannot be read.
        """
        failures: list[Failure] = []
        replacements: np.random.Generator | None = None
        index = key.index
        for _ in range(self.tries):
            path = self.records[index].path
            rng = sample_generator(self.seed, key.epoch, key.index, key.turn)
            try:
                if index in key.skipped:
                    raise VideoReadError(
                        path, "two workers crashed or hung while reading it in an earlier epoch"
                    )
                begin_reading(path, key.epoch, key.index, key.turn, index)
                return replace(self._load(index, rng), failures=tuple(failures))
            except ReadingLost as error:
                failures.append(Failure(index, path, error.cause, lost_in_epoch=key.epoch))
            except VideoReadError as error:
                failures.append(Failure(index, path, error.cause))
            except ShortVideoError as error:
                failures.append(Failure(index, path, str(error)))
            if replacements is None:
                replacements = _generator(_REPLACEMENT, self.seed, key.epoch, key.index, key.turn)
            index = int(replacements.integers(len(self.records)))
        last = failures[-1]
        raise UserError(
            f"{self.records.source}: {len(failures)} {self.unit}s in a row could not be read, the last "
            f"one {last.path} ({last.cause}); {self._remedy()}"
        )

    def load(self, index: int, rng: np.random.Generator) -> SampleT:
        """The sample of a record, without a replacement; raises VideoReadError or ShortVideoError."""
        return self._load(index, rng)

    def collate(self, samples: Sequence[SampleT], memory: SharedClips | None = None) -> BatchT:
        """Collate samples; clips are copied once, into ``memory`` if given."""
        return self._batch(
            samples,
            clips=join_clips([sample.clips for sample in samples], memory),
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    @abstractmethod
    def _batch(self, samples: Sequence[SampleT], **common: Any) -> BatchT:
        """Build the batch; ``common`` are the attributes of every kind of batch."""

    @abstractmethod
    def _load(self, index: int, rng: np.random.Generator) -> SampleT:
        """Load the sample of a record; raises VideoReadError or ShortVideoError."""

    @abstractmethod
    def _remedy(self) -> str:
        """The remedy if many records cannot be read."""


@dataclass(eq=False, repr=False)
class VideoClips(RecordClips[SampleT, BatchT]):
    """Clips of the videos in a list; a video is opened once per sample. See `RecordClips`.

    Attributes:
        sampler: samples the frames of a clip.
        reader: reader of video files: auto, decord or pyav.
        memory: decoded videos, which are not read from their files; samples are the same without it.
    """

    _: KW_ONLY
    sampler: FrameSampler
    reader: str = "auto"
    memory: VideoMemory | None = None

    @abstractmethod
    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> SampleT:
        """Build the sample of a video from the frames of each clip, uint8 [T, H, W, C]."""

    def _load(self, index: int, rng: np.random.Generator) -> SampleT:
        with open_from(self.memory, self.records[index].path, self.reader) as video:
            indices = [self.sampler(video.frames, video.fps, rng=rng) for _ in range(self.samples_per_video)]
            frames = video.read(np.concatenate(indices))  # [S*T, H, W, C]
        return self._sample(np.split(frames, self.samples_per_video), index, rng)

    def _remedy(self) -> str:
        return (
            "check the folder of relative paths (prefix), or scan the list with "
            f"`videomaskfeat check-data {self.records.source}`"
        )


def stack_clips(clips: list[np.ndarray]) -> np.ndarray:
    """``np.stack`` without a copy if there is only one array."""
    return clips[0][None] if len(clips) == 1 else np.stack(clips)


@dataclass(frozen=True, kw_only=True)
class PretrainSample(ClipSample):
    """Clips of one video, and masks bool [S, t, h, w], True = hidden."""

    masks: np.ndarray


@dataclass(eq=False, repr=False)
class PretrainClips(VideoClips[PretrainSample, PretrainBatch]):
    """Clips and masks of the videos in a list; see `VideoClips`.

    Attributes:
        mask: samples the mask of each clip.
    """

    _: KW_ONLY
    mask: MaskDraw

    def _batch(self, samples: Sequence[PretrainSample], **common: Any) -> PretrainBatch:
        masks = np.concatenate([sample.masks for sample in samples])
        return PretrainBatch(mask=torch.from_numpy(masks), **common)

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PretrainSample:
        height, width = frames[0].shape[1:3]
        clips = [self.transform.sample(height, width, rng).apply_clip(clip) for clip in frames]
        masks = [self.mask(rng=rng) for _ in clips]
        return PretrainSample(clips=stack_clips(clips), masks=stack_clips(masks), index=index)


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
    augment: ClipAugmentation | None = None
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
        rng = np.random.default_rng((_BALANCED_ORDER, self.seed, epoch))
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
        clips, flips = [], []
        for clip in frames:
            geometry = self.transform.sample(clip.shape[1], clip.shape[2], rng)
            if self.augment is None:
                clips.append(geometry.apply_clip(clip))
            else:
                clips.append(self.augment.apply(clip, geometry, rng))
            flips.append(geometry.flip)
        return LabeledSample(clips=stack_clips(clips), labels=self._labels(index, flips), index=index)


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


@dataclass(frozen=True, kw_only=True)
class PairSample(ClipSample):
    """Two clips of one video, each with its own frames and crop.

    Attributes:
        masks: bool [2, t, h, w], True = hidden, or None.
        local: small crops of the frames of the first and the second clip in turn, uint8 [L, T, H', W', C], or
            None.
    """

    masks: np.ndarray | None
    local: np.ndarray | None


@dataclass(frozen=True)
class LocalCrops:
    """Number of small crops per video, L, the transform that samples them, and their colors."""

    count: int
    transform: ClipTransform
    color: RandomColor | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"local crops {self.count}: must be at least 1, or leave them out")


@dataclass(eq=False, repr=False)
class PairClips(VideoClips[PairSample, PairBatch]):
    """Two clips of each video in a list, for methods that compare views (BYOL, iBOT); see `VideoClips`.

    Random numbers are used for the frames of both clips, the crop and colors of each, the masks, and the
    local crops, in this order.

    Attributes:
        colors: changes of the colors of the first and of the second clip; None: no change.
        mask: samples the mask of each clip; None: no masks.
        local: local crops; None: no local crops.
    """

    _: KW_ONLY
    samples_per_video: int = field(default=2, init=False)
    colors: tuple[RandomColor | None, RandomColor | None] = (None, None)
    mask: MaskDraw | None = None
    local: LocalCrops | None = None

    def _batch(self, samples: Sequence[PairSample], **common: Any) -> PairBatch:
        masks = [sample.masks for sample in samples if sample.masks is not None]
        local = [sample.local for sample in samples if sample.local is not None]
        return PairBatch(
            mask=torch.from_numpy(np.concatenate(masks)) if masks else None,
            local=join_clips(local) if local else None,  # not in the shared memory of the clips
            **common,
        )

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PairSample:
        clips = [
            _crop(clip, self.transform, color, rng) for clip, color in zip(frames, self.colors, strict=True)
        ]
        masks = None if self.mask is None else stack_clips([self.mask(rng=rng) for _ in clips])
        local = None
        if self.local is not None:
            crops = [
                _crop(frames[number % len(frames)], self.local.transform, self.local.color, rng)
                for number in range(self.local.count)
            ]
            local = stack_clips(crops)
        return PairSample(clips=stack_clips(clips), masks=masks, local=local, index=index)


def _crop(
    frames: np.ndarray, transform: ClipTransform, color: RandomColor | None, rng: np.random.Generator
) -> np.ndarray:
    clip = transform.sample(frames.shape[1], frames.shape[2], rng).apply_clip(frames)
    return clip if color is None else color.apply(clip, rng)
