"""Scan the videos of a list: what cannot be read, what is too short, odd, missing or there twice.

The scan runs in processes of its own, so that a file on which a decoder crashes outright, or which is never
read to its end, costs a process and not the scan.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from videomaskfeat import io
from videomaskfeat.data.check_report import CheckReport, Problem, Scan
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.reading import continue_reading
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import READ_SECONDS, call_apart
from videomaskfeat.errors import UserError

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
    """Scan every video of a list.

    Args:
        records: (path, label or None) a row, in the list's order.
        reader: as in ``open_video``.
        workers: processes that scan; 0 scans in this one, which a file that crashes the decoder then ends.
        min_frames: a video with fewer is reported as ``short``.
        decode: whether 16 frames spread over each video are decoded too, first and last included. Without it
            only what the file says of itself is tested, which is much quicker.
        read_seconds: time without progress on one file after which it counts as unreadable.
        progress: called with (files done, files in all), from this process.

    Returns:
        What was found, by row.

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
    results = call_apart(_scan, calls, workers=workers, ahead=_IN_FLIGHT, read_seconds=read_seconds)
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
    digests = call_apart(_digest, suspects, workers=workers, ahead=_IN_FLIGHT, read_seconds=read_seconds)
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
