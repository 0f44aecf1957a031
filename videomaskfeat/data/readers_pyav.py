"""Exact RGB frames of any file that FFmpeg reads, equal to those of its command line.

Every frame passes through the filters that ``ffmpeg -i FILE -pix_fmt rgb24`` inserts: the display matrix as
flips and rotations, then the scaler with its default flags. PyAV's own conversion differs by up to 120 levels
for 10 bits per channel, and by up to 255 for interlaced frames, because it converts each field alone.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videomaskfeat.data.containers import declares_too_much
from videomaskfeat.data.packet_index import (
    Joins,
    PacketIndex,
    PacketLog,
    PacketTable,
    complete_times,
)
from videomaskfeat.data.reader import NOT_REGULAR, VideoInfo, VideoReader, VideoReadError
from videomaskfeat.data.timing import Timing, measure_timing
from videomaskfeat.io import ffmpeg_url, is_file, missing_cause

# FFmpeg's numbers of the color matrices that its scaler supports; for any other it uses its default, BT.601.
_COLOR_MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))


@dataclass(frozen=True)
class Orientation:
    """How the displayed picture is made from the stored one.

    Attributes:
        rotation_degrees: clockwise rotation, 0..359.
        mirrored: whether left and right are exchanged before the rotation.
        filters: FFmpeg's filters that do both, as (name, arguments).
    """

    rotation_degrees: int
    mirrored: bool
    filters: tuple[tuple[str, str], ...]


def display_orientation(matrix: bytes | None) -> Orientation:
    """The orientation of a display matrix (nine native 32-bit integers), as in FFmpeg's command line."""
    a, b, _, c, d = struct.unpack_from("5i", matrix or struct.pack("5i", 1, 0, 0, 0, 1))
    if not (a or c) or not (b or d):
        return Orientation(0, False, ())
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
    flip = ("hflip", "")
    if degrees == 0:
        return Orientation(180, True, (("vflip", ""),)) if d < 0 else Orientation(0, False, ())
    if degrees == 90:
        if c > 0:
            return Orientation(270, True, (("transpose", "cclock_flip"),))
        return Orientation(90, False, (("transpose", "clock"),))
    if degrees == 180:
        flips = (flip,) * (a < 0) + (("vflip", ""),) * (d < 0)
        return Orientation(0, True, flips) if len(flips) == 1 and a < 0 else Orientation(180, False, flips)
    if degrees == 270:
        if c < 0:
            return Orientation(90, True, (("transpose", "clock_flip"),))
        return Orientation(270, False, (("transpose", "cclock"),))
    return Orientation(degrees, False, (("rotate", f"{degrees}*PI/180"),))


def frame_kind(frame: VideoFrame) -> tuple[object, ...]:
    """The properties that a converter depends on."""
    return frame.format.name, frame.width, frame.height, int(frame.colorspace), _display_matrix(frame)


def _display_matrix(frame: VideoFrame) -> bytes | None:
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return None if matrix is None else bytes(matrix)


class RgbConverter:
    """Converts frames of one kind (see ``frame_kind``).

    Args:
        frame: the first frame of its kind.
        size: (width, height) before the rotation.

    Attributes:
        kind: kind of the frames.
        orientation: orientation of the frames.

    Raises:
        av.error.FFmpegError, ValueError: FFmpeg cannot convert these frames.
    """

    def __init__(self, frame: VideoFrame, size: tuple[int, int]) -> None:
        self.kind = frame_kind(frame)
        self.orientation = display_orientation(_display_matrix(frame))
        # The scaler rejects frames with unknown values here, although it does not use these values.
        colors = "color_primaries=unknown:color_trc=unknown"
        if int(frame.colorspace) not in _COLOR_MATRICES:
            colors += ":colorspace=unknown"
        width, height = size
        if any(name == "transpose" for name, _ in self.orientation.filters):
            width, height = height, width
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 1000),
            )
        ]
        for name, arguments in (
            ("setparams", colors),
            *self.orientation.filters,
            ("scale", f"{width}:{height}"),
            ("format", "rgb24"),
            ("buffersink", ""),
        ):
            nodes.append(graph.add(name, arguments or None))
        graph.link_nodes(*nodes).configure()
        self._graph, self._source, self._sink = graph, nodes[0], nodes[-1]

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """RGB as displayed, uint8 [H, W, 3]: a view of the filter's output."""
        self._source.push(frame)
        rgb = self._sink.pull()
        assert isinstance(rgb, VideoFrame)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, -1)  # [H, bytes per row]
        return rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)


