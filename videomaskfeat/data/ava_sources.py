"""Finds AVA's videos, as files or extracted frames, and the second at which each begins."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.folders import VIDEO_SUFFIXES
from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.frames import EXTRACTED_FPS, FrameFilesReader, frames_in_folder
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.timed_reader import CountedReader, TimedReader
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_folder, list_folder

logger = logging.getLogger(__name__)

_POSSIBLE_STARTS = (0.0, 900.0)  # AVA's cut videos and extracted frames begin at second 900 of the film
_LENGTH_TOLERANCE = 0.1  # seconds that a key frame may lie beyond the length stated by a container
# Name of a Kinetics clip: name of the original video, start and end in seconds.
_CLIP_NAME = re.compile(r"(.+)_(\d{6})_(\d{6})")


@dataclass(frozen=True)
class VideoSource:
    """A video file or a folder of extracted frames.

    Attributes:
        path: path of the file or folder.
        start_seconds: time of the first frame, as the key frames count it.
        frames: extracted frames, if they come from a list.
        fps: frame rate of extracted frames.
    """

    path: str
    start_seconds: float
    frames: FrameFiles | None = None
    fps: float = EXTRACTED_FPS

    def open(self) -> TimedReader:
        """Open the video; times count from its first frame.

        Raises:
            VideoReadError: the video cannot be read.
        """
        if self.frames is None and not is_folder(self.path):
            return open_timed(self.path)
        return CountedReader(FrameFilesReader(self.frames or frames_in_folder(self.path), fps=self.fps))


class OpenVideos:
    """Caches the readers of recently read videos, since opening a video is slow.

    Each process has its own cache; a pickled object is empty.

    Args:
        limit: maximum number of open videos; each stores the index of its container, some megabytes per hour.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._readers: OrderedDict[VideoSource, TimedReader] = OrderedDict()

    def get(self, source: VideoSource) -> TimedReader:
        """Return the open reader of a video.

        Raises:
            VideoReadError: the video cannot be read.
        """
        reader = self._readers.pop(source, None) or source.open()
        self._readers[source] = reader
        if len(self._readers) > self._limit:
            self._readers.popitem(last=False)[1].close()
        return reader

    def close(self, source: VideoSource) -> None:
        """Close a video if it is open, for example after an error."""
        reader = self._readers.pop(source, None)
        if reader is not None:
            reader.close()

    def __getstate__(self) -> dict[str, object]:
        return {"_limit": self._limit, "_readers": OrderedDict()}


def sources_in_folder(
    key_frames: KeyFrames,
    folder: str | os.PathLike[str],
    *,
    also: Sequence[KeyFrames] = (),
    start: float | None = None,
    fps: float = EXTRACTED_FPS,
) -> tuple[VideoSource, ...]:
    """Find the videos of key frames in a folder of video files and folders of extracted frames.

    The Kinetics clip ``id_000010_000020.mp4`` is the video ``id``, and its first frame is second 10. If there
    are several clips of a video, the one that contains all its key frames is used.

    Args:
        key_frames: key frames, whose video names may have a file suffix.
        folder: folder with files such as ``-5KQ66BBWC4.mkv``, or folders of frames such as
            ``-5KQ66BBWC4/-5KQ66BBWC4_000001.jpg``.
        also: other key frames of the same ``videos``, which must also lie inside them.
        start: time of the first frame of every video, as the key frames count it: 0 for whole films, 900 for
            AVA's cut videos. None: chosen for each video. For Kinetics clips it is the second in their name,
            unless the key frames have these names and only fit if they count from the start of the clip. For
            other videos it is 0 if all key frames lie in the video then, otherwise 900.
        fps: frame rate of extracted frames.

    Returns:
        One source for each of ``key_frames.videos``.

    Raises:
        UserError: videos are missing, ambiguous, or too short for their key frames; the message has the
            number of them, and the first one with its line. A video that cannot be opened causes a warning.
    """
    root = os.fspath(folder)
    lists = (key_frames, *also)
    videos = []
    for number, paths in enumerate(_find_paths(key_frames, root)):
        clips = []
        for path in paths:
            try:
                clips.append(_measure(path, frames_in_folder(path) if is_folder(path) else None, fps))
            except VideoReadError as error:
                logger.warning("%s cannot be read: %s", path, error.cause)
                clips.append(_Video(path, None, fps, None))
        times = np.concatenate([one.seconds[one.video == number] for one in lists])
        videos.append(_choose_clip(times, clips, root, key_frames.videos[number]))
    return _build_sources(lists, videos, start, root)


