"""Scan the videos of a list for unreadable, short, odd, missing and duplicate ones."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.cluster import distribute_calls
from videomaskfeat.data.reader import VideoInfo, VideoReadError
from videomaskfeat.data.shards import PackedVideo
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import READ_SECONDS, continue_reading
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import UserError, counted
from videomaskfeat.texts import printable_name

KINDS = {
    "missing": "no such file",
    "unreadable": "cannot be decoded",
    "short": "fewer frames than required",
    "duplicate": "the same video as in an earlier row",
    "odd": "readable, but unusual",
}
_BAD = ("missing", "unreadable", "short")  # no clip can be read
_SHOWN = 20  # problems per kind in the text; the JSON contains all


@dataclass(frozen=True)
class Scan:
    """The facts of one file, or why it cannot be read.

    Attributes:
        path: as in the list.
        info: the facts, None if the file cannot be read.
        cause: why it cannot be read.
        missing: whether there is no such file.
        size_bytes: size of the file.
        read_seconds: time to open it and decode the frames of the scan, in one process.
        decoder: library that decoded it.
    """

    path: str
    info: VideoInfo | None = None
    cause: str | None = None
    missing: bool = False
    size_bytes: int = 0
    read_seconds: float = 0.0
    decoder: str = ""


@dataclass(frozen=True)
class Problem:
    """A problem of a row (from 0): its path, a kind of ``KINDS``, and a description."""

    row: int
    path: str
    kind: str
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """The result of a scan.

    Attributes:
        rows: number of rows of the list.
        scans: one for each different path.
        problems: in order of rows; a row may have several.
        seconds: duration of the scan.
    """

    rows: int
    scans: list[Scan]
    problems: list[Problem]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows with a problem of each kind."""
        return {kind: len(self._rows_with(kind)) for kind in KINDS}

    @property
    def bad(self) -> int:
        """Number of rows without a readable clip: missing, unreadable or short."""
        return len(self._rows_with(*_BAD))

    def clean_rows(self) -> list[int]:
        """The rows, from 0, to train on: also odd ones, and the first of each set of duplicates."""
        dropped = self._rows_with(*_BAD, "duplicate")
        return [row for row in range(self.rows) if row not in dropped]

    def _rows_with(self, *kinds: str) -> set[int]:
        return {problem.row for problem in self.problems if problem.kind in kinds}

    def summary(self) -> dict[str, Any]:
        """Statistics of all readable videos: sizes, lengths, codecs, decoding speed."""
        infos = [scan.info for scan in self.scans if scan.info is not None]
        frames = np.array([info.frames for info in infos] or [0])
        seconds = np.array([info.duration_seconds for info in infos] or [0.0])
        read_seconds = np.array([scan.read_seconds for scan in self.scans if scan.info is not None] or [0.0])
        return {
            "rows": self.rows,
            "files": len(self.scans),
            "readable": len(infos),
            "gigabytes": round(sum(scan.size_bytes for scan in self.scans) / 1e9, 6),
            "hours": round(float(seconds.sum()) / 3600, 6),
            "seconds": _distribution(seconds),
            "frames": _distribution(frames),
            "sizes": _most_common(f"{info.width}x{info.height}" for info in infos),
            "fps": _most_common(f"{info.fps:.4g}" for info in infos),
            "codecs": _most_common(info.codec for info in infos),
            "decoders": _most_common(scan.decoder for scan in self.scans if scan.info is not None),
            "read_milliseconds": _distribution(read_seconds * 1000),
            "scan_seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        """Summary, counts and all problems as JSON."""
        content = {
            "summary": self.summary(),
            "counts": self.counts,
            "problems": [
                {"row": p.row + 1, "path": p.path, "kind": p.kind, "detail": p.detail} for p in self.problems
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def text(self) -> str:
        """The report as text: the summary, then the first problems of each kind."""
        summary = self.summary()
        gigabytes = summary["gigabytes"]
        size = f"{gigabytes:.4g} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.4g} MB"
        read_seconds = {name: value / 1000 for name, value in summary["read_milliseconds"].items()}
        lines = [
            f"{self.rows} rows, {summary['files']} different files, {summary['readable']} readable, "
            f"{size}, {duration_text(3600 * summary['hours'])} of video",
            f"length   {_format_distribution(summary['seconds'], duration_text)}; "
            f"{_format_distribution(summary['frames'])} frames",
            f"size     {_format_counts(summary['sizes'])}",
            f"rate     {_format_counts(summary['fps'])} frames per second",
            f"codec    {_format_counts(summary['codecs'])}",
            f"decoder  {_format_counts(summary['decoders'])}",
            f"reading  {_format_distribution(read_seconds, duration_text)} per video and process",
        ]
        for kind, meaning in KINDS.items():
            problems = [problem for problem in self.problems if problem.kind == kind]
            lines.append(f"{kind:<11}{counted(self.counts[kind], 'row')} ({meaning})")
            lines += [
                f"    row {p.row + 1}: {printable_name(f'{p.path}: {p.detail}')}" for p in problems[:_SHOWN]
            ]
            if len(problems) > _SHOWN:
                lines.append(f"    and {len(problems) - _SHOWN} more; the JSON report lists all")
        return "\n".join(lines)


def _distribution(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(getattr(np, name)(values)), 3) for name in ("min", "median", "max")}


def _most_common(values: Iterable[str]) -> dict[str, int]:
    """Counts of the eight most common values, and of ``other``."""
    counts = Counter(values)
    top = dict(counts.most_common(8))
    rest = counts.total() - sum(top.values())
    return {**top, "other": rest} if rest else top


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items()) or "none"


def _format_distribution(values: Mapping[str, float], text: Callable[[float], str] = "{:.4g}".format) -> str:
    return f"{text(values['min'])} to {text(values['max'])}, median {text(values['median'])}"


Progress = Callable[[int, int], None]
DECODED_FRAMES = 16  # per video, including the first and the last one
_AHEAD = 4  # files sent to each process in advance


def check_list(
    records: Iterable[tuple[str, int | None]],
    *,
    reader: str = "auto",
    workers: int = 1,
    min_frames: int = 1,
    decode: bool = True,
    read_seconds: float = READ_SECONDS,
    ray: str = "",
    progress: Progress | None = None,
) -> CheckReport:
    """Scan every video of a list of (path, label or None).

    Args:
        records: rows in the order of the list.
        reader: see ``open_video``.
        workers: number of processes that scan; 0 scans in this process, which a file may then crash.
        min_frames: a video with fewer frames is reported as ``short``.
        decode: also decode 16 frames spread over each video; False only tests its header, which is faster.
        read_seconds: time without progress on one file after which it counts as unreadable.
        ray: address of a Ray cluster that scans instead; see `distribute_calls`.
        progress: called with (files done, total files), in this process.

    Raises:
        UserError: the list is empty, the reader is unknown, ``workers`` is negative, or the cluster does not
            answer.
    """
    rows = list(records)
    if not rows:
        raise UserError("the list contains no videos; nothing to check")
    if workers < 0:
        raise UserError(f"workers={workers}: must be at least 0 (0 scans in this process)")
    first_row: dict[str, int] = {}
    for row, (path, _) in enumerate(rows):
        first_row.setdefault(path, row)
    started = time.perf_counter()
    paths = list(first_row)
    scans: dict[str, Scan] = {}
    calls = [(path, reader, decode) for path in paths]
    options: dict[str, Any] = {"ray": ray, "workers": workers, "ahead": _AHEAD, "read_seconds": read_seconds}
    results = distribute_calls(_scan, calls, **options)
    for path, scan in zip(paths, results, strict=True):
        scans[path] = Scan(path, cause=scan.cause) if isinstance(scan, VideoReadError) else scan
        if progress is not None:
            progress(len(scans), len(paths))
    problems = _problems(rows, scans, first_row, min_frames)
    problems += _equal_contents(rows, scans, first_row, options)
    return CheckReport(
        rows=len(rows),
        scans=[scans[path] for path in paths],
        problems=sorted(problems, key=lambda problem: problem.row),
        seconds=time.perf_counter() - started,
    )


def _scan(path: str, reader: str, decode: bool) -> Scan:
    """The facts of one file. Runs in a worker process."""
    packed = PackedVideo.parse(path)
    local = io.local_path(packed.shard if packed else path)
    if not os.path.exists(local) and not (packed and "://" in local):
        return Scan(path, missing=True, cause=io.missing_cause(local))
    size = packed.size if packed else sum(os.path.getsize(file) for file in files_of(local))
    try:
        started = time.perf_counter()
        with open_video(path, reader) as video:
            if decode:
                video.read(np.unique(np.linspace(0, video.frames - 1, DECODED_FRAMES).astype(np.int64)))
            seconds = time.perf_counter() - started
            return Scan(path, video.info, size_bytes=size, read_seconds=seconds, decoder=video.decoder)
    except UserError:
        raise
    except Exception as error:  # any error of a damaged file is a result of the scan
        return Scan(path, size_bytes=size, cause=getattr(error, "cause", None) or repr(error))


def _digest(path: str) -> str:
    """The hash of a file's content, or of all pictures of a folder. Runs in a worker process."""
    digest = hashlib.blake2b(digest_size=16)
    packed = PackedVideo.parse(path)
    if packed:
        digest.update(packed.read())
        return digest.hexdigest()
    for name in files_of(io.local_path(path)):
        with io.open_file(name, "rb") as file:
            while block := file.read(1 << 20):
                continue_reading()
                digest.update(block)
    return digest.hexdigest()


def files_of(path: str) -> list[str]:
    """A local file itself, or the files of a folder of frames."""
    if not os.path.isdir(path):
        return [path]
    return list(filter(os.path.isfile, (os.path.join(path, name) for name in io.list_folder(path))))


def _problems(
    rows: Sequence[tuple[str, int | None]], scans: dict[str, Scan], first_row: dict[str, int], min_frames: int
) -> list[Problem]:
    problems = []
    for row, (path, _) in enumerate(rows):
        if first_row[path] != row:
            problems.append(_duplicate(rows, row, first_row[path], "same path"))
            continue
        scan = scans[path]
        if scan.info is None:
            kind = "missing" if scan.missing else "unreadable"
            problems.append(Problem(row, path, kind, scan.cause or "unknown"))
            continue
        info = scan.info
        if info.frames < min_frames:
            problems.append(
                Problem(row, path, "short", f"{counted(info.frames, 'frame')}, fewer than {min_frames}")
            )
        if info.rotation_degrees or info.mirrored:
            changes = ["mirrored"] if info.mirrored else []
            changes += [f"rotated by {info.rotation_degrees} degrees"] if info.rotation_degrees else []
            problems.append(Problem(row, path, "odd", " and ".join(changes)))
        if info.variable_frame_rate:
            problems.append(Problem(row, path, "odd", f"variable frame rate, {info.fps:.4g} on average"))
        if not info.fps > 0:
            problems.append(Problem(row, path, "odd", "no frame rate"))
    return problems


def _equal_contents(
    rows: Sequence[tuple[str, int | None]],
    scans: dict[str, Scan],
    first_row: dict[str, int],
    options: Mapping[str, Any],
) -> list[Problem]:
    """Files with different paths and equal bytes; only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path, scan in scans.items():
        if scan.info is not None:
            by_size[scan.size_bytes].append(path)
    suspects = [(path,) for paths in by_size.values() if len(paths) > 1 for path in paths]
    by_digest: dict[str, list[str]] = defaultdict(list)
    digests = distribute_calls(_digest, suspects, **options)
    for (path,), digest in zip(suspects, digests, strict=True):
        if not isinstance(digest, VideoReadError):
            by_digest[digest].append(path)
    problems = []
    for paths in by_digest.values():
        first, *others = sorted(paths, key=first_row.__getitem__)
        problems += [_duplicate(rows, first_row[path], first_row[first], "same content") for path in others]
    return problems


def _duplicate(rows: Sequence[tuple[str, int | None]], row: int, first: int, equality: str) -> Problem:
    (path, label), (original, other) = rows[row], rows[first]
    detail = f"{equality} as row {first + 1}" + (f" ({original})" if original != path else "")
    if label != other:
        detail += f", but label {label} instead of {other}"
    return Problem(row, path, "duplicate", detail)
