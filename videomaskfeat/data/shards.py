"""Videos in tar shards of the WebDataset format, read one by one at their offsets, and the index of shards.

A packed video has the path ``SHARD#OFFSET:SIZE#NAME``, so the list of a packed data set is like any other:
order, ranks, workers and resuming do not depend on how its videos are stored.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from videomaskfeat.data.reader import VideoInfo, VideoReader, VideoReadError
from videomaskfeat.errors import UserError

INDEX = "index.json"
FORMAT = "videomaskfeat shards"
_PATH = re.compile(r"(?P<shard>.+?)#(?P<offset>\d+):(?P<size>\d+)#(?P<name>.*)", re.DOTALL)


@dataclass(frozen=True)
class PackedVideo:
    """A video in a shard.

    Attributes:
        shard: path or URL of the tar file.
        offset: first byte of the video in it.
        size: number of bytes of the video.
        name: path of the video in the list that was packed.
    """

    shard: str
    offset: int
    size: int
    name: str

    @property
    def path(self) -> str:
        """The path of the video in lists."""
        return f"{self.shard}#{self.offset}:{self.size}#{self.name}"

    @staticmethod
    def parse(path: str) -> PackedVideo | None:
        """The video of a path; None for the path of a file."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        return PackedVideo(match["shard"], int(match["offset"]), int(match["size"]), match["name"])

    def read(self) -> bytes:
        """The bytes of the video.

        Raises:
            VideoReadError: the shard is missing or truncated, or does not answer.
        """
        if "://" in self.shard:
            from videomaskfeat.data.remote import RemoteError, read_range

            try:
                data = read_range(self.shard, self.offset, self.size)
            except RemoteError as error:
                raise VideoReadError(self.path, str(error)) from error
        else:
            try:
                with open(self.shard, "rb") as file:
                    file.seek(self.offset)
                    data = file.read(self.size)
            except OSError as error:
                raise VideoReadError(self.path, f"the shard cannot be read ({error.strerror})") from error
        if len(data) != self.size:
            raise VideoReadError(self.path, "the shard is truncated")
        return data


@contextmanager
def _whole_bytes(data: bytes) -> Iterator[str]:
    """A path from which any library can open the bytes: a file in memory where the system has these."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("video"), "wb", buffering=0) as file:
            file.write(data)
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video")
        with open(path, "wb") as file:
            file.write(data)
        yield path


class PackedReader(VideoReader):
    """A video in a shard, read with the reader of a file.

    Args:
        video: the video.
        open_file: opens a local file; called with its path.

    Raises:
        VideoReadError: as `PackedVideo.read`, or the reader cannot open the video.
    """

    def __init__(self, video: PackedVideo, open_file: Callable[[str], VideoReader]) -> None:
        self.path = video.path
        self._context = _whole_bytes(video.read())
        local = self._context.__enter__()
        try:
            with self._named_errors():
                self._reader = open_file(local)
        except BaseException:
            self._context.__exit__(None, None, None)
            raise
        self._open = True
        self.frames, self.fps = self._reader.frames, self._reader.fps

    @property
    def decoder(self) -> str:  # type: ignore[override]
        """Library that decodes."""
        return self._reader.decoder

    @property
    def info(self) -> VideoInfo:
        with self._named_errors():
            return replace(self._reader.info, path=self.path)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._reader.close()
            self._context.__exit__(None, None, None)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        with self._named_errors():
            return self._reader.read(indices)

    def _iter_frames(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        with self._named_errors():
            yield from self._reader.iter_frames(indices)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the packed video in errors, not its bytes in memory."""
        try:
            yield
        except VideoReadError as error:
            raise VideoReadError(self.path, error.cause) from error


# The index.


@dataclass(frozen=True)
class IndexedShard:
    """A shard in the index: its name, its size, and columns with a value per video.

    Attributes:
        name: file name, relative to the index.
        bytes: size of the file.
        names, offsets, sizes: see `PackedVideo`.
        labels: a label per video, or a list of labels in a multi-label list; None without labels.
    """

    name: str
    bytes: int
    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[Any] | None


def index_text(shards: Sequence[IndexedShard], class_names: Sequence[str]) -> str:
    """The content of an index."""
    content = {"format": FORMAT, "version": 1, "class_names": list(class_names)}
    return json.dumps({**content, "shards": [vars(shard) for shard in shards]})


def parse_index(content: Any, source: str) -> tuple[list[IndexedShard], list[str]]:
    """The shards and the class names of an index; UserError if it is not one."""
    wrong = UserError(
        f"{source}: not an index of shards, or damaged; write it again with `videomaskfeat pack`"
    )
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise wrong
    if content.get("version") != 1:
        raise UserError(
            f"{source}: an index of version {content.get('version')!r}; this package reads version 1"
        )
    try:
        shards = [IndexedShard(**shard) for shard in content["shards"]]
        class_names = [str(name) for name in content["class_names"]]
        for shard in shards:
            columns: list[list[Any]] = [shard.names, shard.offsets, shard.sizes]
            columns += [shard.labels] if shard.labels is not None else []
            numbers = [shard.bytes, *shard.offsets, *shard.sizes]
            valid = all(type(number) is int and number >= 0 for number in numbers)
            valid = valid and all(isinstance(name, str) and "\0" not in name for name in shard.names)
            valid = valid and len({len(column) for column in columns}) == 1
            if not valid or not re.fullmatch(r"[\w.-]+\.tar", shard.name):
                raise wrong
            ends = [start + size for start, size in zip(shard.offsets, shard.sizes, strict=True)]
            if max(ends, default=0) > shard.bytes:
                raise wrong
    except (TypeError, KeyError) as error:
        raise wrong from error
    return shards, class_names


def check_shards(root: str, shards: Sequence[IndexedShard], source: str) -> None:
    """Raise UserError if a shard is missing, or has another size than in the index."""
    paths = [os.path.join(root, shard.name) for shard in shards]
    if "://" in root:
        from videomaskfeat.data.remote import file_sizes

        sizes = file_sizes(paths)
    else:
        sizes = []
        for path in paths:
            size = None
            with suppress(OSError):
                size = os.path.getsize(path)
            sizes.append(size)
    missing = [shard.name for shard, size in zip(shards, sizes, strict=True) if size is None]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(shards)} shards are missing ({', '.join(missing[:5])}); copy "
            "them into the folder of the index"
        )
    for shard, size in zip(shards, sizes, strict=True):
        if size != shard.bytes:
            raise UserError(
                f"{os.path.join(root, shard.name)} has {size:,} bytes instead of {shard.bytes:,}: "
                "truncated, or of another index; copy it again"
            )