def sources_of_lists(
    key_frames: KeyFrames,
    frames: Mapping[str, FrameFiles],
    *,
    also: Sequence[KeyFrames] = (),
    start: float | None = None,
    fps: float = EXTRACTED_FPS,
) -> tuple[VideoSource, ...]:
    """Find the videos of key frames among extracted frames by name, from ``load_frame_lists``.

    See `sources_in_folder` for the other arguments.

    Raises:
        UserError: videos are not in the lists, or too short for their key frames.
    """
    missing = [name for name in key_frames.videos if name not in frames]
    if missing:
        raise UserError(
            f"the lists of frames do not contain {len(missing)} of the "
            f"{counted(len(key_frames.videos), 'video')} of "
            f"{key_frames.source}, the first is {missing[0]!r}; give the lists of these videos, or remove "
            "their rows"
        )
    videos = [_measure(os.path.dirname(frames[name][0]), frames[name], fps) for name in key_frames.videos]
    return _build_sources((key_frames, *also), videos, start, "the lists of frames")


@dataclass(frozen=True)
class _Video:
    path: str
    frames: FrameFiles | None
    fps: float
    seconds: float | None  # None: the length is unknown

    @property
    def named_start(self) -> float | None:
        """The start in the name of a Kinetics clip."""
        clip = parse_clip_name(os.path.basename(self.path))
        return clip[1] if clip else None


def parse_clip_name(name: str) -> tuple[str, float] | None:
    """Name of the original video and start in seconds, from the name of a Kinetics clip; None for others.

    >>> parse_clip_name("-0aB_cD_000010_000020.mp4")
    ('-0aB_cD', 10.0)
    """
    match = _CLIP_NAME.fullmatch(_stem(name))
    return (match[1], float(match[2])) if match else None


def _choose_clip(times: np.ndarray, clips: list[_Video], root: str, name: str) -> _Video:
    """Choose among the clips of one video the one that contains all its key frames."""
    if len(clips) == 1:
        return clips[0]
    for clip in clips:
        if clip.seconds is not None and is_inside(times, clip.named_start or 0.0, clip.seconds).all():
            return clip
    names = " and as ".join(os.path.basename(clip.path) for clip in clips)
    raise UserError(
        f"{root}: the video {name!r} exists as {names}, but no clip contains all its key frames (from "
        f"{times.min():g} to {times.max():g} s); of these files, keep only the "
        "clip that was annotated, and of its rows only those within the clip"
    )


def _measure(path: str, frames: FrameFiles | None, fps: float) -> _Video:
    if frames is not None:
        return _Video(path, frames, fps, len(frames) / fps)
    with open_timed(path) as reader:
        return _Video(path, None, fps, reader.duration_seconds)


def _find_paths(key_frames: KeyFrames, root: str) -> list[list[str]]:
    """The path of each video, or the paths of all its Kinetics clips."""
    try:
        entries = list_folder(root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{root}: no such folder; give the folder with the videos of {key_frames.source}"
        ) from error
    by_stem, clips = dict[str, list[str]](), dict[str, list[str]]()
    for entry in entries:
        by_stem.setdefault(_stem(entry), []).append(entry)
        clip = parse_clip_name(entry)
        if clip:
            clips.setdefault(clip[0], []).append(entry)
    all_entries = set(entries)
    paths, missing = [], []
    for name in key_frames.videos:
        names = [name] if name in all_entries and name != _stem(name) else by_stem.get(name, [])
        names = names or by_stem.get(_stem(name), [])
        if len(names) > 1:
            raise UserError(
                f"{root}: the video {name!r} exists as {' and as '.join(names)}; keep only one in this folder"
            )
        names = names or clips.get(name, [])
        missing += [] if names else [name]
        paths.append([os.path.join(root, entry) for entry in names])
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of the {counted(len(key_frames.videos), 'video')} of "
            f"{key_frames.source} {'is' if len(missing) == 1 else 'are'} missing, the first is "
            f"{missing[0]!r}; add them as video files or as folders of frames with that name, or remove "
            "their rows"
        )
    return paths


