"""A file open in PyAV: its packets, the pictures that they decode to, and why it does not open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from videomaskfeat.data.reader import VideoReadError


class PyAvFile:
    """The picture stream of any file that FFmpeg reads; opening it reads no more than its header.

    Attributes:
        path: of the local file.
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
        self._reformatter = VideoReformatter()
        self._quarter_turns = 0  # counter-clockwise, as numpy counts them
        self._container, self._stream = self._open()
        # Noted before decoding: a stream may change its size half-way, the pictures of a clip may not.
        self._size = (self._stream.codec_context.width, self._stream.codec_context.height)

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        self._container.close()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        # FFmpeg's complaints about damaged files would fill the terminal; the errors below name the cause.
        av.logging.set_level(None)
        try:
            container = av.open(self.path, metadata_errors="ignore")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoReadError(self.path, _open_failure(self.path, error)) from error
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
            audio = bool(container.streams.audio)
            container.close()
            raise VideoReadError(self.path, "no video stream" + (", only audio" if audio else ""))
        # Asking for 0 threads leaves the number to FFmpeg.
        stream.codec_context.thread_count = self._threads
        stream.codec_context.thread_type = "NONE" if self._threads == 1 else "AUTO"
        return container, stream

    def _reopen(self) -> None:
        """Back to the very first packet, also where a container cannot seek."""
        self._container.close()
        self._container, self._stream = self._open()

    def _packets(self) -> Iterator[Packet]:
        return (packet for packet in self._container.demux(self._stream) if packet.size)

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
            yield from (frame for frame in decoded(self._stream, packet) if frame.pts in wanted)
            if not remaining:
                break
        # All wanted packets are in: what the decoder holds back for reordering comes out without more input.
        yield from (frame for frame in decoded(self._stream, None) if frame.pts in wanted)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """RGB as displayed, uint8 [H, W, 3]: a view that lives as long as the frame.

        The scaler's default flags: with them 4:2:0 pictures of even height go through the same unscaled
        conversion as in decord, and are bit-equal to its.
        """
        width, height = self._size
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        # Whole quarter turns only: any other angle is shown unturned, as in decord.
        self._quarter_turns = 0 if frame.rotation % 90 else frame.rotation // 90 % 4
        return np.rot90(rows.reshape(height, width, 3), self._quarter_turns)


def decoded(stream: VideoStream, packet: Packet | None) -> Iterator[VideoFrame]:
    """The frames that a packet (None: the end) brings out; none from one that is damaged."""
    try:
        yield from stream.decode(packet)
    except av.error.FFmpegError:
        # Not swallowed: a frame that was asked for and does not come is reported by the reader.
        return


def _open_failure(path: str, error: Exception) -> str:
    """The cause, in words, of a file that does not open."""
    if not os.path.exists(path):
        return "no such file"
    if not os.path.getsize(path):
        return "empty file (0 bytes)"
    if isinstance(error, av.error.InvalidDataError):
        with open(path, "rb") as file:
            brand = file.read(8)[4:]
        if brand == b"ftyp":
            return "truncated or damaged: an mp4 file without its index (moov)"
        return "not a video file"
    return str(getattr(error, "strerror", None) or error)
