"""Open a video file and read frames by index: the same index gives the same picture from every reader.

decord reads the files of which its own index is exact, PyAV all others.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.containers import is_exact_in_decord
from videomaskfeat.data.frames import FrameFolderReader, ImageReader, is_picture
from videomaskfeat.data.packet_index import average_rate
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.errors import UserError, check_name


class InexactIndexError(Exception):
    """decord opens this file, but would hand out other pictures than those that were asked for."""


class DecordReader(VideoReader):
    """Reads plain mp4 and WebM files (see ``containers``).

    Memory stays level: with one decoding thread the resident size of a process rose by 0.5 MB from the 50th
    to the 3,000th opening (each with 15 frames decoded), decord 0.6.0.
    """

    decoder = "decord"

    def __init__(self, path: str, *, threads: int = 1) -> None:
        """Open a local file; for ``threads`` see `open_video`.

        Raises:
            InexactIndexError: decord's index cannot be relied on for this file, or it is no video at all.
            VideoReadError: decord does not open the file.
            ModuleNotFoundError: decord is not installed.
        """
        decord = importlib.import_module("decord")
        decord.logging.set_level(decord.logging.QUIET)
        self.path = path
        self._info: VideoInfo | None = None
        if not is_exact_in_decord(path):
            raise InexactIndexError(path)
        try:
            # A share of damaged frames above nothing raises: decord would repeat a neighbour in their place.
            # Absolute, because FFmpeg takes what stands before a colon in a relative path for a protocol.
            self._reader = decord.VideoReader(os.path.abspath(path), num_threads=threads, fault_tol=1e-9)
            starts = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0].astype(np.float64)
            keys = self._reader.get_key_indices()
        except UnicodeEncodeError as error:
            raise VideoReadError(path, "decord opens no file whose name is not UTF-8") from error
        except (decord.DECORDError, RuntimeError, AssertionError, LookupError, MemoryError) as error:
            raise VideoReadError(path, _last_words(error)) from error
        if keys[:1] != [0] or starts[0] < 0 or (np.diff(starts) <= 0).any():
            raise InexactIndexError(path)
        self._errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, MemoryError)
        self.frames = len(self._reader)
        self.fps = average_rate(starts, stated_fps=float(self._reader.get_avg_fps()))

    @property
    def info(self) -> VideoInfo:
        """All facts; decord does not tell rotation and codec, so the first look opens the file in PyAV."""
        if self._info is None:
            with PyAvReader(self.path) as reader:
                self._info = reader.info
        return self._info

    def close(self) -> None:
        """Release the file and the decoder; may be called twice."""
        self._reader = None

    def _read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._reader.get_batch(indices).asnumpy()
        except self._errors as error:
            raise VideoReadError(self.path, _last_words(error)) from error


def _last_words(error: Exception) -> str:
    """decord's message without its time stamp, source line and stack."""
    text = str(error).strip().splitlines()
    return f"decord: {text[0].split('] ', 1)[-1].split(': ', 1)[-1]}" if text else "decord cannot read it"


class MemoryReader(VideoReader):
    """Decoded frames as a video. They are not copied, so change them only after the last read."""

    path = "frames in memory"
    decoder = "none"

    def __init__(self, frames: np.ndarray, *, fps: float) -> None:
        """Keep frames uint8 [T, H, W, 3], RGB: every frame of the video, and their rate per second.

        Raises:
            UserError: not of that type and shape, or no frame rate.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            shape = "x".join(map(str, frames.shape))
            raise UserError(
                f"frames of {frames.dtype} {shape or 'without shape'}: must be uint8 [T, H, W, 3], RGB in "
                "0..255, with at least one frame"
            )
        if not (np.isfinite(fps) and fps > 0):
            raise UserError(f"fps={fps}: must be the frames a second of the video, a positive number")
        self._pictures = frames
        self.frames, self.fps = len(frames), float(fps)

    @property
    def info(self) -> VideoInfo:
        """All facts."""
        return self._picture_info(self._pictures[0], "none")

    def close(self) -> None:
        """Nothing is kept open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._pictures[indices]  # [T, H, W, 3], a copy


