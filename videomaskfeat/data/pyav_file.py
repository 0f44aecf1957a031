"""A file open in PyAV: its packets, the pictures that they decode to, and why it does not open.

Memory and time are bounded whatever a file declares. FFmpeg's tables grow with the data that are really
there; pictures of more than 35.7 million pixels are refused, and so are files with more than 100 streams.
What is left is the decoder's own memory: at most some 17 pictures of 1.5 bytes per pixel, 6 MB at 360p,
900 MB at the limit.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videomaskfeat.data.containers import declares_too_much
from videomaskfeat.data.pyav_rgb import RgbConverter, frame_kind
from videomaskfeat.data.reader import NOT_REGULAR, VideoReadError
from videomaskfeat.io import ffmpeg_url, is_file, missing_cause

T = TypeVar("T")

MOST_PIXELS = 8192 * 4352  # per picture: the largest of H.264's and H.265's level 6.2
_MOST_STREAMS = 100
# Kinds of files that name others to read, and inputs that are no files: these may wait forever.
_NAMING_OTHERS = frozenset(
    ("concat", "dash", "hls", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap", "sdp", "tty", "webm_dash_manifest")
)
_OPTIONS = {
    "max_pixels": str(MOST_PIXELS),
    "max_streams": str(_MOST_STREAMS),
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - _NAMING_OTHERS)),
    "pattern_type": "none",  # a name such as %03d.tga is a file's, too
}
_MOST_SECONDS = 4.0  # for opening, and for reading a packet
_BUSY_SECONDS = 2.0  # of these, by which a file is to blame; less, and the process was stopped or waited
_MOST_STALLS = 15  # after which a reading is given up
# Bytes; holes in a larger file are looked for, since FFmpeg may search them for a next picture.
_SPARSE = 1 << 30
# What PyAV raises on damaged files: its own errors, and Python's where a count exceeds a type or the memory.
FAILURES = (av.error.FFmpegError, OSError, OverflowError, MemoryError)


class Stalled(VideoReadError):
    """Nothing came within the limit, and not because of the file: the reading can be tried again."""


class _Watch:
    """The time of one call into FFmpeg.

    FFmpeg's limit is on the time that passes. It can pass without a fault of the file: if the process is
    stopped, waits for a processor, or for a slow disk. The thread's own processor time tells these apart.
    After an interruption FFmpeg may report an error, the end of the file or a part of a packet, so that
    nothing that came after the limit is used.
    """

    def __init__(self) -> None:
        self._started, self._busy = time.monotonic(), time.thread_time()

    def check(self, path: str) -> None:
        """Raise if the limit has passed: Stalled, or VideoReadError if the file is to blame."""
        if time.monotonic() - self._started > _MOST_SECONDS:
            busy = time.thread_time() - self._busy >= _BUSY_SECONDS
            kind = VideoReadError if busy else Stalled
            raise kind(path, f"damaged, or on a disk that is too slow: {_TOO_LATE}")


_TOO_LATE = f"nothing to read within {_MOST_SECONDS:g} s"


class PyAvFile:
    """The picture stream of any file that FFmpeg reads; opening it reads no more than its header.

    Attributes:
        path: of the local file.
        rotation_degrees: as ``VideoInfo.rotation_degrees``; known after the first picture.
        mirrored: as ``VideoInfo.mirrored``; known after the first picture.
    """

    path: str

    def __init__(self, path: str, *, threads: int = 1) -> None:
        """Open a local file.

        Args:
            path: of the file.
            threads: for decoding; 1 suits loader workers, which are processes already. 0 = all cores.

        Raises:
            VideoReadError: the file is missing, empty, damaged, or holds no pictures.
        """
        self.path = path
        self._threads = threads
        self._converter: RgbConverter | None = None
        self._decoder_failed = False
        self.rotation_degrees, self.mirrored = 0, False
        self._container, self._stream = self._open()
        # Noted before decoding: a stream may change its size half-way, the pictures of a clip may not.
        self._size = (self._stream.codec_context.width, self._stream.codec_context.height)

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        self._container.close()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        # FFmpeg's complaints about damaged files would fill the terminal; the errors below name the cause.
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
        watch = _Watch()
        try:
            container = av.open(
                ffmpeg_url(self.path), metadata_errors="ignore", options=_OPTIONS, timeout=_MOST_SECONDS
            )
        except (*FAILURES, ValueError) as error:
            watch.check(self.path)
            raise VideoReadError(self.path, _open_failure(self.path, error)) from error
        try:
            watch.check(self.path)
        except VideoReadError:
            container.close()
            raise
        return container

    def _prepare(self, stream: VideoStream) -> None:
        """Set up the decoder, which opens with the first packet; refuse streams without one."""
        decoder = stream.codec_context
        if decoder is None:
            raise VideoReadError(self.path, "damaged, or a video codec that FFmpeg does not know")
        if decoder.width * decoder.height > MOST_PIXELS:
            raise VideoReadError(
                self.path,
                f"pictures of {decoder.width}x{decoder.height}; at most {MOST_PIXELS:,} pixels are read",
            )
        decoder.options = {"max_pixels": str(MOST_PIXELS)}
        # Exact crops: without this flag FFmpeg rounds the crop on the left down to what suits its memory.
        decoder.flags |= Flags.unaligned
        # Asking for 0 threads leaves the number to FFmpeg.
        decoder.thread_count = self._threads
        decoder.thread_type = "NONE" if self._threads == 1 else "AUTO"

    def _reopen(self) -> None:
        """Back to the very first packet, also where a container cannot seek, with a new decoder."""
        self._container.close()
        self._decoder_failed = False
        self._container, self._stream = self._open()

    def _packets(self) -> Iterator[Packet]:
        """The packets from here on; VideoReadError where the container is damaged, or Stalled."""
        packets = self._container.demux(self._stream)
        while True:
            watch = _Watch()
            try:
                packet = next(packets, None)
            except FAILURES as error:
                watch.check(self.path)
                raise VideoReadError(self.path, f"damaged ({failure_phrase(error)})") from error
            watch.check(self.path)
            if packet is None:
                return
            if packet.size:
                yield packet

    def _decoded(self, packet: Packet | None) -> Iterator[VideoFrame]:
        """The frames that a packet (None: the end) brings out; none from one that is damaged."""
        try:
            yield from self._stream.decode(packet)
        except FAILURES:
            # Not swallowed: a frame that was asked for and does not come is reported by the reader.
            self._decoder_failed = True

    def _all_frames(self) -> Iterator[VideoFrame]:
        """All decodable frames from the start of the file, in the order in which the decoder shows them."""
        self._reopen()
        for packet in self._packets():
            yield from self._decoded(packet)
        yield from self._decoded(None)

    def _despite_stalls(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What ``read`` yields; after a stall it is called again, and what has come before is left out.

        A decoder may keep parts of damaged packets. After one, the next reading starts with a new decoder, so
        that what it yields does not depend on what was read before.

        Args:
            read: reads from its own place in the file, or from its start; yields the same each time.
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
        """AVI and ASF store no presentation times, and FFmpeg's guess is off where frames are reordered."""
        return self._container.format.name in ("avi", "asf") and bool(self._stream.codec_context.has_b_frames)

    def _decode_wanted(self, packets: Iterable[Packet], wanted: set[int]) -> Iterator[VideoFrame]:
        """Decode packets, which begin with a key frame; the frames with ``wanted`` times."""
        remaining = set(wanted)
        for packet in packets:
            # Non-reference pictures may be left out: no other picture depends on them.
            self._stream.codec_context.skip_frame = "DEFAULT" if packet.pts in remaining else "NONREF"
            if packet.pts is not None:
                remaining.discard(packet.pts)
            yield from (frame for frame in self._decoded(packet) if frame.pts in wanted)
            if not remaining:
                break
        # All wanted packets are in: what the decoder holds back for reordering comes out without more input.
        yield from (frame for frame in self._decoded(None) if frame.pts in wanted)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """RGB as displayed, uint8 [H, W, 3]: a view that lives as long as the frame.

        Raises:
            VideoReadError: the frame cannot be converted.
        """
        try:
            kind = frame_kind(frame)
            if self._converter is None or self._converter.kind != kind:
                if (frame.width, frame.height) != self._size:
                    self._check_size()
                self._converter = RgbConverter(frame, self._size)
                self.rotation_degrees = self._converter.orientation.rotation_degrees
                self.mirrored = self._converter.orientation.mirrored
            return self._converter.convert(frame)
        except (*FAILURES, ValueError) as error:
            raise VideoReadError(
                self.path, f"a frame cannot be converted to RGB ({failure_phrase(error)})"
            ) from error

    def _check_size(self) -> None:
        """Take the size of the first picture in the file; crops may make it smaller than stated."""
        with closing(PyAvFile(self.path)) as again:
            first = next(again._despite_stalls(again._all_frames), None)
        size = (first.width, first.height) if first is not None else self._size
        if self._converter is not None and size != self._size:
            raise VideoReadError(self.path, "pictures of several sizes, not the size that the file states")
        self._size = size


def _check_file(path: str) -> None:
    """Raise VideoReadError if reading what lies there may block forever, or take memory without end."""
    if not os.path.exists(path):
        return  # FFmpeg reports it
    if not is_file(path):
        raise VideoReadError(path, NOT_REGULAR)
    status = os.stat(path)
    stored = 512 * status.st_blocks  # 0 on file systems that do not count
    if status.st_size > _SPARSE and 0 < stored < status.st_size / 10:
        raise VideoReadError(path, f"a sparse file: {status.st_size:,} bytes, of which {stored:,} are stored")
    if declares_too_much(path):
        raise VideoReadError(path, "damaged: more frames are declared than the file has bytes")


def _open_failure(path: str, error: Exception) -> str:
    """The cause, in words, of a file that does not open."""
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
        return "not a video file, or a playlist that names others"
    return failure_phrase(error)


def failure_phrase(error: BaseException) -> str:
    """One of ``FAILURES`` in a few words, on one line."""
    if isinstance(error, MemoryError):
        return "more memory than there is"
    if isinstance(error, av.error.ExitError):
        return _TOO_LATE
    words = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return " ".join(words.split())
