"""Data sets of clips: a record of a list -> frames, and, for pre-training, -> clips and their masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import Failure, PretrainBatch, SharedClips, join_clips
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.reading import ReadingLost, begin_reading
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import ShortVideoError
from videomaskfeat.data.transforms import ClipTransform
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError

__all__ = [
    "BatchT",
    "ClipSample",
    "Failure",
    "FrameSampler",
    "MaskDraw",
    "PretrainClips",
    "PretrainSample",
    "RecordClips",
    "SampleKey",
    "SampleT",
    "VideoClips",
    "epoch_order",
    "sample_generator",
    "stack_clips",
]

# Tags keep the streams of one seed apart (numpy pads a seed with zeros, so (1, 2) and (1, 2, 0) are one).
_SAMPLE, _REPLACEMENT, _ORDER = 1, 2, 3


@dataclass(frozen=True)
class SampleKey:
    """What a worker is asked for: a record of the list in an epoch.

    turn: how often the epoch has asked for this record before; above 0 only where classes are balanced.
    given_up: records that are not tried, see `FailureCounter.given_up`.
    """

    epoch: int
    index: int
    turn: int = 0
    given_up: frozenset[int] = frozenset()


class ClipSample(Protocol):
    """What every data set of clips makes of a video."""

    @property
    def clips(self) -> np.ndarray:
        """uint8 [S, T, H, W, C], S samples of the video."""
        ...

    @property
    def index(self) -> int:
        """The record they come from; the asked one, or its replacement."""
        ...

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The records that were tried before."""
        ...


SampleT = TypeVar("SampleT", bound=ClipSample)
BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class PretrainSample:
    """Clips of one video.

    clips: uint8 [S, T, H, W, C], S samples of the video.
    masks: bool [S, t, h, w], True = hidden.
    index: the record they come from; the asked one, or its replacement.
    failures: the records that were tried before.
    """

    clips: np.ndarray
    masks: np.ndarray
    index: int
    failures: tuple[Failure, ...] = ()


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


def sample_generator(seed: int, epoch: int, index: int, turn: int = 0) -> np.random.Generator:
    """The generator that draws everything about one sample: frames, crop, flip, augmentation and mask.

    It depends on nothing else, so a sample is the same whichever worker or rank makes it, and whenever.

    Args:
        seed: of the run, at least 0.
        epoch: from 0.
        index: row of the list, from 0.
        turn: as in `SampleKey`.
    """
    return _generator(_SAMPLE, seed, epoch, index, turn)


def _generator(*key: int) -> np.random.Generator:
    """A generator of a tag, a seed and so on; a turn of 0 at the end is as if it were not there."""
    return np.random.default_rng(key if key[-1] else key[:-1])


