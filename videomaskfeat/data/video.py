"""Open a video file and read frames by index: the same index gives the same picture in every reader.

decord reads the files whose frames it indexes exactly, PyAV all others.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError, is_picture
from videomaskfeat.errors import PlugInFailed, RunFailed, UserError, check_name
from videomaskfeat.plugins import import_class, is_plugin

if TYPE_CHECKING:
    from videomaskfeat.data.memory import VideoMemory


class MemoryReader(VideoReader):
    """Decoded frames as a video. They are not copied: do not change them before the last read.

    Args:
        frames: all frames of the video, uint8 [T, H, W, 3], RGB.
        fps: frames per second.

    Raises:
        UserError: wrong type or shape, or no frame rate.
    """

    path = "frames in memory"
    decoder = "none"

    def __init__(self, frames: np.ndarray, *, fps: float) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            shape = "x".join(map(str, frames.shape))
            raise UserError(
                f"frames of {frames.dtype} {shape or 'without shape'}: must be uint8 [T, H, W, 3], RGB in "
                "0..255, with at least one frame"
            )
        if not (np.isfinite(fps) and fps > 0):
            raise UserError(f"fps={fps}: must be a positive number of frames per second")
        self._pictures = frames
        self.frames, self.fps = len(frames), float(fps)

    @property
    def info(self) -> VideoInfo:
        """All facts."""
        return self._picture_info(self._pictures[0], "none")

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._pictures[indices]  # [T, H, W, 3], a copy


READERS = ("auto", "decord", "pyav", "torchcodec", "torchcodec-cuda")
_log = logging.getLogger(__name__)


def open_video(path: str | os.PathLike[str], reader: str = "auto", *, threads: int = 1) -> VideoReader:
    """Open a video, to read any number of clips from it.

    Args:
        path: a video file, opened through the path manager; a folder with one picture per frame; or a picture
            (by its extension), which is a video of one frame; or a video in a shard, see `PackedVideo`.
        reader: ``decord``, ``pyav``, or ``auto``: decord, and PyAV if decord is not installed or fails on the
            file. PyAV also reads the files that decord indexes inexactly. ``torchcodec`` (extra torchcodec)
            and, by NVDEC, ``torchcodec-cuda`` read the files that decord reads. Or a plug-in
            ``package.module:Class``, a `VideoReader` that is called with the path, also of a folder.
        threads: decoding threads. 1 suits loader workers, which are processes already; 0 uses all cores.

    Raises:
        VideoReadError: the file cannot be read; see its ``cause``.
        UserError: ``reader`` is unknown or not installed.
    """
    text = os.fspath(path)
    if "#" in text:
        from videomaskfeat.data.shards import PackedReader, PackedVideo

        packed = PackedVideo.parse(text)
        if packed is not None:
            open_file = partial(_open_file, name=packed.name, reader=reader, threads=threads)
            return PackedReader(packed, open_file)
    local = io.local_path(text)
    return _open_file(local, name=local, reader=reader, threads=threads)


def _open_file(local: str, *, name: str, reader: str, threads: int) -> VideoReader:
    """Open a local file or folder; the extension of ``name`` decides whether it is a picture."""
    if is_plugin(reader):
        return _open_in_plugin(reader, local)
    check_name("reader", reader, READERS)
    if os.path.isdir(local) or is_picture(name):
        from videomaskfeat.data.frames import FrameFolderReader, ImageReader

        return FrameFolderReader(local) if os.path.isdir(local) else ImageReader(local)
    if reader.startswith("torchcodec"):
        from videomaskfeat.data.readers_decord import InexactIndexError
        from videomaskfeat.data.readers_torchcodec import TorchcodecReader

        try:
            return TorchcodecReader(local, threads=threads, decoder=reader)
        except InexactIndexError:
            _log.debug("%s: no plain file, so PyAV reads it instead of %s", local, reader)
    elif reader != "pyav":
        from videomaskfeat.data.readers_decord import DecordReader, InexactIndexError

        try:
            video = DecordReader(local, threads=threads)
            return video if reader == "decord" else _FallbackReader(video, threads)
        except InexactIndexError:
            _log.debug("%s: decord's frame indices are not exact, so PyAV reads it", local)
        except VideoReadError as error:
            if reader == "decord":
                raise
            _log.debug("%s: decord fails, so PyAV reads it: %r", local, error)
        except ModuleNotFoundError as error:
            if reader == "decord":
                raise UserError(
                    "reader 'decord' is not installed; pip install decord, or use 'pyav'"
                ) from error
    return open_in_pyav(local, threads=threads)


def open_in_pyav(path: str, *, threads: int = 1) -> VideoReader:
    """Open a local video in PyAV, with its errors."""
    from videomaskfeat.data.readers_pyav import PyAvReader

    return PyAvReader(path, threads=threads)


def _open_in_plugin(reader: str, path: str) -> VideoReader:
    build: Any = import_class("reader", reader, VideoReader)
    try:
        return build(path)
    except (VideoReadError, UserError, RunFailed):
        raise
    except Exception as error:  # the user's own code can raise anything
        raise PlugInFailed(f"reader {reader!r} failed on {path}: {type(error).__name__}: {error}") from error


def open_from(memory: VideoMemory | None, path: str, reader: str) -> VideoReader:
    """A video from memory, or from its file if it is not in memory; errors as in `open_video`."""
    frames = None if memory is None else memory.frames(path)
    if memory is None or frames is None:
        return open_video(path, reader)
    video = MemoryReader(frames, fps=memory.videos[path].fps)
    video.path = path
    return video


def probe(path: str | os.PathLike[str], reader: str = "auto") -> VideoInfo:
    """The facts of a video, with the errors of `open_video`."""
    with open_video(path, reader) as video:
        return video.info


def available_readers() -> dict[str, str]:
    """The version of each reader, or why it is missing, as ``missing: ...``."""
    versions = {}
    for name, module in (("decord", "decord"), ("pyav", "av"), ("torchcodec", "torchcodec")):
        try:
            versions[name] = str(importlib.import_module(module).__version__)
        except (ImportError, OSError, RuntimeError) as error:  # a shared library that does not load
            text = str(error).strip() or type(error).__name__
            versions[name] = f"missing: {text.splitlines()[0]}"
    return versions


class _FallbackReader(VideoReader):
    """decord until it fails on a frame, PyAV from then on."""

    def __init__(self, video: VideoReader, threads: int) -> None:
        self.path, self._threads = video.path, threads
        self._use(video)

    @property
    def info(self) -> VideoInfo:
        return self._reader.info

    def close(self) -> None:
        self._reader.close()

    def _use(self, video: VideoReader) -> None:
        self._reader = video
        self.decoder, self.frames, self.fps = video.decoder, video.frames, video.fps

    def _read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._reader.read(indices)
        except VideoReadError as error:
            self._switch_to_pyav(error, indices)
        return self._reader.read(indices)

    def _iter_frames(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        done = 0
        try:
            for index, picture in self._reader.iter_frames(indices):
                yield index, picture
                done += 1
            return
        except VideoReadError as error:
            self._switch_to_pyav(error, indices)
        yield from self._reader.iter_frames(indices[done:])

    def _switch_to_pyav(self, error: VideoReadError, indices: np.ndarray) -> None:
        if self.decoder == "pyav":
            raise error
        _log.debug("%s: decord fails, so PyAV reads it from now on: %r", self.path, error)
        self._reader.close()
        self._use(open_in_pyav(self.path, threads=self._threads))
        if indices.max() >= self.frames:
            raise VideoReadError(self.path, f"damaged after frame {self.frames}") from error
