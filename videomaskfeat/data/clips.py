"""Datasets of training clips: record of a list -> sample, random in each epoch -> batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import (
    Failure,
    PretrainBatch,
    SharedClips,
    count_hidden,
    join_clips,
)
from videomaskfeat.data.reader import VideoReader, VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import ShortVideoError
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform
from videomaskfeat.data.video import open_from
from videomaskfeat.data.workers import ReadingLost, begin_reading
from videomaskfeat.errors import UserError

if TYPE_CHECKING:
    from videomaskfeat.data.memory import VideoMemory
    from videomaskfeat.data.uncropped import UncroppedClip

# Tags separate the random streams of one seed (numpy pads a seed with zeros, so (1, 2) equals (1, 2, 0)).
_SAMPLE, _REPLACEMENT, _ORDER, BALANCED_ORDER = 1, 2, 3, 4


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
        clips: uint8 [S, T, H, W, C], S clips of the video; or S uncropped clips.
        index: index of the record, which may be a replacement.
        failures: records that could not be read.
    """

    clips: np.ndarray | Sequence[UncroppedClip]
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
    """Samples one mask, such as ``functools.partial(cube, grid, 0.4)``."""

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
        if len(self.records) == 1:
            raise UserError(
                f"{self.records.source}: its only {self.unit} could not be read: {last.path} ({last.cause}); "
                f"{self._remedy()}"
            )
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
        reader: reader of video files, see `open_video`.
        memory: decoded videos, which are not read from their files; samples are the same without it.
        uncropped: whether batches have `UncroppedClips`, which the device crops and augments.
    """

    _: KW_ONLY
    sampler: FrameSampler
    reader: str = "auto"
    memory: VideoMemory | None = None
    uncropped: bool = False

    @abstractmethod
    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> SampleT:
        """Build the sample of a video from the frames of each clip, uint8 [T, H, W, C]."""

    def open(self, index: int) -> VideoReader:
        """The open video of a record; raises VideoReadError."""
        return open_from(self.memory, self.records[index].path, self.reader)

    def _load(self, index: int, rng: np.random.Generator) -> SampleT:
        with self.open(index) as video:
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
        return PretrainBatch(mask=torch.from_numpy(masks), hidden_cells=count_hidden(masks), **common)

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PretrainSample:
        height, width = frames[0].shape[1:3]
        geometries = [self.transform.sample(height, width, rng) for _ in frames]
        masks = [self.mask(rng=rng) for _ in frames]
        if self.uncropped:
            from videomaskfeat.data.uncropped import crop_later

            clips: Any = crop_later(frames, geometries)
        else:
            clips = stack_clips([one.apply_clip(clip) for one, clip in zip(geometries, frames, strict=True)])
        return PretrainSample(clips=clips, masks=stack_clips(masks), index=index)