T = TypeVar("T")
MOST_PIXELS = 8192 * 4352  # per picture: the maximum of level 6.2 of H.264 and H.265
# Formats that refer to other files, and inputs that are not files: reading them may block forever.
_REFERRING_FORMATS = frozenset(
    ("concat", "dash", "hls", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "tty", "webm_dash_manifest")
)
_OPTIONS = {
    "max_pixels": str(MOST_PIXELS),
    "max_streams": "100",
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - _REFERRING_FORMATS)),
    "pattern_type": "none",  # %03d.tga is the name of a file
}
_MOST_SECONDS = 4.0  # for opening, and for reading a packet
_BUSY_SECONDS = 2.0  # of processor time: the file is the cause; with less, the process was stopped or waited
_MOST_STALLS = 15  # per read
_SPARSE_BYTES = 1 << 30  # larger files are checked for holes, in which FFmpeg may search for a next picture
_TIMEOUT_CAUSE = f"nothing to read within {_MOST_SECONDS:g} s"
# Errors of PyAV on damaged files: its own, and Python's if a count exceeds a type or the memory.
FAILURES = (av.error.FFmpegError, OSError, OverflowError, MemoryError)


class Stalled(VideoReadError):
    """A read timed out, and not because of the file: it can be tried again."""


class _CallTimer:
    """The time of one call into FFmpeg.

    FFmpeg limits the wall time, which can also pass because the process is stopped, or waits for a processor
    or a slow disk. The processor time of the thread distinguishes these cases. After a timeout FFmpeg may
    report an error, the end of the file or a part of a packet, so results after the limit are not used.
    """

    def __init__(self) -> None:
        self._started, self._busy = time.monotonic(), time.thread_time()

    def check(self, path: str) -> None:
        """After the limit raise Stalled, or VideoReadError if the file is the cause."""
        if time.monotonic() - self._started > _MOST_SECONDS:
            busy = time.thread_time() - self._busy >= _BUSY_SECONDS
            error = VideoReadError if busy else Stalled
            raise error(path, f"damaged, or on a disk that is too slow: {_TIMEOUT_CAUSE}")


