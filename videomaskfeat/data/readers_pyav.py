"""Exact frames through PyAV.

Opening reads the file's packets once, without decoding, and notes each one's presentation time. That gives
the index: frame i is the i-th packet in the order of presentation, beginning with the first key frame (in a
file cut out of a longer one nobody can decode the pictures before it) and without those that an edit list
hides. A read then jumps to the key frame before each wanted frame, decodes from there, and recognises the
wanted pictures by their time; only these are converted to RGB. Pictures that nobody asked for and on which no
other depends are not even decoded: that is why this reader is faster than decoding every frame.

Where packets carry no trustworthy times (raw streams, AVI with B-frames), frames are counted instead: every
read decodes from the start of the file. Slow, but the same picture for the same index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from videomaskfeat.data.pyav_file import PyAvFile, decoded
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError


@dataclass(frozen=True)
class _FrameIndex:
    """Presentation times of all decodable frames and of the key frames, ascending, in stream ticks, int64."""

    times: np.ndarray
    key_times: np.ndarray


class PyAvReader(PyAvFile, VideoReader):
    """Reads any file that FFmpeg reads.

    PyAV 18.1 keeps 0.5 to 5.9 kB of every file that was opened, for good, depending on the file: loaders
    renew workers whose memory has grown.
    """

    decoder = "pyav"

    def __init__(self, path: str, *, threads: int = 1) -> None:
        """Open and index a local file.

        Args:
            path: of the file.
            threads: for decoding; 1 suits loader workers, which are processes already. 0 = all cores.

        Raises:
            VideoReadError: the file is missing, empty, damaged, or holds no pictures.
        """
        super().__init__(path, threads=threads)
        self._info: VideoInfo | None = None
        try:
            self._index = self._make_index()
            if self._index is None:
                self.frames = sum(1 for _ in self._count_frames())
            else:
                self.frames = len(self._index.times)
            if not self.frames:
                raise VideoReadError(path, "no frame can be decoded")
        except BaseException:
            self.close()
            raise
        self.fps = self._frame_rate()

    @property
    def info(self) -> VideoInfo:
        """All facts; the first look decodes the first frame, which knows the rotation."""
        if self._info is None:
            height, width = self._read(np.zeros(1, np.int64)).shape[1:3]
            self._info = VideoInfo(
                path=self.path,
                frames=self.frames,
                fps=self.fps,
                duration_seconds=self._duration(),
                width=width,
                height=height,
                rotation_degrees=-90 * self._quarter_turns % 360,
                codec=self._stream.codec_context.name,
                variable_frame_rate=self._has_variable_rate(),
            )
        return self._info

    def _make_index(self) -> _FrameIndex | None:
        """None where packet times cannot be trusted."""
        times: list[int | None] = []
        keys: list[int | None] = []
        packets = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt and packet.size:
                    raise VideoReadError(self.path, f"truncated or damaged after frame {packets}")
                if not packet.size:
                    continue
                packets += 1
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if keys and not packet.is_discard:
                    times.append(packet.pts)
        except av.error.FFmpegError as error:
            raise VideoReadError(self.path, f"damaged after frame {packets} ({error.strerror})") from error
        if not keys and packets:
            raise VideoReadError(self.path, f"no key frame in {packets} frames")
        if self._guesses_times():
            return None
        if None in times or None in keys or len(set(times)) < len(times):
            return None
        key_times = np.sort(np.array(keys, np.int64))
        shown = np.sort(np.array(times, np.int64))
        # Pictures that come after the first key frame in the file but are shown before it lean on lost ones.
        return _FrameIndex(shown[shown >= key_times[0]] if keys else shown, key_times)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        unique = np.unique(indices)
        missing = set(unique.tolist())
        clip: np.ndarray | None = None
        for index, frame in self._decode(unique):
            picture = self._picture(frame)
            if clip is None:
                clip = np.empty((len(indices), *picture.shape), np.uint8)
            for place in np.flatnonzero(indices == index):
                clip[place] = picture
            missing.discard(index)
        if clip is None or missing:
            raise VideoReadError(self.path, f"frame {min(missing)} of {self.frames} cannot be decoded")
        return clip

    def _each(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        missing = set(wanted.tolist())
        for index, frame in self._decode(wanted):
            missing.discard(index)
            yield index, self._picture(frame)
        if missing:
            raise VideoReadError(self.path, f"frame {min(missing)} of {self.frames} cannot be decoded")

    def _decode(self, indices: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at ``indices`` (ascending, each once) that can be decoded, with their indices."""
        if self._index is None:
            wanted = set(indices.tolist())
            for count, frame in enumerate(self._count_frames()):
                if count in wanted:
                    yield count, frame
                if count == indices[-1]:
                    return
            return
        times = self._index.times[indices]
        number = dict(zip(times.tolist(), indices.tolist(), strict=True))
        starts = np.searchsorted(self._index.key_times, times, side="right") - 1
        for start in np.unique(starts):
            wanted = set(times[starts == start].tolist())
            # A key frame of an intra refresh gives whole pictures only later: then from the key frame before.
            for key in range(start, -1, -1):
                for frame in self._decode_from(int(self._index.key_times[key]), wanted):
                    wanted.discard(frame.pts)
                    yield number[frame.pts], frame
                if not wanted:
                    break

    def _decode_from(self, key_time: int, wanted: set[int]) -> Iterator[VideoFrame]:
        """Decode from a key frame on; the frames with ``wanted`` times."""
        return self._decode_wanted(self._packets_from(key_time), wanted)

    def _packets_from(self, key_time: int) -> Iterator[Packet]:
        """The packets from the key frame with this time on, wherever the container's own seek lands."""
        try:
            self._container.seek(key_time, stream=self._stream)
            packets = self._packets()
            first = next((p for p in packets if p.is_keyframe and (p.pts or 0) >= key_time), None)
        except av.error.FFmpegError:
            first = None
        if first is None or first.pts != key_time:  # not seekable, or landed too late (transport streams do)
            self._reopen()
            packets = self._packets()
            first = next(p for p in packets if p.pts == key_time)
        yield first
        yield from packets

    def _count_frames(self) -> Iterator[VideoFrame]:
        """All decodable frames from the start of the file, in the order in which the decoder shows them."""
        self._reopen()
        for packet in self._packets():
            yield from decoded(self._stream, packet)
        yield from decoded(self._stream, None)

    def _frame_rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if rate:
            return float(rate)
        span = self._span_seconds()
        return (self.frames - 1) / span if span > 0 else 0.0

    def _duration(self) -> float:
        last = 1.0 / self.fps if self.fps > 0 else 0.0
        span = self._span_seconds()
        return span + last if span > 0 else self.frames * last

    def _span_seconds(self) -> float:
        """From the first picture's start to the last one's; 0 where times are unknown."""
        if self._index is None or self._stream.time_base is None:
            return 0.0
        return float((self._index.times[-1] - self._index.times[0]) * self._stream.time_base)

    def _has_variable_rate(self) -> bool:
        if self._index is None or self.frames < 3:
            return False
        gaps = np.diff(self._index.times)
        # Containers round times to their clock: Matroska's 30 fps is gaps of 33 and 34 ms.
        allowed = max(1.0, 0.1 * float(np.median(gaps)))
        return bool(np.abs(gaps - np.median(gaps)).max() > allowed)
