"""``pack``: write the videos of a list into tar shards with an index."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from videomaskfeat import io
from videomaskfeat.data.check import Progress
from videomaskfeat.data.cluster import distribute_calls
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Record, Records
from videomaskfeat.data.shard_writing import Member, member_bytes, shard_bytes, video_offsets, write_shard
from videomaskfeat.data.shards import INDEX, IndexedShard, PackedVideo, index_text
from videomaskfeat.errors import RunFailed, UserError, counted
from videomaskfeat.inference.lists import DETECTED_FORMAT, ListChoice

_SHARD = re.compile(r"\d{6}\.tar")


@dataclass(frozen=True)
class PackedList:
    """The written shards.

    Attributes:
        index: path of the index.
        shards: number of shards.
        reused: number of shards that an earlier command had written.
        videos: number of videos.
        bytes: size of all shards.
        failures: cause by path of each video that was left out.
    """

    index: str
    shards: int
    reused: int
    videos: int
    bytes: int
    failures: dict[str, str]

    def text(self) -> str:
        """The index, and what it contains."""
        reused = f", {self.reused} of them by an earlier command" if self.reused else ""
        return (
            f"{self.index}\n{counted(self.videos, 'video')} in {counted(self.shards, 'shard')}{reused}, "
            f"{self.bytes / 1e6:.4g} MB; {len(self.failures)} left out"
        )


def pack(
    path: str,
    out: str,
    *,
    lists: ListChoice = DETECTED_FORMAT,
    shard_mb: float = 256.0,
    ray: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackedList:
    """Write OUT/000000.tar, OUT/000001.tar, ... and OUT/index.json.

    Videos are in the order of the list. A shard has the files `000000012.mp4`, `.cls` (the label) and `.json`
    (path and labels) for row 12, the layout of WebDataset. The same command continues after a stop: complete
    shards that are newer than the list and their videos are kept.

    Args:
        path, lists: list or folder, and how it is read.
        out: folder to write.
        shard_mb: maximum size of a shard [MB, 10^6 bytes]; a larger video has a shard of its own.
        ray: address of a Ray cluster whose nodes write the shards, into the same folder.
        overwrite: replace the shards of a folder with an index.
        progress: called with (shards done, total shards).

    Raises:
        UserError: the list is wrong, or has folders of frames or packed videos; OUT has an index.
        RunFailed: a shard cannot be written, or a video changes meanwhile.
    """
    index = os.path.join(out, INDEX)
    io.check_outputs([index], overwrite=overwrite)
    if os.path.lexists(index):
        os.remove(index)  # while shards change, there must be no index
    records = lists.load(path)
    members, sizes, failures = _find_videos(records)
    if not members:
        source, cause = next(iter(failures.items()))
        raise UserError(f"{path}: no video can be packed; the first: {source}: {cause}")
    groups = _group(members, sizes, shard_mb * 1e6)
    io.make_folder(out)
    io.remove_temporary_files(out)
    shards, calls = list[IndexedShard](), list[tuple[str, list[Member], list[int]]]()
    for number, (start, end) in enumerate(groups):
        own, own_sizes = members[start:end], sizes[start:end]
        name = f"{number:06d}.tar"
        target, size = os.path.join(out, name), shard_bytes(own, own_sizes)
        if not _is_newer(target, size, [path, *(member.record.path for member in own)]):
            calls.append((target, own, own_sizes))
        shards.append(
            IndexedShard(
                name=name,
                bytes=size,
                names=[member.name for member in own],
                offsets=video_offsets(own, own_sizes),
                sizes=own_sizes,
                labels=_labels([member.record for member in own], records),
            )
        )
    _write_shards(calls, ray, reused=len(groups) - len(calls), progress=progress)
    for name in io.list_folder(out):  # of an earlier, longer data set
        if _SHARD.fullmatch(name) and int(name[:6]) >= len(groups):
            os.remove(os.path.join(out, name))
    with io.whole_file(index) as file:
        file.write(index_text(shards, records.class_names))
    total = sum(shard.bytes for shard in shards)
    return PackedList(index, len(shards), len(groups) - len(calls), len(members), total, failures)


def _write_shards(
    calls: Sequence[tuple[str, list[Member], list[int]]],
    ray: str,
    *,
    reused: int,
    progress: Progress | None,
) -> None:
    """Write shards in this process, or on a Ray cluster; ``reused`` others exist."""
    with closing(distribute_calls(_write_shard, calls, ray=ray)) as results:
        for number, ((target, *_), result) in enumerate(zip(calls, results, strict=True), start=reused + 1):
            if isinstance(result, VideoReadError):  # two worker processes of a node were lost
                raise RunFailed(f"{target} cannot be written: {result.cause}")
            if progress is not None:
                progress(number, reused + len(calls))


def _write_shard(path: str, members: Sequence[Member], sizes: Sequence[int]) -> str:
    write_shard(path, members, sizes)
    return path


def _find_videos(records: Records) -> tuple[list[Member], list[int], dict[str, str]]:
    """The videos to pack, their sizes, and why others are left out."""
    members, sizes, failures = list[Member](), list[int](), dict[str, str]()
    for row, record in enumerate(records):
        local = io.local_path(record.path)
        if PackedVideo.parse(record.path) is not None:
            raise UserError(
                f"{records.source} is the index of a packed data set; pack the list of its videos"
            )
        if os.path.isdir(local):
            raise UserError(
                f"{record.path} is a folder of frames, and shards contain files; make videos of such folders "
                "with `videomaskfeat prepare-videos`"
            )
        if not io.is_file(local):
            failures[record.path] = io.missing_cause(record.path)
            continue
        size = os.path.getsize(local)
        if not size:
            failures[record.path] = "empty file (0 bytes)"
            continue
        name = os.path.relpath(record.path, records.root or os.curdir)
        if name.startswith(os.pardir):
            name = os.path.basename(record.path)
        members.append(Member(record, name, f"{row:09d}"))
        sizes.append(size)
    return members, sizes, failures


def _group(members: Sequence[Member], sizes: Sequence[int], limit: float) -> list[tuple[int, int]]:
    """Start and end of each shard."""
    groups, start, filled = list[tuple[int, int]](), 0, 0
    for place, (member, size) in enumerate(zip(members, sizes, strict=True)):
        own = member_bytes(member, size)
        if place > start and filled + own > limit:
            groups.append((start, place))
            start, filled = place, 0
        filled += own
    return [*groups, (start, len(members))]


def _is_newer(target: str, size: int, sources: Sequence[str]) -> bool:
    """Whether a shard has its size, and is newer than the list and the videos."""
    if not os.path.isfile(target) or os.path.getsize(target) != size:
        return False
    written = os.stat(target).st_mtime_ns
    return all(os.stat(source).st_mtime_ns < written for source in sources)


def _labels(own: Sequence[Record], records: Records) -> list[int] | list[list[int]] | None:
    if records.is_multi_label:
        return [list(record.labels or ()) for record in own]
    if records.labels is None:
        return None
    return [-1 if record.label is None else record.label for record in own]
