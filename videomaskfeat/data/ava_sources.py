"""Where the pictures of AVA's videos are: video files or extracted frames, and which second they begin at."""

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
from videomaskfeat.data.reader import CountedReader, TimedReader, VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_folder, list_folder

logger = logging.getLogger(__name__)

CUT_START = 900.0  # second of the film at which AVA's cut videos and extracted frames begin
LENGTH_SLACK = 0.1  # seconds that a key frame may lie beyond what a container states as its length
# A clip of Kinetics: the original video's name, and the seconds at which it starts and ends.
_CLIP_NAME = re.compile(r"(.+)_(\d{6})_(\d{6})")


@dataclass(frozen=True)
class VideoSource:
    """Where the pictures of a video are.

    Attributes:
        path: of the video file, or of the folder of its frames.
        start_seconds: the time, as the key frames count it, of the first picture.
        frames: the frames, where they are extracted.
        fps: frames a second at which they were.
    """

    path: str
    start_seconds: float
    frames: FrameFiles | None = None
    fps: float = EXTRACTED_FPS

    def open(self) -> TimedReader:
        """Open it; times count from its first picture.

        Raises:
            VideoReadError: it cannot be read.
        """
        frames = self.frames
        if frames is None and not is_folder(self.path):
            return open_timed(self.path)
        return CountedReader(FrameFilesReader(frames or frames_in_folder(self.path), fps=self.fps))


class OpenVideos:
    """Keeps the readers of the videos that were read last, since opening one takes a part of a clip's time.

    Each process has its own: on the way to a worker it leaves them behind.
    """

    def __init__(self, limit: int) -> None:
        """Start with none.

        Args:
            limit: videos that stay open; each holds its container's index, some megabytes for an hour.
        """
        self._limit = limit
        self._readers: OrderedDict[VideoSource, TimedReader] = OrderedDict()

    def get(self, source: VideoSource) -> TimedReader:
        """The reader of a video, open.

        Raises:
            VideoReadError: it cannot be read.
        """
        reader = self._readers.pop(source, None) or source.open()
        self._readers[source] = reader
        if len(self._readers) > self._limit:
            self._readers.popitem(last=False)[1].close()
        return reader

    def drop(self, source: VideoSource) -> None:
        """Close a video, as after an error."""
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
    """Find the videos of key frames in a folder: a file each, or a folder of extracted frames each.

    A clip of Kinetics, ``id_000010_000020.mp4``, is the video ``id``, and its first picture is second 10. Of
    several clips of one video the one that contains its key frames is taken.

    Args:
        key_frames: name the videos; with or without the suffix of the files.
        folder: of files such as ``-5KQ66BBWC4.mkv``, and of folders with pictures such as
            ``-5KQ66BBWC4/-5KQ66BBWC4_000001.jpg``.
        also: further key frames of just these ``videos``, which have to lie inside them as well.
        start: time of each first picture, as the key frames count it: 0 for whole films, 900 for AVA's cuts.
            None: of the two, for each video, the one with which all its key frames lie in it (0 if both do;
            if neither does, the one with which most do decides which are wrong); of Kinetics' clips the
            second in their name, unless the key frames have these names and fit only if they count from the
            clips' own starts.
        fps: frames per second of extracted frames.

    Returns:
        One for each of ``key_frames.videos``.

    Raises:
        UserError: videos are missing, repeated or too short for their key frames; all are counted and the
            first is named, by file and line. A video that cannot be opened is only warned of here.
    """
    root = os.fspath(folder)
    lists = (key_frames, *also)
    found = []
    for number, paths in enumerate(_find(key_frames, root)):
        clips = []
        for path in paths:
            try:
                clips.append(_measured(path, frames_in_folder(path) if is_folder(path) else None, fps))
            except VideoReadError as error:
                logger.warning("%s cannot be read: %s", path, error.cause)
                clips.append(_Found(path, None, fps, None))
        times = np.concatenate([one.seconds[one.video == number] for one in lists])
        found.append(_clip_around(times, clips, root, key_frames.videos[number]))
    return _placed(lists, found, start, root)