def _stem(name: str) -> str:
    """A name without the suffix of a video file."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _build_sources(
    lists: Sequence[KeyFrames], videos: list[_Video], start: float | None, where: str
) -> tuple[VideoSource, ...]:
    """Choose the starts, and check that all key frames lie inside their videos."""
    sources: list[VideoSource] = []
    outside: list[tuple[KeyFrames, np.ndarray, _Video, str]] = []
    reasons: Counter[str] = Counter()
    use_names = start is None and not _count_from_clip_start(lists, videos)
    for number, video in enumerate(videos):
        rows = [np.flatnonzero(one.video == number) for one in lists]
        if start is None:
            times = np.concatenate([one.seconds[own] for one, own in zip(lists, rows, strict=True)])
            seconds, description, reason = _choose_start(times, video, use_name=use_names)
            reasons[reason] += 1
        else:
            seconds, description = start, f"second {start:g}"
        sources.append(VideoSource(video.path, seconds, video.frames, video.fps))
        if video.seconds is not None:
            for one, own in zip(lists, rows, strict=True):
                wrong = own[~is_inside(one.seconds[own], seconds, video.seconds)]
                outside += [(one, wrong, video, description)] if len(wrong) else []
    if outside:
        raise UserError(_describe_outside(outside))
    for reason, count in reasons.most_common():
        logger.info("%s: %d of %d videos start at %s", where, count, len(videos), reason)
    return tuple(sources)


def _choose_start(times: np.ndarray, video: _Video, *, use_name: bool) -> tuple[float, str, str]:
    """The start of a video in seconds, its description in errors, and the reason for it in the log."""
    if use_name and video.named_start is not None:
        return video.named_start, f"second {video.named_start:g}", "the second in their file names"
    if video.seconds is None:
        return 0.0, "", "second 0, since their length is unknown"
    start = find_start(times, video.seconds)
    if start is not None:
        reason = (
            f"second {start:g}, since their key frames would lie beyond their ends if they started at 0"
            if start
            else "second 0, since all their key frames lie inside them"
        )
        return start, f"second {start:g}", reason
    # Key frames lie outside with every start; those outside the best start are wrong.
    fits = {start: int(is_inside(times, start, video.seconds).sum()) for start in _POSSIBLE_STARTS}
    best = max(fits, key=lambda start: fits[start])
    if not fits[best]:
        return best, "second 0 or 900", ""
    return best, f"second {best:g} (the start that fits most of its key frames)", ""


def _count_from_clip_start(lists: Sequence[KeyFrames], videos: list[_Video]) -> bool:
    """Whether key frames that are named after Kinetics clips count from the start of the clips.

    This is so if they lie in all clips when they count from 0, but not with the starts in the names.
    """
    numbers = [number for number, name in enumerate(lists[0].videos) if parse_clip_name(name)]

    def fits(number: int, start: float | None) -> bool:
        times = np.concatenate([one.seconds[one.video == number] for one in lists])
        seconds = videos[number].seconds
        return seconds is None or start is None or bool(is_inside(times, start, seconds).all())

    return not all(fits(number, videos[number].named_start) for number in numbers) and all(
        fits(number, 0.0) for number in numbers
    )


def is_inside(times: np.ndarray, start: float, seconds: float) -> np.ndarray:
    """Which times lie in a video of this length that begins at ``start``, bool [n]."""
    return (times >= start - _LENGTH_TOLERANCE) & (times - start <= seconds + _LENGTH_TOLERANCE)


def find_start(times: np.ndarray, seconds: float) -> float | None:
    """The time of a video's first frame: 0 or 900, the first with which all key frames lie in the video.

    Args:
        times: times of the key frames, float [n].
        seconds: length of the video.

    Returns:
        None if neither fits.
    """
    for start in _POSSIBLE_STARTS:
        if is_inside(times, start, seconds).all():
            return start
    return None


def _describe_outside(outside: list[tuple[KeyFrames, np.ndarray, _Video, str]]) -> str:
    """The error for key frames outside their videos: those of the first list that has any."""
    key_frames, rows, video, start = outside[0]
    counts = [len(wrong) for one, wrong, _, _ in outside if one is key_frames]
    row, total = int(rows[0]), sum(counts)
    return (
        f"{key_frames.location(row)}: {counted(total, 'key frame')} of {counted(len(counts), 'video')} "
        f"{'lies' if total == 1 else 'lie'} outside {'it' if len(counts) == 1 else 'them'}, the first at "
        f"{key_frames.seconds[row]:g} s of {video.path}, which lasts {video.seconds:.1f} s and begins "
        f"at {start}; correct the times, give the second at which the files start, or use the whole files"
    )
