"""The pre-training data set: a record of a list -> clips and their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import ShortVideoError
from videomaskfeat.data.transforms import ClipTransform
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError

# Tags keep the streams of one seed apart (numpy pads a seed with zeros, so (1, 2) and (1, 2, 0) are one).
_SAMPLE, _REPLACEMENT, _ORDER = 1, 2, 3


@dataclass(frozen=True)
class SampleKey:
    """What a worker is asked for: a record of the list in an epoch."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Failure:
    """A record that could not be read: its row in the list from 0, its path, the cause in a few words."""

    index: int
    path: str
    cause: str


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


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that draws everything about one sample: frames, crop, flip and mask.

    It depends on nothing else, so a sample is the same whichever worker or rank makes it, and whenever.

    Args:
        seed: of the run, at least 0.
        epoch: from 0.
        index: row of the list, from 0.
    """
    return np.random.default_rng((_SAMPLE, seed, epoch, index))


def epoch_order(seed: int, epoch: int, records: int) -> np.ndarray:
    """The order of a list's rows in an epoch, int64 [records]."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(records)


class PretrainClips(Dataset[PretrainSample]):
    """Clips and masks of the videos in a list; ``dataset[SampleKey(epoch, index)]`` gives a sample.

    A video that cannot be read, or is too short where that is an error, is replaced by another one, drawn by
    a generator that depends on (seed, epoch, index) alone: the stream stays the same for any number of
    workers and ranks, and one missing folder in a sorted list does not use up the tries, as it would if the
    next rows stood in. The replacement's frames, crop and mask are drawn by the asked sample's own generator.
    """

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
        """Keep the parts. All of them go to worker processes, so they must be picklable (no lambdas).

        Args:
            records: the list.
            sampler: draws the frames of a clip.
            transform: draws the crop of a clip.
            mask: draws the mask of a clip.
            reader: of video files: auto, decord or pyav.
            seed: of everything drawn, at least 0.
            samples_per_video: clips cut from one opening of a video ("repeated sampling"), each with its own
                frames, crop and mask.
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
        self._sampler, self._transform, self._mask = sampler, transform, mask
        self._tries = tries
        self._reader = reader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> PretrainSample:
        """The sample of a record, or of its replacement.

        Raises:
            UserError: too many records in a row cannot be read.
        """
        failures: list[Failure] = []
        replacements = np.random.default_rng((_REPLACEMENT, self.seed, key.epoch, key.index))
        index = key.index
        for _ in range(self._tries):
            path = self.records[index].path
            rng = sample_generator(self.seed, key.epoch, key.index)
            try:
                clips, masks = self._load(path, rng)
            except VideoReadError as error:
                failures.append(Failure(index, path, error.cause))
            except ShortVideoError as error:
                failures.append(Failure(index, path, str(error)))
            else:
                return PretrainSample(clips, masks, index, tuple(failures))
            index = int(replacements.integers(len(self.records)))
        last = failures[-1]
        raise UserError(
            f"{self.records.source}: {len(failures)} videos in a row could not be read, the last one "
            f"{last.path} ({last.cause}); check the folder that the paths start from (prefix), or scan the "
            f"list with `videomaskfeat check-data {self.records.source}`"
        )

    def _load(self, path: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Clips uint8 [S, T, h, w, C] and masks bool [S, t', h', w'] from one opening of a video."""
        with open_video(path, self._reader) as video:
            indices = [self._sampler(video.frames, video.fps, rng=rng) for _ in range(self.samples_per_video)]
            frames = video.read(np.concatenate(indices))  # [S*T, H, W, C]
        clips = [
            self._transform.sample(frames.shape[1], frames.shape[2], rng).apply_clip(part)
            for part in np.split(frames, self.samples_per_video)
        ]
        masks = [self._mask(rng=rng) for _ in clips]
        return _stack(clips), _stack(masks)


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """``np.stack`` that does not copy a single part."""
    return parts[0][None] if len(parts) == 1 else np.stack(parts)