def sources_of_lists(
    key_frames: KeyFrames,
    frames: Mapping[str, FrameFiles],
    *,
    also: Sequence[KeyFrames] = (),
    start: float | None = None,
    fps: float = EXTRACTED_FPS,
) -> tuple[VideoSource, ...]:
    """The extracted frames of the videos of key frames, by name, as ``load_frame_lists`` returns them.

    See `sources_in_folder` for the other arguments.

    Raises:
        UserError: videos are not in the lists, or too short for their key frames.
    """
    missing = [name for name in key_frames.videos if name not in frames]
    if missing:
        raise UserError(
            f"the lists of frames lack {len(missing)} of the {counted(len(key_frames.videos), 'video')} of "
            f"{key_frames.source}, the first is {missing[0]!r}; give the lists of these videos, or take "
            "their rows out"
        )
    found = [_measured(os.path.dirname(frames[name][0]), frames[name], fps) for name in key_frames.videos]
    return _placed((key_frames, *also), found, start, "the lists of frames")


@dataclass(frozen=True)
class _Found:
    path: str
    frames: FrameFiles | None
    fps: float
    seconds: float | None  # None if the file does not state it

    @property
    def named_start(self) -> float | None:
        """The second in the name of a clip of Kinetics."""
        clip = clip_name(os.path.basename(self.path))
        return clip[1] if clip else None


def clip_name(name: str) -> tuple[str, float] | None:
    """The video that a clip of Kinetics was cut from, and the second of its first picture; None for others.

    >>> clip_name("-0aB_cD_000010_000020.mp4")
    ('-0aB_cD', 10.0)
    """
    match = _CLIP_NAME.fullmatch(_stem(name))
    return (match[1], float(match[2])) if match else None


def _clip_around(times: np.ndarray, clips: list[_Found], root: str, name: str) -> _Found:
    """Of the clips of one video the one that contains all its key frames."""
    around = [
        clip
        for clip in clips
        if clip.seconds is not None and _inside(times, clip.named_start or 0.0, clip.seconds).all()
    ]
    if len(clips) == 1 or around:
        return (around or clips)[0]
    names = " and as ".join(os.path.basename(clip.path) for clip in clips)
    raise UserError(
        f"{root}: the video {name!r} is there as {names}, and no clip contains all its key frames (from "
        f"{times.min():g} to {times.max():g} s); keep the annotated clip and the rows of its seconds"
    )


def _measured(path: str, frames: FrameFiles | None, fps: float) -> _Found:
    if frames is not None:
        return _Found(path, frames, fps, len(frames) / fps)
    with open_timed(path) as reader:
        return _Found(path, None, fps, reader.duration_seconds)


def _find(key_frames: KeyFrames, root: str) -> list[list[str]]:
    """The path of each video, or of all clips that were cut from it."""
    try:
        entries = list_folder(root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{root}: no such folder; give the one that holds the videos of {key_frames.source}"
        ) from error
    known, by_stem = set(entries), dict[str, list[str]]()
    clips: dict[str, list[str]] = {}
    for entry in entries:
        by_stem.setdefault(_stem(entry), []).append(entry)
        clip = clip_name(entry)
        if clip:
            clips.setdefault(clip[0], []).append(entry)
    paths, missing = [], []
    for name in key_frames.videos:
        found = [name] if name in known and name != _stem(name) else by_stem.get(name, [])
        found = found or by_stem.get(_stem(name), [])
        if len(found) > 1:
            raise UserError(
                f"{root}: the video {name!r} is there as {' and as '.join(found)}; keep one of them in this "
                "folder"
            )
        found = found or clips.get(name, [])
        missing += [] if found else [name]
        paths.append([os.path.join(root, entry) for entry in found])
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of the {counted(len(key_frames.videos), 'video')} of "
            f"{key_frames.source} {'is' if len(missing) == 1 else 'are'} not there, the first is "
            f"{missing[0]!r}; put them there, as video files or as folders of frames of that name, or take "
            "their rows out"
        )
    return paths


