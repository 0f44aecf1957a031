"""Writing of tar shards in the layout of WebDataset."""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

from videomaskfeat import io
from videomaskfeat.data.records import Record
from videomaskfeat.errors import RunFailed

_BLOCK = 512  # bytes; tar pads headers and contents to whole blocks
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_RESTART = "start the same command again"


@dataclass(frozen=True)
class Member:
    """A video to pack.

    Attributes:
        record: row of the list.
        name: path of the video in the index.
        key: name of its files in the shard, without extension.
    """

    record: Record
    name: str
    key: str

    @property
    def suffix(self) -> str:
        """Extension of its file in the shard."""
        suffix = os.path.splitext(self.name)[1].lower()
        return suffix if _SUFFIX.fullmatch(suffix) else ".bin"

    def notes(self) -> list[tuple[str, bytes]]:
        """Extension and content of the other files of a WebDataset sample: its label, and its origin."""
        record = self.record
        label: dict[str, Any] = {} if record.label is None else {"label": record.label}
        if record.labels is not None:
            label = {"labels": list(record.labels)}
        notes = [(".json", json.dumps({"path": self.name, **label}).encode())]
        return notes if record.label is None else [(".cls", str(record.label).encode()), *notes]


def member_bytes(member: Member, size: int) -> int:
    """Bytes of a video and its notes in a shard."""
    sizes = [size, *(len(content) for _, content in member.notes())]
    return sum(_BLOCK + -(-one // _BLOCK) * _BLOCK for one in sizes)


def shard_bytes(members: Sequence[Member], sizes: Sequence[int]) -> int:
    """Size of the tar file of some videos, with its end."""
    content = sum(member_bytes(member, size) for member, size in zip(members, sizes, strict=True))
    return -(-(content + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def video_offsets(members: Sequence[Member], sizes: Sequence[int]) -> list[int]:
    """First byte of each video in its shard."""
    starts = itertools.accumulate(map(member_bytes, members, sizes), initial=0)
    return [start + _BLOCK for start, _ in zip(starts, members, strict=False)]


def write_shard(path: str, members: Sequence[Member], sizes: Sequence[int]) -> None:
    """Write a tar file of videos with these sizes.

    Raises:
        RunFailed: the shard cannot be written, or a video cannot be read or has another size.
    """
    with (
        io.whole_file(path, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for member, size in zip(members, sizes, strict=True):
            source = io.local_path(member.record.path)
            try:
                with open(source, "rb") as video:
                    if os.fstat(video.fileno()).st_size != size:
                        raise RunFailed(f"{source}: has changed since the start; {_RESTART}")
                    _add(archive, member.key + member.suffix, video, size)
            except FileNotFoundError as error:
                raise RunFailed(f"{source}: was removed since the start; {_RESTART}") from error
            for suffix, content in member.notes():
                _add(archive, member.key + suffix, BytesIO(content), len(content))


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """Add a file without dates and owners, so that equal videos make equal shards."""
    header = tarfile.TarInfo(name)
    header.size = size
    archive.addfile(header, content)