READERS = ("auto", "decord", "pyav")
_log = logging.getLogger(__name__)


def open_video(path: str | os.PathLike[str], reader: str = "auto", *, threads: int = 1) -> VideoReader:
    """Open a video for reading; one opening serves any number of clips.

    Args:
        path: of the file, through the path manager, or of a folder with a picture a frame; a picture by its
            suffix is a video of one frame.
        reader: ``decord``; ``pyav``; or ``auto``: decord, and PyAV for a file that decord refuses or where
            decord is not installed.
        threads: for decoding. 1 suits loader workers, which are processes already; 0 takes all cores.

    Raises:
        VideoReadError: the file cannot be read; its ``cause`` says why.
        UserError: ``reader`` is unknown or not installed.
    """
    check_name("reader", reader, READERS)
    local = io.local_path(path)
    if os.path.isdir(local):
        return FrameFolderReader(local)
    if is_picture(local):
        return ImageReader(local)
    if reader == "pyav":
        return PyAvReader(local, threads=threads)
    if reader == "auto":
        return _AutoReader(local, threads)
    try:
        return DecordReader(local, threads=threads)
    except InexactIndexError:
        _log.debug("%s: decord's frame numbers are not exact here, so PyAV reads it", local)
        return PyAvReader(local, threads=threads)
    except ModuleNotFoundError as error:
        raise UserError(
            "reader 'decord' is not installed here; pip install decord, or take 'pyav'"
        ) from error


def probe(path: str | os.PathLike[str], reader: str = "auto") -> VideoInfo:
    """The facts of a video, with the errors of `open_video`."""
    with open_video(path, reader) as video:
        return video.info


def available_readers() -> dict[str, str]:
    """For each reader its version, or why it is missing, as ``missing: ...``."""
    versions = {}
    for name, module in (("decord", "decord"), ("pyav", "av")):
        try:
            versions[name] = str(importlib.import_module(module).__version__)
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            versions[name] = f"missing: {error}"
    return versions


class _AutoReader(VideoReader):
    """decord until it refuses the file or one of its frames, PyAV from then on."""

    def __init__(self, path: str, threads: int) -> None:
        self.path = path
        self._threads = threads
        self._reader: VideoReader
        try:
            self._reader = DecordReader(path, threads=threads)
        except (InexactIndexError, ModuleNotFoundError, VideoReadError) as error:
            _log.debug("%s: read by PyAV, not by decord: %r", path, error)
            self._reader = PyAvReader(path, threads=threads)
        self._take_facts()

    @property
    def info(self) -> VideoInfo:
        return self._reader.info

    def close(self) -> None:
        self._reader.close()

    def _take_facts(self) -> None:
        self.decoder, self.frames, self.fps = self._reader.decoder, self._reader.frames, self._reader.fps

    def _read(self, indices: np.ndarray) -> np.ndarray:
        if self._reader.decoder == "pyav":
            return self._reader.read(indices)
        try:
            return self._reader.read(indices)
        except VideoReadError as error:
            self._change_to_pyav(error, indices)
            return self._reader.read(indices)

    def _each(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        if self._reader.decoder != "pyav":
            try:
                for index, picture in self._reader.each(wanted):
                    yield index, picture
                    done += 1
            except VideoReadError as error:
                self._change_to_pyav(error, wanted)
        if done < len(wanted):
            yield from self._reader.each(wanted[done:])

    def _change_to_pyav(self, error: VideoReadError, indices: np.ndarray) -> None:
        _log.debug("%s: read by PyAV from now on: %r", self.path, error)
        self._reader.close()
        self._reader = PyAvReader(self.path, threads=self._threads)
        self._take_facts()
        if indices.max() >= self.frames:
            raise VideoReadError(self.path, f"damaged after frame {self.frames}") from error