def _stem(name: str) -> str:
    """A name without the suffix of a video."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


@dataclass(frozen=True)
class _Outside:
    """Key frames, int64 [n] rows of a list, that lie outside a video which begins at ``start``."""

    key_frames: KeyFrames
    rows: np.ndarray
    video: _Found
    start: str


def _placed(
    lists: Sequence[KeyFrames], found: list[_Found], start: float | None, where: str
) -> tuple[VideoSource, ...]:
    """The sources with their starts, after checking that each reaches the key frames of all lists."""
    sources: list[VideoSource] = []
    outside: list[_Outside] = []
    reasons: Counter[str] = Counter()
    own_names = _count_from_own_start(lists, found) if start is None else False
    for number, video in enumerate(found):
        rows = [np.flatnonzero(one.video == number) for one in lists]
        times = np.concatenate([one.seconds[own] for one, own in zip(lists, rows, strict=True)])
        named = None if own_names else video.named_start
        own = start
        if start is None:
            own = start_of(times, video.seconds) if named is None else named
        begins = f"second {own:g}" if own is not None else ""
        if own is None and video.seconds is not None:
            own, begins = _fitting_most(times, video.seconds)
        elif own is None:
            own = 0.0
            reasons["0, since their files do not tell how long they are"] += 1
        elif start is None:
            reasons[_reason(own) if named is None else "that their file names give"] += 1
        sources.append(VideoSource(video.path, own, video.frames, video.fps))
        if video.seconds is not None:
            for one, part in zip(lists, rows, strict=True):
                beyond = part[~_inside(one.seconds[part], own, video.seconds)]
                outside += [_Outside(one, beyond, video, begins)] if len(beyond) else []
    if outside:
        raise UserError(_words_on_outside(outside))
    for reason, count in reasons.most_common():
        logger.info("%s: %d of %d videos start at second %s", where, count, len(found), reason)
    return tuple(sources)


def _count_from_own_start(lists: Sequence[KeyFrames], found: list[_Found]) -> bool:
    """Whether key frames that are named after Kinetics' clips count from the start of the clips.

    So where they do not lie in all clips with the starts that the names give, and do when they count from 0.
    """
    videos = lists[0].videos
    named = [number for number, name in enumerate(videos) if clip_name(name)]
    fits = []
    for by_name in (True, False):
        fits.append(True)
        for number in named:
            clip, times = found[number], [one.seconds[one.video == number] for one in lists]
            start = clip.named_start if by_name else 0.0
            if clip.seconds is not None and start is not None:
                fits[-1] &= bool(_inside(np.concatenate(times), start, clip.seconds).all())
    return bool(named) and not fits[0] and fits[1]


def _inside(times: np.ndarray, start: float, seconds: float) -> np.ndarray:
    """Which times lie in a video that begins at ``start``, bool [n]."""
    return (times >= start - LENGTH_SLACK) & (times - start <= seconds + LENGTH_SLACK)


def _fitting_most(times: np.ndarray, seconds: float) -> tuple[float, str]:
    """The start with which most times lie in a video, where some do not with any; and its name."""
    fitting = {start: int(_inside(times, start, seconds).sum()) for start in (0.0, CUT_START)}
    best = max(fitting, key=lambda start: fitting[start])
    if not fitting[best]:
        return best, f"second 0 or {CUT_START:g}"
    return best, f"second {best:g} (the start that fits most of its key frames)"


def start_of(times: np.ndarray, seconds: float | None) -> float | None:
    """The time of a video's first picture: 0, or `CUT_START` if only that puts all key frames into it.

    ``times`` are those of the key frames, float [n]. None if neither does, or if the length is unknown
    (None).
    """
    if seconds is None:
        return None
    for start in (0.0, CUT_START):
        if _inside(times, start, seconds).all():
            return start
    return None


def _reason(start: float) -> str:
    if start:
        return f"{start:g}, since their key frames would lie beyond their ends if they started at 0"
    return "0, since all their key frames lie inside them so"


def _words_on_outside(outside: list[_Outside]) -> str:
    """What is wrong with key frames that lie outside their videos: those of the first list that has any."""
    first = outside[0]
    own = [part for part in outside if part.key_frames is first.key_frames]
    count, row, length = sum(len(part.rows) for part in own), int(first.rows[0]), first.video.seconds
    return (
        f"{first.key_frames.place(row)}: {counted(count, 'key frame')} of {counted(len(own), 'video')} "
        f"{'lies' if count == 1 else 'lie'} outside {'it' if len(own) == 1 else 'them'}, the first at "
        f"{first.key_frames.seconds[row]:g} s of {first.video.path}, which lasts {length:.1f} s and begins "
        f"at {first.start}; mend the times, give the second at which the files start, or take the whole files"
    )
