"""Scan the videos of a list: what cannot be read, what is too short, odd, missing or there twice."""

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
from videomaskfeat.data.reader import VideoInfo, VideoReadError
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import READ_SECONDS, call_in_workers, continue_reading
from videomaskfeat.durations import duration_text
from videomaskfeat.errors import UserError
from videomaskfeat.texts import printable_name

KINDS = {
    "missing": "no such file",
    "unreadable": "cannot be decoded",
    "short": "fewer frames than asked for",
    "duplicate": "the same video as an earlier row",
    "odd": "readable, but worth a look",
}
_DROPPED = ("missing", "unreadable", "short", "duplicate")  # from a clean list
_SHOWN = 20  # problems of a kind in the text; the JSON holds all


@dataclass(frozen=True)
class Scan:
    """One file: its facts, or the cause why there are none.

    Attributes:
        path: as in the list.
        info: the facts, None for a file that cannot be read.
        cause: why it cannot be read.
        missing: whether there is no such file.
        size_bytes: of the file.
        read_seconds: to open it and decode the frames of the scan, in one process.
        decoder: which library decoded it.
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
    """One finding: the row (from 0), its path, a kind of ``KINDS``, and a sentence."""

    row: int
    path: str
    kind: str
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """All findings of a scan.

    Attributes:
        rows: of the list.
        scans: one for each different path.
        problems: by row; a row may have several.
        seconds: that the scan took.
    """

    rows: int
    scans: list[Scan]
    problems: list[Problem]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Rows with a problem of each kind."""
        return {kind: len({p.row for p in self.problems if p.kind == kind}) for kind in KINDS}

    @property
    def bad(self) -> int:
        """Rows that no clip can be read from: missing, unreadable or short."""
        return len({p.row for p in self.problems if p.kind in ("missing", "unreadable", "short")})

    def clean_rows(self) -> list[int]:
        """The rows, from 0, that are fit for training: odd ones stay, and the first of equal ones."""
        bad = {problem.row for problem in self.problems if problem.kind in _DROPPED}
        return [row for row in range(self.rows) if row not in bad]

    def summary(self) -> dict[str, Any]:
        """Numbers over all readable videos: sizes, lengths, codecs, decoding speed."""
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
            "seconds": _spread(seconds),
            "frames": _spread(frames),
            "sizes": _commonest(f"{info.width}x{info.height}" for info in infos),
            "fps": _commonest(f"{info.fps:.4g}" for info in infos),
            "codecs": _commonest(info.codec for info in infos),
            "decoders": _commonest(scan.decoder for scan in self.scans if scan.info is not None),
            "read_milliseconds": _spread(read_seconds * 1000),
            "scan_seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        """Summary, counts, and every problem, as JSON text."""
        content = {
            "summary": self.summary(),
            "counts": self.counts,
            "problems": [
                {"row": p.row + 1, "path": p.path, "kind": p.kind, "detail": p.detail} for p in self.problems
            ],
        }
        return json.dumps(content, indent=1)

    def text(self) -> str:
        """The report for people: the summary, then the first problems of each kind."""
        summary = self.summary()
        read_seconds = {name: value / 1000 for name, value in summary["read_milliseconds"].items()}
        lines = [
            f"{self.rows} rows, {summary['files']} different files, {summary['readable']} readable, "
            f"{summary['gigabytes']:.4g} GB, {duration_text(3600 * summary['hours'])} of video",
            f"length   {_span_words(summary['seconds'], duration_text)}; "
            f"{_span_words(summary['frames'])} frames",
            f"size     {_count_words(summary['sizes'])}",
            f"rate     {_count_words(summary['fps'])} frames a second",
            f"codec    {_count_words(summary['codecs'])}",
            f"decoder  {_count_words(summary['decoders'])}",
            f"reading  {_span_words(read_seconds, duration_text)} per video and process",
        ]
        for kind, meaning in KINDS.items():
            found = [problem for problem in self.problems if problem.kind == kind]
            rows = self.counts[kind]
            lines.append(f"{kind:<11}{rows} row{'s' if rows != 1 else ''} ({meaning})")
            lines += [
                f"    row {p.row + 1}: {printable_name(f'{p.path}: {p.detail}')}" for p in found[:_SHOWN]
            ]
            if len(found) > _SHOWN:
                lines.append(f"    and {len(found) - _SHOWN} more; the JSON report names all")
        return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": round(float(values.min()), 3),
        "median": round(float(np.median(values)), 3),
        "max": round(float(values.max()), 3),
    }


def _commonest(values: Iterable[str], kept: int = 8) -> dict[str, int]:
    """Counts of the commonest values, and of ``other``."""
    counts = Counter(values)
    top = dict(counts.most_common(kept))
    rest = sum(counts.values()) - sum(top.values())
    return {**top, "other": rest} if rest else top


def _count_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items()) or "none"


def _span_words(spread: Mapping[str, float], form: Callable[[float], str] = "{:.4g}".format) -> str:
    return f"{form(spread['min'])} to {form(spread['max'])}, half of them up to {form(spread['median'])}"


Progress = Callable[[int, int], None]
DECODED_FRAMES = 16  # read from each video, first and last included
_IN_FLIGHT = 4  # files handed to each process in advance


def check_list(
    records: Iterable[tuple[str, int | None]],
    *,
    reader: str = "auto",
    workers: int = 1,
    min_frames: int = 1,
    decode: bool = True,
    read_seconds: float = READ_SECONDS,
    progress: Progress | None = None,
) -> CheckReport:
    """Scan every video of a list of (path, label or None).

    Args:
        records: rows, in the list's order.
        reader: as in ``open_video``.
        workers: processes that scan; 0 scans in this one, which a file that crashes the decoder then ends.
        min_frames: a video with fewer is reported as ``short``.
        decode: also decode 16 frames spread over each video; else only its header is tested, which is
            quicker.
        read_seconds: time without progress on one file after which it counts as unreadable.
        progress: called with (files done, files in all), from this process.

    Raises:
        UserError: the list is empty, the reader unknown, or ``workers`` negative.
    """
    rows = list(records)
    if not rows:
        raise UserError("the list holds no video; nothing to check")
    if workers < 0:
        raise UserError(f"workers={workers}: must be at least 0 (which scans in this process)")
    first_row: dict[str, int] = {}
    for row, (path, _) in enumerate(rows):
        first_row.setdefault(path, row)
    started = time.perf_counter()
    paths = list(first_row)
    scans: dict[str, Scan] = {}
    calls = [(path, reader, decode) for path in paths]
    results = call_in_workers(_scan, calls, workers=workers, ahead=_IN_FLIGHT, read_seconds=read_seconds)
    for path, scan in zip(paths, results, strict=True):
        scans[path] = Scan(path, cause=scan.cause) if isinstance(scan, VideoReadError) else scan
        if progress is not None:
            progress(len(scans), len(paths))
    problems = _problems(rows, scans, first_row, min_frames)
    problems += _equal_contents(rows, scans, first_row, workers, read_seconds)
    return CheckReport(
        rows=len(rows),
        scans=[scans[path] for path in paths],
        problems=sorted(problems, key=lambda problem: problem.row),
        seconds=time.perf_counter() - started,
    )


def _scan(path: str, reader: str, decode: bool) -> Scan:
    """Facts about one file. Runs in a worker process."""
    local = io.local_path(path)
    if not os.path.exists(local):
        return Scan(path, missing=True, cause=io.missing_cause(path))
    size = sum(os.path.getsize(file) for file in _files(local))
    try:
        started = time.perf_counter()
        with open_video(path, reader) as video:
            if decode:
                video.read(np.unique(np.linspace(0, video.frames - 1, DECODED_FRAMES).astype(np.int64)))
            seconds = time.perf_counter() - started
            return Scan(path, video.info, size_bytes=size, read_seconds=seconds, decoder=video.decoder)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file provokes is this file's finding, not the scan's end
        return Scan(path, size_bytes=size, cause=getattr(error, "cause", None) or repr(error))


def _digest(path: str) -> str:
    """The hash of the content of a file, or of the pictures of a folder. Runs in a worker process."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _files(io.local_path(path)):
        with io.open_file(name, "rb") as file:
            while block := file.read(1 << 20):
                continue_reading()
                digest.update(block)
    return digest.hexdigest()


