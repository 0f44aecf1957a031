"""``prepare-videos``: re-encode the videos of a list for training, and write the new list."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.check import Progress
from videomaskfeat.data.cluster import distribute_calls
from videomaskfeat.data.formats.writing import write_list
from videomaskfeat.data.prepare import Encoding, PreparedVideo, prepare_video
from videomaskfeat.data.reader import PICTURE_SUFFIXES, VideoReadError
from videomaskfeat.data.records import Record, Records
from videomaskfeat.data.workers import READ_SECONDS
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import UserError
from videomaskfeat.inference.lists import DETECTED_FORMAT, ListChoice
from videomaskfeat.texts import json_rows

logger = logging.getLogger(__name__)
_LOG = "prepared.jsonl"


@dataclass(frozen=True)
class PreparedList:
    """The written list.

    Attributes:
        path: the list.
        videos: new files by path of their sources.
        failures: cause by path of each source that could not be prepared.
        earlier: number of videos that an earlier command had prepared.
    """

    path: str
    videos: dict[str, PreparedVideo]
    failures: dict[str, str]
    earlier: int

    def text(self) -> str:
        """Number, size, quality and decoding time of the videos."""
        lines = [self.path]
        done = f", {self.earlier} of them by an earlier command" if self.earlier else ""
        lines.append(f"videos    {len(self.videos)} prepared{done}, {len(self.failures)} left out")
        if not self.videos:
            return "\n".join(lines)
        old, new = np.array([video.bytes for video in self.videos.values()]).sum(axis=0) / 1e6
        lines.append(f"size      {old:.4g} MB before, {new:.4g} MB after ({old / new:.2f}x smaller)")
        old, new = np.median([video.clip_seconds for video in self.videos.values()], axis=0)
        lines.append(
            f"reading   {duration_text(old)} per clip of 16 frames before, {duration_text(new)} after "
            f"({old / new:.2f}x faster)"
        )
        ratios = {path: video.psnr for path, video in self.videos.items()}
        worst = min(ratios, key=ratios.__getitem__)
        lines.append(
            f"quality   PSNR {np.median(list(ratios.values())):.1f} dB in the median, {ratios[worst]:.1f} dB "
            f"at least ({worst}), against the resized frames"
        )
        return "\n".join(lines)


def prepare_videos(
    path: str,
    out: str,
    *,
    encoding: Encoding,
    lists: ListChoice = DETECTED_FORMAT,
    workers: int = 1,
    ray: str = "",
    read_seconds: float = READ_SECONDS,
    progress: Progress | None = None,
) -> PreparedList:
    """Write OUT/videos and OUT/LIST.csv with the labels of the list.

    The same command continues after a stop: files that are complete are kept. A video that cannot be decoded
    is left out of the new list, and named in OUT/failures.txt.

    Args:
        path, lists: list or folder, and how it is read.
        out: folder to write.
        workers: number of processes, at least 1.
        ray: address of a Ray cluster that re-encodes instead; its nodes write into the same folder. See
            :func:`~videomaskfeat.data.cluster.distribute_calls`.
        read_seconds: time without progress on one video after which it is left out.
        progress: called with (videos done, total videos).

    Raises:
        UserError: the list is wrong or has pictures, no video can be decoded, or the folder contains the
            list, files of something else, or videos prepared with other options.
        RunFailed: a file cannot be written.
    """
    records = lists.load(path)
    if records.ends_with(PICTURE_SUFFIXES).any():
        raise UserError(f"{path} contains pictures; prepare-videos needs videos, or folders of frames")
    targets = _name_targets(records, out)
    name = os.path.splitext(os.path.basename(os.path.normpath(path)))[0]
    new_list, damaged, classes = (
        os.path.join(out, one) for one in (f"{name}.csv", "failures.txt", "classes.txt")
    )
    log = os.path.join(out, _LOG)
    _check_folder(path, [new_list, damaged, classes], started=io.is_file(log))
    videos = _open_folder(out, targets, log, encoding)
    earlier, failures = len(videos), dict[str, str]()
    calls = [
        (source, os.path.join(out, target), encoding)
        for source, target in targets.items()
        if source not in videos
    ]
    results = distribute_calls(
        _prepare, calls, ray=ray, workers=max(workers, 1), ahead=1, read_seconds=read_seconds
    )
    with closing(results):
        for number, ((source, *_), result) in enumerate(zip(calls, results, strict=True), start=1):
            if isinstance(result, VideoReadError):
                failures[source] = result.cause
            else:
                videos[source] = result
                io.append_text(log, json.dumps({"source": source, **asdict(result)}) + "\n")
            if progress is not None:
                progress(earlier + number, len(targets))
    if not videos:
        source, cause = next(iter(failures.items()))
        raise UserError(f"{path}: no video can be prepared; the first: {source}: {cause}")
    rows = [
        Record(os.path.join(out, targets[record.path]), record.label, record.labels)
        for record in records
        if record.path in videos
    ]
    write_list(new_list, rows)
    _write_lines(damaged, (f"{source}: {cause}" for source, cause in failures.items()))
    if records.class_names:
        _write_lines(classes, records.class_names)
    return PreparedList(new_list, videos, failures, earlier)


def _prepare(source: str, target: str, encoding: Encoding) -> PreparedVideo | VideoReadError:
    try:
        return prepare_video(source, target, encoding)
    except VideoReadError as error:
        return error


def _name_targets(records: Records, out: str) -> dict[str, str]:
    """The new file of each source, below ``videos/`` with its path below the folder of the list.

    Raises:
        UserError: it would replace its source.
    """
    targets, taken = dict[str, str](), set[str]()
    for record in records:
        if record.path in targets:
            continue
        name = os.path.relpath(record.path, records.root or os.curdir)
        if name == os.curdir or name.startswith(os.pardir):
            name = os.path.basename(os.path.abspath(record.path))
        stem = os.path.join("videos", " ".join(os.path.splitext(name)[0].splitlines()))
        stem = io.free_name(stem, taken)
        taken.add(stem)
        targets[record.path] = f"{stem}.mp4"
    for source, target in targets.items():
        if os.path.realpath(source) == os.path.realpath(os.path.join(out, target)):
            raise UserError(f"{out} contains the video {source} of the list; choose another folder")
    return targets


def _write_lines(path: str, lines: Iterable[str]) -> None:
    with io.whole_file(path, errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in lines)


def _check_folder(path: str, outputs: Sequence[str], *, started: bool) -> None:
    """Refuse to replace the list itself, and files that are not of a started preparation."""
    existing = [one for one in outputs if io.is_file(one)]
    if any(os.path.realpath(one) == os.path.realpath(path) for one in existing):
        raise UserError(f"{path}: the new list would replace this one; choose another folder")
    if existing and not started:
        raise UserError(f"{existing[0]} exists, and is not of prepare-videos; choose another folder")


def _open_folder(
    out: str, targets: Mapping[str, str], log: str, encoding: Encoding
) -> dict[str, PreparedVideo]:
    """Create the folder and its log, or continue them; returns the complete videos by source.

    Raises:
        UserError: an earlier command prepared videos with other options.
    """
    io.make_folder(out)
    known = _read_log(log, encoding)
    if not known:
        _write_lines(log, [json.dumps({"encoding": asdict(encoding)})])
    for folder in sorted({os.path.dirname(os.path.join(out, target)) for target in targets.values()}):
        io.make_folder(folder)
        io.remove_temporary_files(folder)
    return {
        source: known[source]
        for source, target in targets.items()
        if source in known and _has_size(os.path.join(out, target), known[source].bytes[1])
    }


def _read_log(log: str, encoding: Encoding) -> dict[str, PreparedVideo]:
    """The videos that earlier commands prepared, by source; UserError if with other options."""
    if not io.is_file(log):
        return {}
    known = dict[str, PreparedVideo]()
    for row in json_rows(log, what="the log of prepare-videos"):
        if row is not None and "encoding" in row and row["encoding"] != asdict(encoding):
            old, new = row["encoding"], asdict(encoding)
            changed = [f"{name}={old[name]}" for name in new if old.get(name, new[name]) != new[name]]
            raise UserError(
                f"{os.path.dirname(log)} was prepared with {', '.join(changed) or 'other options'}; use "
                "these, or choose another folder"
            )
        if row is not None and "source" in row:
            video = dict(row)
            source = video.pop("source")
            pairs = {name: tuple(video[name]) for name in ("size", "bytes", "clip_seconds")}
            known[source] = PreparedVideo(**{**video, **pairs})
    return known


def _has_size(path: str, size: int) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == size
