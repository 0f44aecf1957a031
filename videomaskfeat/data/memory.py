"""Decoded videos of small lists in memory, shared by loader workers and by the ranks of a machine."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.video import open_video
from videomaskfeat.data.worker_pool import call_in_workers
from videomaskfeat.data.workers import READ_SECONDS
from videomaskfeat.errors import UserError, counted
from videomaskfeat.machine import available_memory

USABLE_SHARE = 0.8
"""Maximum share of the available memory that decoded videos may use."""
_OPENED = 64  # videos from whose sizes that of all is estimated


@dataclass(frozen=True)
class StoredVideo:
    """Place of a video's frames, uint8 ``shape`` = [T, H, W, 3], in the shared memory; its frame rate."""

    offset: int
    shape: tuple[int, ...]
    fps: float


class VideoMemory:
    """Frames of whole videos in a memory-mapped file without a name, as decoded by a reader.

    A copy that is sent to a worker process shares the memory. The system frees it when the last process that
    uses it ends, in any way.

    Args:
        file: the frames of all videos; closed with this object.
        videos: place of each video by its path; other videos are read from their files.
    """

    def __init__(self, file: IO[bytes] | int, videos: dict[str, StoredVideo]) -> None:
        self._file, self.videos = file, videos
        descriptor = file if isinstance(file, int) else file.fileno()
        size = os.fstat(descriptor).st_size  # a file of length 0 cannot be mapped
        self._pixels = np.empty(0, np.uint8)
        if size:
            self._pixels = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)

    def __getstate__(self) -> tuple[Any, dict[str, StoredVideo]]:
        descriptor = self._file if isinstance(self._file, int) else self._file.fileno()
        return DupFd(descriptor), self.videos

    def __setstate__(self, state: tuple[Any, dict[str, StoredVideo]]) -> None:
        handle, videos = state
        self.__init__(handle.detach(), videos)  # type: ignore[misc]

    @property
    def bytes(self) -> int:
        """Size of all frames."""
        return self._pixels.size

    def frames(self, path: str) -> np.ndarray | None:
        """All frames of a video, uint8 [T, H, W, 3], read-only and not copied; None if not in memory."""
        video = self.videos.get(path)
        if video is None:
            return None
        return self._pixels[video.offset : video.offset + int(np.prod(video.shape))].reshape(video.shape)


def estimate_bytes(paths: Sequence[str], reader: str = "auto") -> int | None:
    """Size of all frames of videos, from the number and size of the frames of up to 64 evenly spaced ones.

    Videos are opened, and at most one frame of each is decoded.

    Returns:
        The size in bytes; None if no video can be opened.
    """
    chosen = [paths[i * len(paths) // _OPENED] for i in range(_OPENED)] if len(paths) > _OPENED else paths
    sizes = []
    for path in chosen:
        try:
            with open_video(path, reader) as video:
                sizes.append(video.frames * video.info.height * video.info.width * 3)
        except VideoReadError:
            continue
    return sum(sizes) * len(paths) // len(chosen) if sizes else None


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that the decoded videos of lists need, before they are decoded.

    Attributes:
        videos: number of videos.
        needed: estimated size of their frames in bytes; None if unknown.
        usable: bytes of memory that they may use; None if unknown.
    """

    videos: int
    needed: int | None
    usable: int | None

    @classmethod
    def estimate(cls, paths: Sequence[str], reader: str = "auto") -> MemoryNeed:
        """The need of different videos."""
        available = available_memory()
        usable = None if available is None else int(USABLE_SHARE * available)
        return cls(len(paths), estimate_bytes(paths, reader), usable)

    @property
    def fits(self) -> bool:
        """Whether the frames fit, as far as this is known."""
        return self.needed is None or self.usable is None or self.needed <= self.usable

    @property
    def problem(self) -> str:
        """One line with the remedy, for videos that do not fit."""
        return too_large(self.videos, self.needed or 0, self.usable or 0)

    def __str__(self) -> str:
        if self.needed is None:
            return f"{counted(self.videos, 'decoded video')} of unknown size in memory"
        usable = "" if self.usable is None else f"; {size_text(self.usable)} may be used"
        return f"{counted(self.videos, 'decoded video')} in memory: about {size_text(self.needed)}{usable}"


def size_text(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def too_large(videos: int, needed: int, usable: int) -> str:
    """The message about videos that do not fit."""
    return (
        f"data.cache=memory: {videos} decoded videos need about {size_text(needed)}, and {size_text(usable)} "
        f"may be used ({USABLE_SHARE:.0%} of the available memory); shrink the videos with `videomaskfeat "
        "prepare-videos`, or set data.cache=none"
    )


def decode_videos(
    paths: Sequence[str],
    file: IO[bytes],
    *,
    reader: str = "auto",
    workers: int = 0,
    read_seconds: float = READ_SECONDS,
    limit_bytes: int | None = None,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, StoredVideo]:
    """Decode whole videos into a file, for `VideoMemory`.

    A video that cannot be decoded whole is left out: it is read from its file as without a memory.

    Args:
        paths: paths of different videos.
        file: an empty file.
        reader: reader of video files.
        workers: number of processes that decode.
        read_seconds: timeout of a stuck worker.
        limit_bytes: maximum size of all frames; None: 0.8 of the available memory, if that is known.
        stop: called after each video; may raise.

    Raises:
        UserError: the frames do not fit.
    """
    if limit_bytes is None:
        available = available_memory()
        limit_bytes = None if available is None else int(USABLE_SHARE * available)
    videos: dict[str, StoredVideo] = {}
    calls = [(path, reader) for path in paths]
    written = 0
    with closing(call_in_workers(_decode, calls, workers=workers, read_seconds=read_seconds)) as results:
        for number, (path, result) in enumerate(zip(paths, results, strict=True), start=1):
            stop()
            if isinstance(result, VideoReadError):
                continue
            frames, fps = result
            videos[path] = StoredVideo(written, tuple(frames.shape), fps)
            written += frames.numel()
            if limit_bytes is not None and written > limit_bytes:
                raise UserError(too_large(len(paths), written * len(paths) // number, limit_bytes))
            try:
                file.write(frames.numpy().data)
                file.flush()
            except OSError as error:
                raise UserError(
                    f"data.cache=memory: cannot write {file.name}: {error.strerror}; set TMPDIR to a folder "
                    "with more space, such as /dev/shm, or use data.cache=none"
                ) from error
    return videos


def _decode(path: str, reader: str) -> tuple[Tensor, float] | VideoReadError:
    """All frames of a video and its frame rate. Runs in a worker process."""
    try:
        with open_video(path, reader) as video:
            return torch.from_numpy(video.read(np.arange(video.frames))), video.fps
    except VideoReadError as error:
        return error
