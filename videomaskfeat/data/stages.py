"""Seconds of each stage that makes a sample, measured on the training's own data set in a worker process.

The data set is copied, and its reader, transform and augmentation are wrapped in ones that measure time. The
data set itself has no measuring code.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from videomaskfeat.data.batches import SharedClips
from videomaskfeat.data.clips import RecordClips, SampleKey, sample_generator
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.data.sampling import ShortVideoError
from videomaskfeat.data.timed_reader import TimedReader
from videomaskfeat.data.transforms import ClipGeometry
from videomaskfeat.data.workers import begin_reading, in_worker

STAGES = {
    "open": "open the file and read its index",
    "seek": "reach and decode the first frame",
    "decode": "decode the remaining frames",
    "resize": "crop, resize and flip",
    "augment": "change the colors, RandAugment, erasing",
    "other": "sample frames, crops and masks",
    "collate": "join the clips of a batch",
}
"""Stages of a worker process, in their order -> what each does."""
_UNSOUGHT = ("none", "opencv")  # decoders of frames in memory and of pictures, which have no key frames


class StageClock:
    """Sums the seconds of stages; a stage does not include the stages inside it.

    Attributes:
        seconds: stage -> seconds.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inner: list[float] = []  # seconds of the stages inside each stage that is being measured

    @contextmanager
    def measure(self, stage: str | None) -> Iterator[None]:
        """Add the seconds of the block to a stage; None: to no stage, also not to the one around it."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            own = seconds - self._inner.pop()
            if stage is not None:
                self.seconds[stage] += own
            if self._inner:
                self._inner[-1] += seconds

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count seconds of one stage for another, at most all of them."""
        seconds = min(seconds, self.seconds[source])
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


@dataclass(frozen=True)
class MeasuredBatch:
    """A batch from a worker.

    Attributes:
        seconds: stage -> seconds for all its clips.
        clips: number of clips; 0 if no record could be read.
        failures: path and cause of each record that could not be read.
        batch: the batch; None without clips.
    """

    seconds: dict[str, float]
    clips: int
    failures: list[tuple[str, str]]
    batch: Any


class StageMeasurement:
    """Makes batches of a data set of clips and measures their stages; picklable.

    Args:
        dataset: the training's data set.
        ahead: number of batches that a worker makes ahead.
    """

    def __init__(self, dataset: RecordClips[Any, Any], *, ahead: int = 1) -> None:
        self.dataset = dataset
        self._memory = SharedClips(ahead + 1)

    def __call__(self, keys: Sequence[SampleKey]) -> MeasuredBatch:
        """The batch of some keys; a record that cannot be read is left out."""
        clock = StageClock()
        dataset = measured_copy(self.dataset, clock)
        samples, failures = list[Any](), list[tuple[str, str]]()
        for key in keys:
            path = dataset.records[key.index].path
            rng = sample_generator(dataset.seed, key.epoch, key.index, key.turn)
            before = dict(clock.seconds)
            try:
                begin_reading(path, key.epoch, key.index, key.turn, key.index)
                with clock.measure("other"):
                    samples.append(dataset.load(key.index, rng))
            except (VideoReadError, ShortVideoError) as error:
                clock.seconds = before
                failures.append((path, getattr(error, "cause", str(error))))
        if not samples:
            return MeasuredBatch(clock.seconds, 0, failures, None)
        with clock.measure("collate"):
            batch = dataset.collate(samples, self._memory if in_worker() else None)
        return MeasuredBatch(clock.seconds, len(batch.clips), failures, batch)


