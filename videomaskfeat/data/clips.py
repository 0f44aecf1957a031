"""Data sets of clips: a record of a list -> a sample, drawn anew in each epoch -> a batch."""

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
    LabelledBatch,
    PairBatch,
    PretrainBatch,
    SharedClips,
    join_clips,
)
from videomaskfeat.data.operations import RandomColour
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import ShortVideoError, segment_indices
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import ReadingLost, begin_reading
from videomaskfeat.errors import UserError

# Tags keep the streams of one seed apart (numpy pads a seed with zeros, so (1, 2) and (1, 2, 0) are one).
_SAMPLE, _REPLACEMENT, _ORDER, _BALANCED_ORDER = 1, 2, 3, 4
_SIDE = re.compile(r"\b(?:left|right)\b")  # whole words: "upright" is no side


@dataclass(frozen=True)
class SampleKey:
    """What a worker is asked for: a record of the list in an epoch.

    turn: how often the epoch has asked for this record before; above 0 only where classes are balanced.
    skipped: records that are not tried, see `FailureCounter.skipped_records`.
    """

    epoch: int
    index: int
    turn: int = 0
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """What every data set of clips makes of a record.

    clips: uint8 [S, T, H, W, C], S samples of the video.
    index: the record they come from; the asked one, or its replacement.
    failures: the records that were tried before.
    """

    clips: np.ndarray
    index: int
    failures: tuple[Failure, ...] = ()


SampleT = TypeVar("SampleT", bound=ClipSample)
BatchT = TypeVar("BatchT")


class FrameSampler(Protocol):
    """Which frames make a clip, such as ``functools.partial(clip_indices_random, frames=16, stride=4)``."""

    def __call__(self, num_frames: int, fps: float, /, *, rng: np.random.Generator) -> np.ndarray:
        """Frame indices, int64 [T]."""
        ...


class MaskDraw(Protocol):
    """Draws one mask, such as ``functools.partial(MASKS["cube"], grid, 0.4)``."""

    def __call__(self, *, rng: np.random.Generator) -> np.ndarray:
        """bool [t, h, w], True = hidden."""
        ...


class ClipAugmentation(Protocol):
    """Changes the pixels of a clip on its way from whole frames to the crop, such as `Augmentation`."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, H, W, C], whole frames -> uint8 [T, h, w, C], cut by the geometry."""
        ...


def sample_generator(seed: int, epoch: int, index: int, turn: int = 0) -> np.random.Generator:
    """The generator that draws everything about one sample: frames, crop, flip, augmentation and mask.

    It depends on nothing but the run's seed and the `SampleKey`, so a sample is the same whichever worker or
    rank makes it, and whenever.
    """
    return _generator(_SAMPLE, seed, epoch, index, turn)


def _generator(*key: int) -> np.random.Generator:
    """A generator of a tag, a seed and so on; a turn of 0 at the end is as if it were not there."""
    return np.random.default_rng(key if key[-1] else key[:-1])


