"""Open a video file and read frames by index: the same index gives the same picture from every reader.

``decord`` is the first choice and PyAV the second. decord is only given whole files for which its frame
numbers and colors are exact (see ``containers``); the others are read by PyAV whatever the choice.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.frames import FrameFolderReader
from videomaskfeat.data.images import ImageReader, is_picture
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.data.readers_decord import DecordReader, InexactIndexError
from videomaskfeat.data.readers_pyav import PyAvReader
from videomaskfeat.errors import UserError, nearest

__all__ = [
    "READERS",
    "VideoInfo",
    "VideoReadError",
    "VideoReader",
    "available_readers",
    "open_video",
    "probe",
]

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
    if reader not in READERS:
        raise UserError(f"reader {reader!r} is not one of {', '.join(READERS)}{nearest(reader, READERS)}")
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
    """The facts of a video.

    Raises:
        VideoReadError: the file cannot be read.
        UserError: ``reader`` is unknown or not installed.
    """
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