def _files(path: str) -> list[str]:
    """The file itself, or the files of a folder of frames."""
    if not os.path.isdir(path):
        return [path]
    return [
        name for name in (os.path.join(path, entry) for entry in io.list_folder(path)) if os.path.isfile(name)
    ]


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
            problems.append(Problem(row, path, "short", f"{info.frames} frames, fewer than {min_frames}"))
        if info.rotation_degrees or info.mirrored:
            turn = f"turned by {info.rotation_degrees} degrees" if info.rotation_degrees else ""
            words = " and ".join(filter(None, ("mirrored" if info.mirrored else "", turn)))
            problems.append(Problem(row, path, "odd", words))
        if info.variable_frame_rate:
            problems.append(Problem(row, path, "odd", f"variable frame rate, {info.fps:.4g} on average"))
        if not info.fps > 0:
            problems.append(Problem(row, path, "odd", "no frame rate"))
    return problems


def _equal_contents(
    rows: Sequence[tuple[str, int | None]],
    scans: dict[str, Scan],
    first_row: dict[str, int],
    workers: int,
    read_seconds: float,
) -> list[Problem]:
    """Files of different paths and the same bytes; only those of equal size are read for it."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path, scan in scans.items():
        if scan.info is not None:
            by_size[scan.size_bytes].append(path)
    suspects = [(path,) for paths in by_size.values() if len(paths) > 1 for path in paths]
    by_digest: dict[str, list[str]] = defaultdict(list)
    digests = call_in_workers(_digest, suspects, workers=workers, ahead=_IN_FLIGHT, read_seconds=read_seconds)
    for (path,), digest in zip(suspects, digests, strict=True):
        if not isinstance(digest, VideoReadError):
            by_digest[digest].append(path)
    problems = []
    for paths in by_digest.values():
        first, *others = sorted(paths, key=first_row.__getitem__)
        problems += [_duplicate(rows, first_row[path], first_row[first], "same content") for path in others]
    return problems


def _duplicate(rows: Sequence[tuple[str, int | None]], row: int, first: int, what: str) -> Problem:
    (path, label), (original, other) = rows[row], rows[first]
    detail = f"{what} as row {first + 1}" + (f" ({original})" if original != path else "")
    if label != other:
        detail += f", but label {label} and not {other}"
    return Problem(row, path, "duplicate", detail)