def measured_copy(dataset: RecordClips[Any, Any], clock: StageClock) -> Any:
    """A copy of a data set that measures its stages while it makes the same samples."""
    measured: Any = copy.copy(dataset)
    open_record = measured.open

    def open_measured(index: int) -> Any:
        with clock.measure("open"):
            reader = open_record(index)
        wrap = _MeasuredByTime if isinstance(reader, TimedReader) else _MeasuredReader
        return wrap(reader, clock)

    measured.open = open_measured
    measured.transform = _MeasuredTransform(dataset.transform, clock)
    if getattr(measured, "augment", None) is not None:
        measured.augment = _MeasuredAugmentation(measured.augment, clock)
    if hasattr(measured, "colors"):
        measured.colors = tuple(one and _MeasuredAugmentation(one, clock) for one in measured.colors)
    if getattr(measured, "local", None) is not None:
        measured.local = replace(
            measured.local,
            transform=_MeasuredTransform(measured.local.transform, clock),
            color=measured.local.color and _MeasuredAugmentation(measured.local.color, clock),
        )
    return measured


class _MeasuredReader(VideoReader):
    """A reader whose reads count as decoding."""

    def __init__(self, reader: VideoReader, clock: StageClock) -> None:
        self._reader, self._clock = reader, clock
        self.path, self.decoder = reader.path, reader.decoder
        self.frames, self.fps = reader.frames, reader.fps

    @property
    def info(self) -> VideoInfo:
        return self._reader.info

    def close(self) -> None:
        with self._clock.measure("open"):
            self._reader.close()

    def _read(self, indices: np.ndarray) -> np.ndarray:
        with self._clock.measure("decode"):
            frames = self._reader.read(indices)
        if self._reader.decoder not in _UNSOUGHT:
            _measure_seek(self._clock, lambda: self._reader.read(indices[:1]))
        return frames


class _MeasuredByTime(TimedReader):
    """A reader of frames by time, whose reads count as decoding; it stays open."""

    def __init__(self, reader: TimedReader, clock: StageClock) -> None:
        self._reader, self._clock = reader, clock
        self.path, self.decoder = reader.path, reader.decoder

    @property
    def fps(self) -> float:
        return self._reader.fps

    @property
    def duration_seconds(self) -> float:
        return self._reader.duration_seconds

    def close(self) -> None:
        self._reader.close()

    def _iter_frames_at(self, seconds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        frames = self._reader.iter_frames_at(seconds)
        while True:
            with self._clock.measure("decode"):
                item = next(frames, None)
            if item is None:
                break
            yield item
        if self._reader.decoder not in _UNSOUGHT:
            _measure_seek(self._clock, lambda: self._reader.read_at(seconds[:1]))


def _measure_seek(clock: StageClock, read_first: Any) -> None:
    """Read the first frame of a clip again: the part of the decoding that reaches it.

    Every read goes back to the key frame before its first frame, so the second read does the same work. It is
    no part of any stage.
    """
    started = time.perf_counter()
    with clock.measure(None):
        read_first()
    clock.move(time.perf_counter() - started, "decode", "seek")


class _MeasuredTransform:
    def __init__(self, transform: Any, clock: StageClock) -> None:
        self._transform, self._clock = transform, clock

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        geometry = self._transform.sample(height, width, rng)
        values = {one.name: getattr(geometry, one.name) for one in fields(ClipGeometry)}
        return _MeasuredGeometry(**values, clock=self._clock)


@dataclass(frozen=True, kw_only=True)
class _MeasuredGeometry(ClipGeometry):
    clock: StageClock

    def apply_clip(self, frames: np.ndarray) -> np.ndarray:
        with self.clock.measure("resize"):
            return super().apply_clip(frames)


class _MeasuredAugmentation:
    """An augmentation of whole frames with their geometry, or of clips."""

    def __init__(self, augmentation: Any, clock: StageClock) -> None:
        self._augmentation, self._clock = augmentation, clock

    def apply(self, *arguments: Any) -> Any:
        with self._clock.measure("augment"):
            return self._augmentation.apply(*arguments)

    def draw(self, *arguments: Any) -> Any:
        with self._clock.measure("augment"):
            return self._augmentation.draw(*arguments)

    def sample(self, *arguments: Any) -> Any:
        with self._clock.measure("augment"):
            return self._augmentation.sample(*arguments)
