"""Exact frames through PyAV.

Opening reads the file's packets once, without decoding, and notes each one's presentation time. That gives
the index (see ``packet_index``): frame i is the i-th packet in the order of presentation, beginning with the
first key frame (in a file cut out of a longer one nobody can decode the pictures before it) and without those
that an edit list hides. A read then jumps to the key frame before each wanted frame, decodes from there, and
recognises the wanted pictures by their time; only these are converted to RGB. Pictures that nobody asked for
and on which no other depends are not even decoded: that is why this reader is faster than decoding every
frame.

Joined recordings and several edits repeat times. There the packets are counted from the key frame on, and
given times of their own before they are decoded.

Where packets carry no trustworthy times (raw streams, AVI with B-frames), frames are counted instead: every
read decodes from the start of the file. Slow, but the same picture for the same index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from videomaskfeat.data.packet_index import (
    Joins,
    PacketIndex,
    PacketLog,
    PacketTable,
    Timing,
    complete_times,
    measure_timing,
)
from videomaskfeat.data.pyav_file import FAILURES, PyAvFile, failure_phrase
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError

_BYTE_SEEKS = ("mpegts", "mpeg")  # no index, and times may repeat: key frames are found by place
_JOINS: dict[str, Joins] = {"mpeg": "recordings", "mov": "edits", "matroska": "segments"}
STORED_DURATIONS = ("gif", "apng")
DECODING_TIMES_ALONE = ("avi", "asf")  # FFmpeg guesses the times of showing from them
_MOST_PACKETS = 1 << 22  # 38 hours at 30 per second; the index takes some 200 bytes for each
_PACKETS_TO_KEY = 64  # read on from a jump by place, before the packets are counted from the start instead


class PyAvReader(PyAvFile, VideoReader):
    """Reads any file that FFmpeg reads.

    PyAV 18.1 keeps 0.5 to 5.9 kB of every file that was opened, for good, depending on the file: loaders
    renew workers whose memory has grown.
    """

    decoder = "pyav"
    timing: Timing
    seconds: np.ndarray | None
    """When each frame is shown, float64 [N] after the file's first packet; None if it has no times."""

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
            packets = self._read_packets()
            self._index = None if self._guesses_times() else packets.index()
            ticks = self._count(packets) if self._index is None else self._shown_ticks(packets, self._index)
            if not self.frames:
                raise VideoReadError(path, "no frame can be decoded")
        except BaseException:
            self.close()
            raise
        self._take_times(ticks, packets.last_duration())

    @property
    def info(self) -> VideoInfo:
        """All facts; the first look decodes the first frame, which knows the rotation."""
        if self._info is None:
            height, width = self._read(np.zeros(1, np.int64)).shape[1:3]
            self._info = VideoInfo(
                path=self.path,
                frames=self.frames,
                fps=self.fps,
                duration_seconds=self.timing.duration_seconds,
                width=width,
                height=height,
                rotation_degrees=self.rotation_degrees,
                mirrored=self.mirrored,
                codec=self._stream.codec_context.name,
                variable_frame_rate=self.timing.is_variable,
            )
        return self._info

    @property
    def counts_steadily(self) -> bool:
        """Whether frames can only be counted, and come at a steady rate."""
        return self._index is None and not self.timing.is_variable

    def _read_packets(self) -> PacketTable:
        """All packets of the file.

        Raises:
            VideoReadError: the file is damaged, or has packets and no key frame.
        """
        form = self._container.format.name
        joins: Joins = next((kind for name, kind in _JOINS.items() if form.startswith(name)), "none")
        second = float(1 / self._stream.time_base) if self._stream.time_base else 1.0
        log = PacketLog(second=second, joins=joins)
        try:
            for packet in self._despite_stalls(self._packets):
                log.add(packet)
                if len(log) > _MOST_PACKETS:
                    raise VideoReadError(self.path, f"more than {_MOST_PACKETS:,} frames")
        except VideoReadError as error:
            if not isinstance(error.__cause__, FAILURES):
                raise
            raise VideoReadError(
                self.path, f"damaged after frame {len(log)} ({failure_phrase(error.__cause__)})"
            ) from error
        table = log.close()
        damaged = table.first_damage()
        if damaged is not None:
            raise VideoReadError(self.path, f"truncated or damaged after frame {damaged}")
        if len(log) and not table.keys.any():
            raise VideoReadError(self.path, f"no key frame in {len(log)} frames")
        return table

    def _shown_ticks(self, packets: PacketTable, index: PacketIndex) -> np.ndarray:
        """When each frame is shown, int64 [N] ticks after the first packet."""
        self.frames = len(index.marks)
        if self._container.format.name in DECODING_TIMES_ALONE:
            due = packets.due_ticks()
            if due is not None and len(due) >= self.frames:
                return due[-self.frames :]
        return index.ticks

    def _count(self, packets: PacketTable) -> np.ndarray | None:
        """Decode everything to count the frames; the ticks at which they are shown, None if unknown."""
        times = [frame.pts for frame in self._despite_stalls(self._all_frames)]
        self.frames = len(times)
        if self._guesses_times():
            due = packets.due_ticks()
            return None if due is None or len(due) < self.frames else due[len(due) - self.frames :]
        return complete_times(times)

    def _take_times(self, ticks: np.ndarray | None, last: int) -> None:
        """Set the timing, by the ticks at which the frames are shown; None: by the stated rate alone."""
        average, guessed = float(self._stream.average_rate or 0), float(self._stream.guessed_rate or 0)
        tick = float(self._stream.time_base or 0)
        if ticks is None or not tick:
            # Of raw streams FFmpeg's average is a default of 25; the other is what the codec's header states.
            stated = guessed or average
            self.seconds = None
            self.timing = Timing(stated, self.frames / stated if stated else 0.0, False)
        else:
            self.seconds = ticks * tick
            self.timing = measure_timing(
                self.seconds,
                stated_fps=average or guessed,
                tick=tick,
                last=last * tick,
                last_is_stored=self._container.format.name in STORED_DURATIONS,
            )
        self.fps = self.timing.fps

    def _read(self, indices: np.ndarray) -> np.ndarray:
        unique = np.unique(indices)
        missing = set(unique.tolist())
        clip: np.ndarray | None = None
        for index, frame in self._despite_stalls(lambda: self._decode(unique)):
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
        for index, frame in self._despite_stalls(lambda: self._decode(wanted)):
            missing.discard(index)
            yield index, self._picture(frame)
        if missing:
            raise VideoReadError(self.path, f"frame {min(missing)} of {self.frames} cannot be decoded")

    def _decode(self, indices: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at ``indices`` (ascending, each once) that can be decoded, with their indices."""
        if self._index is None:
            wanted = set(indices.tolist())
            for count, frame in enumerate(self._all_frames()):
                if count in wanted:
                    yield count, frame
                if count == indices[-1]:
                    return
            return
        times = self._index.marks[indices]
        number = dict(zip(times.tolist(), indices.tolist(), strict=True))
        starts = np.searchsorted(self._index.key_marks, times, side="right") - 1
        for start in np.unique(starts):
            wanted = set(times[starts == start].tolist())
            # A key frame of an intra refresh gives whole pictures only later: then from the key frame before.
            for key in range(start, -1, -1):
                for frame in self._decode_from(int(self._index.key_marks[key]), wanted):
                    wanted.discard(frame.pts)
                    yield number[frame.pts], frame
                if not wanted:
                    break

    def _decode_from(self, key_time: int, wanted: set[int]) -> Iterator[VideoFrame]:
        """Decode from a key frame on; the frames with ``wanted`` times."""
        return self._decode_wanted(self._packets_from(key_time), wanted)

    def _packets_from(self, key_time: int) -> Iterator[Packet]:
        """The packets from the key frame with this mark on, wherever the container's own seek lands."""
        index = self._index
        assert index is not None  # only then there are marks
        number = int(np.searchsorted(index.key_marks, key_time))
        place, time = int(index.key_packets[number]), int(index.key_times[number])
        packets = self._jump(index, place, time)
        if packets is None:  # not seekable, or landed too late (transport streams do)
            self._reopen()
            packets = itertools.islice(self._packets(), place, None)
        if index.packet_marks is None:
            yield from packets
            return
        for mark, packet in zip(index.packet_marks[place:].tolist(), packets, strict=False):
            packet.pts = mark
            yield packet

    def _jump(self, index: PacketIndex, place: int, time: int) -> Iterator[Packet] | None:
        """The packets from a key frame on, by its place among the packets and its time; None: not found."""
        by_byte = self._container.format.name in _BYTE_SEEKS
        if index.packet_marks is not None and not by_byte:
            return None  # times repeat, so a jump to one may lead anywhere
        try:
            if by_byte:
                known = index.positions[: place + 1]
                start = int(known[known >= 0][-1]) if (known >= 0).any() else 0
                self._container.seek(start, unsupported_byte_offset=True)
                packets = self._packets()
                near = itertools.islice(packets, _PACKETS_TO_KEY)
                first = next((p for p in near if p.is_keyframe and p.pts == time), None)
            else:
                self._container.seek(time, stream=self._stream)
                packets = self._packets()
                first = next((p for p in packets if p.is_keyframe and (p.pts or 0) >= time), None)
        except (*FAILURES, VideoReadError):
            return None
        return None if first is None or first.pts != time else itertools.chain([first], packets)