class PyAvFile:
    """The picture stream of any file that FFmpeg reads; opening it reads only its header.

    Args:
        path: a local file.
        threads: decoding threads; 1 suits loader workers, which are processes already; 0 uses all cores.

    Raises:
        VideoReadError: the file is missing, empty, damaged, or has no pictures.
    """

    def __init__(self, path: str, *, threads: int = 1) -> None:
        self.path = path
        self._threads = threads
        self._converter: RgbConverter | None = None
        self._decoder_failed = False
        self._container, self._stream = self._open()
        # The size before decoding: a stream may change its size, but the pictures of a clip have one size.
        self._size = (self._stream.codec_context.width, self._stream.codec_context.height)

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        self._container.close()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        # FFmpeg would log every damage to the terminal; the errors below name the cause.
        av.logging.set_level(None)
        _check_file(self.path)
        for stalls in itertools.count(1):
            try:
                container = self._open_container()
                break
            except Stalled:
                if stalls == _MOST_STALLS:
                    raise
        try:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
                audio = ", only audio" if container.streams.audio else ""
                raise VideoReadError(self.path, f"no video stream{audio}")
            self._prepare(stream)
        except BaseException:
            container.close()
            raise
        return container, stream

    def _open_container(self) -> InputContainer:
        timer = _CallTimer()
        try:
            container = av.open(
                ffmpeg_url(self.path), metadata_errors="ignore", options=_OPTIONS, timeout=_MOST_SECONDS
            )
        except (*FAILURES, ValueError) as error:
            timer.check(self.path)
            raise VideoReadError(self.path, _open_failure(self.path, error)) from error
        try:
            timer.check(self.path)
        except VideoReadError:
            container.close()
            raise
        return container

    def _prepare(self, stream: VideoStream) -> None:
        """Set up the decoder, which opens with the first packet."""
        decoder = stream.codec_context
        if decoder is None:
            raise VideoReadError(self.path, "damaged, or a video codec that FFmpeg does not support")
        if decoder.width * decoder.height > MOST_PIXELS:
            raise VideoReadError(
                self.path,
                f"pictures of {decoder.width}x{decoder.height}; at most {MOST_PIXELS:,} pixels are read",
            )
        decoder.options = {"max_pixels": str(MOST_PIXELS)}
        # Exact crops: without this flag FFmpeg rounds the left crop to the alignment of its memory.
        decoder.flags |= Flags.unaligned
        decoder.thread_count = self._threads  # 0: FFmpeg chooses
        decoder.thread_type = "NONE" if self._threads == 1 else "AUTO"

    def _reopen(self) -> None:
        """Return to the first packet, even if the container cannot seek, with a new decoder."""
        self._container.close()
        self._decoder_failed = False
        self._container, self._stream = self._open()

    def _packets(self) -> Iterator[Packet]:
        """The next packets; VideoReadError if the container is damaged, or Stalled."""
        packets = self._container.demux(self._stream)
        while True:
            timer = _CallTimer()
            try:
                packet = next(packets, None)
            except FAILURES as error:
                timer.check(self.path)
                raise VideoReadError(self.path, f"damaged ({failure_phrase(error)})") from error
            timer.check(self.path)
            if packet is None:
                return
            if packet.size:
                yield packet

    def _decoded(self, packet: Packet | None) -> Iterator[VideoFrame]:
        """The frames that the decoder returns for a packet (None: the end); none if it is damaged."""
        try:
            yield from self._stream.decode(packet)
        except FAILURES:
            # Not swallowed: the reader reports a requested frame that is missing.
            self._decoder_failed = True

    def _all_frames(self) -> Iterator[VideoFrame]:
        """All decodable frames from the start of the file, in display order."""
        self._reopen()
        for packet in self._packets():
            yield from self._decoded(packet)
        yield from self._decoded(None)

    def _retry_stalls(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Yield from ``read``; after a stall, call it again and skip what it yielded before.

        A decoder may keep parts of damaged packets. After one, the next read starts with a new decoder, so
        that its frames do not depend on earlier reads.

        Args:
            read: seeks, or reads from the start of the file; yields the same each time.
        """
        done = stalls = 0
        if self._decoder_failed:
            self._reopen()
        while True:
            try:
                for item in itertools.islice(read(), done, None):
                    yield item
                    done += 1
                return
            except Stalled:
                stalls += 1
                if stalls == _MOST_STALLS:
                    raise
                self._reopen()

    def _guesses_times(self) -> bool:
        """AVI and ASF store no presentation times, and FFmpeg's guess is wrong if frames are reordered."""
        reordered = bool(self._stream.codec_context.has_b_frames)
        return self._container.format.name in DECODING_TIMES_ALONE and reordered

    def _decode_times(self, packets: Iterable[Packet], times: set[int]) -> Iterator[VideoFrame]:
        """Decode packets, the first one a key frame, and yield the frames with these times."""
        remaining = set(times)
        for packet in packets:
            # Non-reference pictures may be skipped: no other picture depends on them.
            self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in remaining else "NONREF"
            if packet.pts is not None:
                remaining.discard(packet.pts)
            yield from (frame for frame in self._decoded(packet) if frame.pts in times)
            if not remaining:
                break
        # All packets were sent; the decoder returns the frames that it holds back for reordering.
        yield from (frame for frame in self._decoded(None) if frame.pts in times)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """RGB as displayed, uint8 [H, W, 3]: a view of the converter's output."""
        try:
            if self._converter is None or self._converter.kind != frame_kind(frame):
                if (frame.width, frame.height) != self._size:
                    self._update_size()
                self._converter = RgbConverter(frame, self._size)
            return self._converter.convert(frame)
        except (*FAILURES, ValueError) as error:
            raise VideoReadError(
                self.path, f"a frame cannot be converted to RGB ({failure_phrase(error)})"
            ) from error

    def _update_size(self) -> None:
        """Set the size to that of the first picture; crops may make it smaller than stated."""
        with closing(PyAvFile(self.path)) as again:
            first = next(again._retry_stalls(again._all_frames), None)
        size = (first.width, first.height) if first is not None else self._size
        if self._converter is not None and size != self._size:
            raise VideoReadError(self.path, "pictures of several sizes, not the size that the file states")
        self._size = size


def _check_file(path: str) -> None:
    """Raise VideoReadError if reading a path may block forever or need unlimited memory."""
    if not os.path.exists(path):
        return  # FFmpeg reports it
    if not is_file(path):
        raise VideoReadError(path, NOT_REGULAR)
    status = os.stat(path)
    stored = 512 * status.st_blocks  # 0 if the file system does not count blocks
    if status.st_size > _SPARSE_BYTES and 0 < stored < status.st_size / 10:
        raise VideoReadError(path, f"a sparse file: {status.st_size:,} bytes, but only {stored:,} are stored")
    if declares_too_much(path):
        raise VideoReadError(path, "damaged: it declares more frames than it has bytes")


def _open_failure(path: str, error: Exception) -> str:
    """Why a file cannot be opened."""
    if not os.path.exists(path):
        return missing_cause(path)
    if not os.path.getsize(path):
        return "empty file (0 bytes)"
    if isinstance(error, av.error.InvalidDataError):
        with open(path, "rb") as file:
            brand = file.read(8)[4:]
        if brand == b"ftyp":
            return "truncated or damaged: an mp4 file without its index (moov)"
        return "not a video file"
    if isinstance(error, av.error.ArgumentError):
        return "not a video file, or a playlist of other files"
    return failure_phrase(error)


def failure_phrase(error: BaseException) -> str:
    """One of ``FAILURES`` in a few words, on one line."""
    if isinstance(error, MemoryError):
        return "it does not fit in memory"
    if isinstance(error, av.error.ExitError):
        return _TIMEOUT_CAUSE
    words = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return " ".join(words.split())


_BYTE_SEEKS = ("mpegts", "mpeg")  # no index, and times may repeat: key frames are found by file position
_JOINS: dict[str, Joins] = {"mpeg": "recordings", "mov": "edits", "matroska": "segments"}
STORED_DURATIONS = ("gif", "apng")
DECODING_TIMES_ALONE = ("avi", "asf")  # FFmpeg guesses the display times from these
_MOST_PACKETS = 1 << 22  # 38 hours at 30 per second; the index needs about 200 bytes per packet
_PACKETS_TO_KEY = 64  # read after a jump by position; then the packets are counted from the start instead


class PyAvReader(PyAvFile, VideoReader):
    """Reads any file that FFmpeg reads, after indexing its packets; see `PyAvFile`.

    PyAV 18.1 never releases 0.5 to 5.9 kB per opened file, depending on the file: loaders renew workers with
    growing memory.

    Attributes:
        timing: rate and duration.
        seconds: display time of each frame after the file's first packet, float64 [N]; None if it has no
            times.
    """

    decoder = "pyav"
    timing: Timing
    seconds: np.ndarray | None

    def __init__(self, path: str, *, threads: int = 1) -> None:
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
        self._set_timing(ticks, packets.last_duration())

    @property
    def info(self) -> VideoInfo:
        """All facts; the first access decodes the first frame, which has the rotation."""
        if self._info is None:
            height, width = self._read(np.zeros(1, np.int64)).shape[1:3]
            assert self._converter is not None  # of the first frame
            self._info = VideoInfo(
                path=self.path,
                frames=self.frames,
                fps=self.fps,
                duration_seconds=self.timing.duration_seconds,
                width=width,
                height=height,
                rotation_degrees=self._converter.orientation.rotation_degrees,
                mirrored=self._converter.orientation.mirrored,
                codec=self._stream.codec_context.name,
                variable_frame_rate=self.timing.is_variable,
            )
        return self._info

    @property
    def counts_steadily(self) -> bool:
        """Whether frames can only be counted, and have a constant rate."""
        return self._index is None and not self.timing.is_variable

    def _read_packets(self) -> PacketTable:
        """All packets of the file; VideoReadError if it is damaged or has no key frame."""
        format_name = self._container.format.name
        joins: Joins = next((kind for name, kind in _JOINS.items() if format_name.startswith(name)), "none")
        second = float(1 / self._stream.time_base) if self._stream.time_base else 1.0
        log = PacketLog(second=second, joins=joins)
        try:
            for packet in self._retry_stalls(self._packets):
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
        """Display time of each frame, int64 [N] ticks after the first packet."""
        self.frames = len(index.marks)
        if self._container.format.name in DECODING_TIMES_ALONE:
            due = packets.due_ticks()
            if due is not None and len(due) >= self.frames:
                return due[-self.frames :]
        return index.ticks

    def _count(self, packets: PacketTable) -> np.ndarray | None:
        """Decode everything to count the frames; returns their display times in ticks, None if unknown."""
        times = [frame.pts for frame in self._retry_stalls(self._all_frames)]
        self.frames = len(times)
        if self._guesses_times():
            due = packets.due_ticks()
            return None if due is None or len(due) < self.frames else due[len(due) - self.frames :]
        return complete_times(times)

    def _set_timing(self, ticks: np.ndarray | None, last: int) -> None:
        """Measure the timing by the display times in ticks; None: by the stated rate alone."""
        average, guessed = float(self._stream.average_rate or 0), float(self._stream.guessed_rate or 0)
        tick = float(self._stream.time_base or 0)
        if ticks is None or not tick:
            # For raw streams the average is a default of 25, and the guess is the rate in the codec's header.
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
        clip: np.ndarray | None = None
        for index, picture in self._iter_frames(np.unique(indices)):
            if clip is None:
                clip = np.empty((len(indices), *picture.shape), np.uint8)
            clip[indices == index] = picture
        assert clip is not None  # `_iter_frames` yields at least one frame, or raises
        return clip

    def _iter_frames(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        missing = set(indices.tolist())
        for index, frame in self._retry_stalls(lambda: self._decode(indices)):
            missing.discard(index)
            yield index, self._picture(frame)
        if missing:
            raise VideoReadError(self.path, f"frame {min(missing)} of {self.frames} cannot be decoded")

    def _decode(self, indices: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """The decodable frames at ``indices`` (ascending, unique), with their indices."""
        if self._index is None:
            requested = set(indices.tolist())
            for count, frame in enumerate(self._all_frames()):
                if count in requested:
                    yield count, frame
                if count == indices[-1]:
                    return
            return
        times = self._index.marks[indices]
        index_of = dict(zip(times.tolist(), indices.tolist(), strict=True))
        starts = np.searchsorted(self._index.key_marks, times, side="right") - 1
        for start in np.unique(starts):
            remaining = set(times[starts == start].tolist())
            # With intra refresh, a key frame yields complete pictures only later: then use the one before it.
            for key in range(start, -1, -1):
                packets = self._packets_from(self._index, key)
                for frame in self._decode_times(packets, remaining):
                    remaining.discard(frame.pts)
                    yield index_of[frame.pts], frame
                if not remaining:
                    break

    def _packets_from(self, index: PacketIndex, key: int) -> Iterator[Packet]:
        """The packets from key frame number ``key`` on, wherever the container's own seek lands."""
        key = int(np.searchsorted(index.key_marks, index.key_marks[key]))  # the first one with this mark
        place, time = int(index.key_packets[key]), int(index.key_times[key])
        packets = self._jump(index, place, time)
        if packets is None:  # not seekable, or too far, as in transport streams
            self._reopen()
            packets = itertools.islice(self._packets(), place, None)
        if index.packet_marks is None:
            yield from packets
            return
        for mark, packet in zip(index.packet_marks[place:].tolist(), packets, strict=False):
            packet.pts = mark
            yield packet

    def _jump(self, index: PacketIndex, place: int, time: int) -> Iterator[Packet] | None:
        """The packets from a key frame on, by its packet number and time; None if it is not found."""
        by_byte = self._container.format.name in _BYTE_SEEKS
        if index.packet_marks is not None and not by_byte:
            return None  # times repeat, so a jump to a time may land anywhere
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
