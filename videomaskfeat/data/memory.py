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
from videomaskfeat.errors import UserError
from videomaskfeat.machine import available_memory

USABLE_SHARE = 0.8
"""Maximum share of the available memory that decoded videos may use."""
_FIRST_ESTIMATE = 32  # videos after which the size of all is estimated


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
    available = available_memory()
    if limit_bytes is None and available is not None:
        limit_bytes = int(USABLE_SHARE * available)
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
            expected = written * len(paths) // number if number >= _FIRST_ESTIMATE else written
            if limit_bytes is not None and expected > limit_bytes:
                raise UserError(
                    f"data.cache=memory: {len(paths)} decoded videos need about {expected / 2**30:.2f} GiB, "
                    f"and {limit_bytes / 2**30:.2f} GiB may be used ({USABLE_SHARE:.0%} of the available "
                    "memory); use data.cache=none, or shorter or smaller videos"
                )
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