def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    """The order of a list's rows in an epoch, int64 [records]."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(records)


@dataclass(eq=False, repr=False)
class RecordClips(Dataset[SampleT], Generic[SampleT, BatchT]):
    """Clips of the records of a list; ``dataset[SampleKey(epoch, index)]`` gives a sample.

    How a record is read, and what a sample and a batch hold, is up to the classes below: `VideoClips` (a
    record is a video), `ActionClips` (a moment of one). All parts go to worker processes, so they must be
    picklable (no lambdas).

    A video that cannot be read, or is too short where that is an error, is replaced by another one, drawn by
    a generator that depends on (seed, epoch, index) alone: the stream stays the same for any number of
    workers and ranks, and one missing folder in a sorted list does not use up the tries, as it would if the
    next rows stood in. All that is drawn about the replacement, the asked sample's own generator draws.

    Attributes:
        records: the list.
        transform: draws the crop of a clip.
        seed: of everything drawn, at least 0.
        samples_per_video: clips cut from one reading of a record ("repeated sampling"), each with its own
            crop and all else that is drawn.
        tries: records to try for one sample before giving up on the list.
        unit: what a record is called in messages.

    Raises:
        UserError: a number that cannot be.
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
        """The rows of the list that an epoch takes, in its order, int64 [len(self)]."""
        return epoch_order(self.seed, epoch, len(self.records))

    def __getitem__(self, key: SampleKey) -> SampleT:
        """The sample of a record, or of its replacement.

        Raises:
            UserError: too many records in a row cannot be read.
        """
        failures: list[Failure] = []
        replacements = _generator(_REPLACEMENT, self.seed, key.epoch, key.index, key.turn)
        index = key.index
        for _ in range(self.tries):
            path = self.records[index].path
            rng = sample_generator(self.seed, key.epoch, key.index, key.turn)
            try:
                if index in key.skipped:
                    raise VideoReadError(path, "its reading cost two workers in an earlier epoch")
                begin_reading(path, key.epoch, key.index, key.turn, index)
                return replace(self._load(index, rng), failures=tuple(failures))
            except ReadingLost as error:
                failures.append(Failure(index, path, error.cause, lost_in_epoch=key.epoch))
            except VideoReadError as error:
                failures.append(Failure(index, path, error.cause))
            except ShortVideoError as error:
                failures.append(Failure(index, path, str(error)))
            index = int(replacements.integers(len(self.records)))
        last = failures[-1]
        raise UserError(
            f"{self.records.source}: {len(failures)} {self.unit}s in a row could not be read, the last "
            f"one {last.path} ({last.cause}); {self._remedy()}"
        )

    def collate(self, samples: Sequence[SampleT], memory: SharedClips | None = None) -> BatchT:
        """Join samples to a batch; clips are copied once, into ``memory`` if given."""
        return self._batch(
            samples,
            clips=join_clips([sample.clips for sample in samples], memory),
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    @abstractmethod
    def _batch(self, samples: Sequence[SampleT], **parts: Any) -> BatchT:
        """The batch of ``parts``, which all kinds have, and of what else the samples hold."""

    @abstractmethod
    def _load(self, index: int, rng: np.random.Generator) -> SampleT:
        """The sample of a record, which ``rng`` draws.

        Raises:
            VideoReadError: it cannot be read.
            ShortVideoError: the video is too short, where that is an error.
        """

    @abstractmethod
    def _remedy(self) -> str:
        """What to do where many records in a row cannot be read."""


@dataclass(eq=False, repr=False)
class VideoClips(RecordClips[SampleT, BatchT]):
    """Clips of the videos in a list, each sample from one opening of a video; see `RecordClips`.

    Attributes:
        sampler: draws the frames of a clip.
        reader: of video files: auto, decord or pyav.
    """

    _: KW_ONLY
    sampler: FrameSampler
    reader: str = "auto"

    @abstractmethod
    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> SampleT:
        """The sample of a video: ``frames`` holds a uint8 [T, H, W, C] for each clip."""

    def _load(self, index: int, rng: np.random.Generator) -> SampleT:
        return self._sample(self._read(index, rng), index, rng)

    def _read(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The frames of each clip, uint8 [T, H, W, C], from one opening of the video."""
        with open_video(self.records[index].path, self.reader) as video:
            indices = [self.sampler(video.frames, video.fps, rng=rng) for _ in range(self.samples_per_video)]
            frames = video.read(np.concatenate(indices))  # [S*T, H, W, C]
        return np.split(frames, self.samples_per_video)

    def _remedy(self) -> str:
        return (
            "check the folder that the paths start from (prefix), or scan the list with "
            f"`videomaskfeat check-data {self.records.source}`"
        )


def stack_clips(parts: list[np.ndarray]) -> np.ndarray:
    """``np.stack`` that does not copy a single part."""
    return parts[0][None] if len(parts) == 1 else np.stack(parts)


@dataclass(frozen=True, kw_only=True)
class PretrainSample(ClipSample):
    """Clips of one video, and masks bool [S, t, h, w], True = hidden."""

    masks: np.ndarray


@dataclass(eq=False, repr=False)
class PretrainClips(VideoClips[PretrainSample, PretrainBatch]):
    """Clips and masks of the videos in a list; see `VideoClips`.

    Attributes:
        mask: draws the mask of a clip; each clip of a video has its own.
    """

    _: KW_ONLY
    mask: MaskDraw

    def _batch(self, samples: Sequence[PretrainSample], **parts: Any) -> PretrainBatch:
        masks = np.concatenate([sample.masks for sample in samples])
        return PretrainBatch(mask=torch.from_numpy(masks), **parts)

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PretrainSample:
        height, width = frames[0].shape[1:3]
        clips = [self.transform.sample(height, width, rng).apply_clip(part) for part in frames]
        masks = [self.mask(rng=rng) for _ in clips]
        return PretrainSample(clips=stack_clips(clips), masks=stack_clips(masks), index=index)


@dataclass(frozen=True, kw_only=True)
class LabelledSample(ClipSample):
    """Clips of one video, and their classes, int64 [S], which differ where a flip swaps left and right."""

    labels: np.ndarray


@dataclass(eq=False, repr=False)
class LabelledClips(VideoClips[LabelledSample, LabelledBatch]):
    """Clips and classes of the videos in a list, of which every row has a label; see `VideoClips`.

    Attributes:
        augment: changes the pixels of a clip; None leaves them alone.
        flip_labels: the class that a flipped clip shows, by the class of the video, both ways round (see
            `left_right_pairs`); a class that is not in it stays what it is; None: all do.
        balanced: an epoch takes the same number of videos from each class that the list holds, give or take
            one; small classes then come several times, each time drawn anew, and of large ones a part. An
            epoch has as many videos as the list all the same.

    Raises:
        UserError: a number that cannot be, a row without a label, or a swap that goes one way only.
    """

    _: KW_ONLY
    augment: ClipAugmentation | None = None
    flip_labels: Mapping[int, int] | None = None
    balanced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _all_labels(self.records)
        pairs = self.flip_labels or {}
        for label, other in pairs.items():
            back = pairs.get(other, other)
            if back != label:
                raise UserError(
                    f"flip_labels maps {label} to {other}, and {other} to {back}; a mirror swaps classes "
                    "both ways round"
                )

    def order(self, epoch: int) -> np.ndarray:
        """The rows of the list that an epoch takes, in its order, int64 [n]; balanced, some repeat."""
        if not self.balanced:
            return super().order(epoch)
        rng = np.random.default_rng((_BALANCED_ORDER, self.seed, epoch))
        return balanced_order(_all_labels(self.records), rng)

    def _batch(self, samples: Sequence[LabelledSample], **parts: Any) -> LabelledBatch:
        labels = np.concatenate([sample.labels for sample in samples])
        return LabelledBatch(labels=torch.from_numpy(labels), **parts)

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> LabelledSample:
        label = self.records[index].label
        assert label is not None  # checked at the start
        pairs = self.flip_labels or {}
        clips, labels = [], []
        for part in frames:
            geometry = self.transform.sample(part.shape[1], part.shape[2], rng)
            if self.augment is None:
                clips.append(geometry.apply_clip(part))
            else:
                clips.append(self.augment.apply(part, geometry, rng))
            labels.append(pairs.get(label, label) if geometry.flip else label)
        return LabelledSample(clips=stack_clips(clips), labels=np.array(labels, np.int64), index=index)


def random_segments(num_frames: int, fps: float, *, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random frame from each of ``frames`` equal segments, int64 [T]: a `FrameSampler`."""
    return segment_indices(num_frames, frames=frames, rng=rng)


def check_labels(records: Records, classes: int) -> None:
    """UserError unless every row has a label that a model with so many classes can output."""
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
    """What each class becomes in a mirror: ``... left to right`` <-> ``... right to left``.

    Returns:
        number -> number, both ways round; classes that name no side are not in it.

    Raises:
        UserError: a class names a side, and no class has the mirrored name.
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
    """Rows int64 [n], the same number of each class give or take one, in random order; labels are int [n].

    The rows of a class come equally often, give or take one.
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


@dataclass(frozen=True, kw_only=True)
class PairSample(ClipSample):
    """Two clips of one video, each with its own frames and crop.

    masks: bool [2, t, h, w], True = hidden, or None.
    local: uint8 [L, T, H', W', C], small crops of the same frames, by turns of the first and the second clip;
        or None.
    """

    masks: np.ndarray | None
    local: np.ndarray | None


@dataclass(frozen=True)
class LocalCrops:
    """How many small crops a video yields besides its two clips, L, and how they are cut."""

    count: int
    transform: ClipTransform

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"local crops {self.count}: must be at least 1, or leave them out")


@dataclass(eq=False, repr=False)
class PairClips(VideoClips[PairSample, PairBatch]):
    """Two clips of each video in a list, for methods that compare views (BYOL, iBOT); see `VideoClips`.

    The sample's generator draws the frames of both clips, then crop and colours of each, then the masks, then
    the local crops.

    Attributes:
        colour: changes the colours of a finished crop; None leaves them alone.
        mask: draws the mask of a clip, each its own; None: nothing is hidden.
        local: the small crops; None: none.
    """

    _: KW_ONLY
    samples_per_video: int = field(default=2, init=False)
    colour: RandomColour | None = None
    mask: MaskDraw | None = None
    local: LocalCrops | None = None

    def _batch(self, samples: Sequence[PairSample], **parts: Any) -> PairBatch:
        masks = [sample.masks for sample in samples if sample.masks is not None]
        local = [sample.local for sample in samples if sample.local is not None]
        return PairBatch(
            mask=torch.from_numpy(np.concatenate(masks)) if masks else None,
            local=join_clips(local) if local else None,  # in memory of its own, which nothing is written over
            **parts,
        )

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PairSample:
        clips = [self._cut(part, self.transform, rng) for part in frames]
        masks = None if self.mask is None else stack_clips([self.mask(rng=rng) for _ in clips])
        local = None
        if self.local is not None:
            turns = [frames[number % len(frames)] for number in range(self.local.count)]
            local = stack_clips([self._cut(part, self.local.transform, rng) for part in turns])
        return PairSample(clips=stack_clips(clips), masks=masks, local=local, index=index)

    def _cut(self, frames: np.ndarray, transform: ClipTransform, rng: np.random.Generator) -> np.ndarray:
        """A random crop of whole frames uint8 [T, H, W, C], its colours changed."""
        clip = transform.sample(frames.shape[1], frames.shape[2], rng).apply_clip(frames)
        return clip if self.colour is None else self.colour.apply(clip, rng)