def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    """The order of a list's rows in an epoch, int64 [records]."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(records)


class RecordClips(Dataset[SampleT], Generic[SampleT, BatchT]):
    """Clips of the records of a list; ``dataset[SampleKey(epoch, index)]`` gives a sample.

    How a record is read, what a sample holds, and how samples become a batch, is up to the classes below:
    `VideoClips` (a record is a video), `ActionClips` (a moment of one).

    A video that cannot be read, or is too short where that is an error, is replaced by another one, drawn by
    a generator that depends on (seed, epoch, index) alone: the stream stays the same for any number of
    workers and ranks, and one missing folder in a sorted list does not use up the tries, as it would if the
    next rows stood in. All that is drawn about the replacement, the asked sample's own generator draws.

    Attributes:
        unit: what a record is called in messages.
    """

    unit = "video"

    def __init__(
        self,
        records: Records,
        *,
        transform: ClipTransform,
        seed: int = 0,
        samples_per_video: int = 1,
        tries: int = 10,
    ) -> None:
        """Keep the parts. All of them go to worker processes, so they must be picklable (no lambdas).

        Args:
            records: the list.
            transform: draws the crop of a clip.
            seed: of everything drawn, at least 0.
            samples_per_video: clips cut from one reading of a record ("repeated sampling"), each with its own
                crop and all else that is drawn.
            tries: records to try for one sample before giving up on the list.

        Raises:
            UserError: a number that cannot be.
        """
        for argument, value, least in (
            ("seed", seed, 0),
            ("samples_per_video", samples_per_video, 1),
            ("tries", tries, 1),
        ):
            if value < least:
                raise UserError(f"{argument}={value}: must be at least {least}")
        self.records = records
        self.seed = seed
        self.samples_per_video = samples_per_video
        self._transform = transform
        self._tries = tries

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
        for _ in range(self._tries):
            path = self.records[index].path
            rng = sample_generator(self.seed, key.epoch, key.index, key.turn)
            try:
                if index in key.given_up:
                    raise VideoReadError(path, "its reading cost two workers in an earlier epoch")
                begin_reading(path, key.epoch, key.index, key.turn, index)
                return self._load(index, tuple(failures), rng)
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

    @abstractmethod
    def collate(self, samples: Sequence[SampleT], memory: SharedClips | None = None) -> BatchT:
        """Join samples to a batch whose clips lie in ``memory``; None takes memory of their own."""

    @abstractmethod
    def _load(self, index: int, failures: tuple[Failure, ...], rng: np.random.Generator) -> SampleT:
        """The sample of a record, which ``rng`` draws.

        Raises:
            VideoReadError: it cannot be read.
            ShortVideoError: the video is too short, where that is an error.
        """

    @abstractmethod
    def _remedy(self) -> str:
        """What to do where many records in a row cannot be read."""


class VideoClips(RecordClips[SampleT, BatchT]):
    """Clips of the videos in a list: `PretrainClips`, `LabelledClips`."""

    def __init__(
        self,
        records: Records,
        *,
        sampler: FrameSampler,
        transform: ClipTransform,
        reader: str = "auto",
        seed: int = 0,
        samples_per_video: int = 1,
        tries: int = 10,
    ) -> None:
        """Keep the parts, as `RecordClips` does.

        Args:
            records, transform, seed, tries: see `RecordClips`.
            sampler: draws the frames of a clip.
            reader: of video files: auto, decord or pyav.
            samples_per_video: clips cut from one opening of a video ("repeated sampling"), each with its own
                frames, crop and all else that is drawn.

        Raises:
            UserError: a number that cannot be.
        """
        super().__init__(
            records, transform=transform, seed=seed, samples_per_video=samples_per_video, tries=tries
        )
        self._sampler, self._reader = sampler, reader

    @abstractmethod
    def _sample(
        self,
        frames: list[np.ndarray],
        index: int,
        failures: tuple[Failure, ...],
        rng: np.random.Generator,
    ) -> SampleT:
        """The sample of a video: ``frames`` holds a uint8 [T, H, W, C] for each clip."""

    def _load(self, index: int, failures: tuple[Failure, ...], rng: np.random.Generator) -> SampleT:
        return self._sample(self._read(index, rng), index, failures, rng)

    def _read(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The frames of each clip, uint8 [T, H, W, C], from one opening of the video."""
        with open_video(self.records[index].path, self._reader) as video:
            indices = [self._sampler(video.frames, video.fps, rng=rng) for _ in range(self.samples_per_video)]
            frames = video.read(np.concatenate(indices))  # [S*T, H, W, C]
        return np.split(frames, self.samples_per_video)

    def _remedy(self) -> str:
        return (
            "check the folder that the paths start from (prefix), or scan the list with "
            f"`videomaskfeat check-data {self.records.source}`"
        )


class PretrainClips(VideoClips[PretrainSample, PretrainBatch]):
    """Clips and masks of the videos in a list."""

    def __init__(
        self,
        records: Records,
        *,
        sampler: FrameSampler,
        transform: ClipTransform,
        mask: MaskDraw,
        reader: str = "auto",
        seed: int = 0,
        samples_per_video: int = 1,
        tries: int = 10,
    ) -> None:
        """Keep the parts, as `VideoClips` does.

        Args:
            records, sampler, transform, reader, seed, samples_per_video, tries: see `VideoClips`.
            mask: draws the mask of a clip; each clip of a video has its own.

        Raises:
            UserError: a number that cannot be.
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
        self._mask = mask

    def collate(self, samples: Sequence[PretrainSample], memory: SharedClips | None = None) -> PretrainBatch:
        """Join samples; clips are copied once, in a worker straight into its shared memory."""
        return PretrainBatch(
            clips=join_clips([sample.clips for sample in samples], memory),
            mask=torch.from_numpy(np.concatenate([sample.masks for sample in samples])),
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    def _sample(
        self,
        frames: list[np.ndarray],
        index: int,
        failures: tuple[Failure, ...],
        rng: np.random.Generator,
    ) -> PretrainSample:
        height, width = frames[0].shape[1:3]
        clips = [self._transform.sample(height, width, rng).apply_clip(part) for part in frames]
        masks = [self._mask(rng=rng) for _ in clips]
        return PretrainSample(stack_clips(clips), stack_clips(masks), index, failures)


def stack_clips(parts: list[np.ndarray]) -> np.ndarray:
    """``np.stack`` that does not copy a single part."""
    return parts[0][None] if len(parts) == 1 else np.stack(parts)
