"""AVA's annotations as arrays: the key frames to train or test on, their boxes, and what each box does.

All of AVA's training boxes, those of a detector included, take some 20 MB.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.ava import (
    NO_ACTION,
    TRUTH_FORM,
    AvaRows,
    VideoNames,
    read_detections,
    read_groundtruth,
    read_times,
)
from videomaskfeat.boxes import best_overlaps
from videomaskfeat.data.folders import VIDEO_SUFFIXES
from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.frames import FrameFilesReader, frames_in_folder
from videomaskfeat.data.reader import CountedReader, TimedReader, VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_folder, list_folder

logger = logging.getLogger(__name__)

Files = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class KeyFrame:
    """One moment of one video.

    Attributes:
        video: its name in the files.
        seconds: as the files count them (AVA: of the original video).
        boxes: float32 [R, 4], x1, y1, x2, y2 in shares of the frame's width and height.
        labels: bool [R, L]; column i is the action with the id i + 1.
        scores: float32 [R], how sure a detector was of a person; 1 for ground truth.
    """

    video: str
    seconds: float
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class KeyFrames(Sequence[KeyFrame]):
    """Key frames by video and time, each with at least one box.

    Attributes:
        source: the files, for messages.
        classes: L, columns of the labels.
        videos: names, sorted.
        video: int32 [n], which of them each key frame is of.
        seconds: float64 [n].
        starts: int64 [n + 1], where the boxes of each begin, and the number of all.
        boxes: float32 [R, 4], of all key frames one after the other.
        scores: float32 [R].
        boxless: video and second of key frames that the files name, and that are left with no box: no box
            scores enough, or the row has none, as AVA-Kinetics writes that nobody is there.
        files: that they come from; none: not known.
        origin: int32 [n, 2], in which of ``files`` and at which line each is named first.
    """

    def __init__(
        self,
        *,
        source: str,
        videos: Sequence[str],
        video: np.ndarray,
        seconds: np.ndarray,
        starts: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        boxless: Sequence[tuple[str, float]] = (),
        files: Sequence[str] = (),
        origin: np.ndarray | None = None,
    ) -> None:
        """Keep the arrays, see the attributes; ``labels`` is bool [R, L]."""
        self.source, self.classes, self.videos = source, labels.shape[1], tuple(videos)
        self.video, self.seconds, self.starts = video.astype(np.int32), seconds, starts
        self.boxes, self.scores = boxes.astype(np.float32), scores.astype(np.float32)
        self.boxless, self.files = tuple(boxless), tuple(files)
        self.origin = np.zeros((len(video), 2), np.int32) if origin is None else origin
        self._labels = np.packbits(labels, axis=1)

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int) -> KeyFrame:  # type: ignore[override]
        """Key frame ``index``, an integer from 0 (or from -1 backwards); no slices."""
        video, seconds = self.videos[self.video[index]], float(self.seconds[index])
        index %= len(self)
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return KeyFrame(video, seconds, self.boxes[rows], self._unpacked(rows), self.scores[rows])

    @property
    def labels(self) -> np.ndarray:
        """bool [R, L], of all boxes."""
        return self._unpacked(slice(None))

    def select(self, kept: np.ndarray) -> KeyFrames:
        """Those key frames where ``kept``, bool [n], is true: a part of the seconds, of the videos, ..."""
        counts = np.diff(self.starts)
        rows = np.repeat(kept, counts)
        return KeyFrames(
            source=self.source,
            videos=self.videos,
            video=self.video[kept],
            seconds=self.seconds[kept],
            starts=np.concatenate([[0], np.cumsum(counts[kept])]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            scores=self.scores[rows],
            boxless=self.boxless,
            files=self.files,
            origin=self.origin[kept],
        )

    def of_videos(self, videos: Sequence[str]) -> KeyFrames:
        """Those of the given videos, sorted by name, which become its ``videos`` even where it lacks some."""
        places = {name: place for place, name in enumerate(videos)}
        video = np.array([places.get(name, -1) for name in self.videos], np.int32)[self.video]
        result = self.select(video >= 0)
        result.video, result.videos = video[video >= 0], tuple(videos)
        result.boxless = tuple(moment for moment in self.boxless if moment[0] in places)
        return result

    def place(self, index: int) -> str:
        """Where key frame ``index`` stands, ``file:line``, for messages."""
        file, line = self.origin[index].tolist()
        return f"{self.files[file]}:{line}" if self.files else self.source

    def absent_from(self, other: KeyFrames) -> list[tuple[str, float]]:
        """Video and second of the key frames that ``other`` lacks, as those where nobody was detected."""
        there = set(other.moments())
        return [moment for moment in self.moments() if moment not in there]

    def moments(self) -> list[tuple[str, float]]:
        """Video and second of each key frame."""
        names = [self.videos[video] for video in self.video.tolist()]
        return list(zip(names, self.seconds.tolist(), strict=True))

    def _unpacked(self, rows: slice) -> np.ndarray:
        return np.unpackbits(self._labels[rows], axis=1, count=self.classes).astype(bool)

    def __repr__(self) -> str:
        return f"KeyFrames({len(self)} with {len(self.boxes)} boxes of {self.source}, {self.classes} classes)"


def truth_key_frames(groundtruth: Files, *, classes: int, exclusions: Files = ()) -> KeyFrames:
    """Ground-truth boxes with their actions: rows of the same box are one box with several labels.

    Args:
        groundtruth: files of `video,second,x1,y1,x2,y2,action,person`; boxes without an action stay.
        classes: L; actions count from 1 to this.
        exclusions: files of `video,second` to leave out.

    Raises:
        UserError: a file is missing; or, with file and line, a row is wrong; or no box is left.
    """
    return training_key_frames(groundtruth, classes=classes, exclusions=exclusions)


def detected_key_frames(
    detections: Files, *, classes: int, score_threshold: float = 0.8, exclusions: Files = ()
) -> KeyFrames:
    """Boxes of a detector, to be tested on; there may be none.

    Args:
        detections: files of `video,second,x1,y1,x2,y2,action,score`; actions, where there are any, are kept.
        classes: L; actions count from 1 to this.
        score_threshold: the least score of a box; PySlowFast's AVA configs have 0.8, its default is 0.9.
        exclusions: files of `video,second` to leave out.

    Raises:
        UserError: a file is missing; or, with file and line, a row is wrong.
    """
    _check_shares(score_threshold=score_threshold)
    names = VideoNames()
    found = [_read_found(path, names, classes) for path in detections]
    closed = _excluded(exclusions, names)
    table = _merged([_grouped(rows, names, classes, score_threshold) for rows in found], classes)
    return _key_frames(table, found, names, closed, score_threshold)


def training_key_frames(
    groundtruth: Files,
    detections: Files = (),
    *,
    classes: int,
    score_threshold: float = 0.9,
    iou_threshold: float = 0.9,
    exclusions: Files = (),
) -> KeyFrames:
    """Ground-truth boxes, and a detector's with the actions of those.

    A detected box takes the actions of the ground-truth box of its key frame that it overlaps most, where
    that is enough; one that overlaps none enough stays as a negative. A file of detections that has actions
    of its own, as the published lists do, keeps them instead. The same box in several files is one box with
    the actions of all.

    Args:
        groundtruth: files of `video,second,x1,y1,x2,y2,action,person`; boxes without an action stay.
        detections: files of `video,second,x1,y1,x2,y2,action,score`, the action empty or not.
        classes: L; actions count from 1 to this.
        score_threshold: the least score of a detected box (default: PySlowFast's
            ``AVA.DETECTION_SCORE_THRESH``).
        iou_threshold: the least intersection over union at which it takes actions (default: that of the
            published lists).
        exclusions: files of `video,second` to leave out.

    Raises:
        UserError: a file is missing; or, with file and line, a row is wrong; or no box is left; or detected
            boxes without actions are all of other videos.
    """
    _check_shares(score_threshold=score_threshold, iou_threshold=iou_threshold)
    names = VideoNames()
    truth = [read_groundtruth(path, names, largest=classes) for path in groundtruth]
    true_videos = len(names)
    for rows in truth:
        if not len(rows.videos):
            raise UserError(
                f"{rows.source}: has no rows{' with a box' if len(rows.empty_lines) else ''}; ground truth "
                f"has a row `{TRUTH_FORM}` for each box and action"
            )
    found = [_read_found(path, names, classes) for path in detections]
    for rows in found if truth else ():
        _tell_of_other_videos(rows, names, true_videos)
    closed = _excluded(exclusions, names)
    known = _merged([_grouped(rows, names, classes) for rows in truth], classes)
    parts = [known]
    for rows in found:
        part = _grouped(rows, names, classes, score_threshold)
        if (rows.actions == NO_ACTION).all():
            part = _with_labels(part, known, iou_threshold)
        parts.append(part)
    key_frames = _key_frames(_merged(parts, classes), [*truth, *found], names, closed, score_threshold)
    if not len(key_frames):
        raise UserError(
            f"{key_frames.source}: no box is left; look at the exclusions"
            + (f", and lower the score threshold ({score_threshold:g})" if found else "")
        )
    if not key_frames.labels.any():
        raise UserError(f"{key_frames.source}: no box has an action; give the ground truth with its actions")
    return key_frames


@dataclass(frozen=True)
class _Table:
    """Boxes that all differ, by key frame and then by corners."""

    keys: np.ndarray  # int64 [n], `VideoNames.key_frames`
    boxes: np.ndarray  # float64 [n, 4]
    labels: np.ndarray  # bool [n, L]
    scores: np.ndarray  # float64 [n]


def _read_found(path: str | os.PathLike[str], names: VideoNames, classes: int) -> AvaRows:
    rows = read_detections(path, names, largest=classes)
    wrong = (rows.scores < 0) | (rows.scores > 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{rows.source}:{rows.lines[row]}: the score {rows.scores[row]:g} is not in 0..1; is this "
            "a file of ground truth, whose last column counts persons?"
        )
    return rows


def _tell_of_other_videos(rows: AvaRows, names: VideoNames, true_videos: int) -> None:
    """Warn of detected boxes of videos that the ground truth lacks: without actions they all are negatives.

    Raises:
        UserError: all are.
    """
    other = rows.videos >= true_videos
    if not other.any():
        return
    videos = np.unique(rows.videos[other])
    first, idle = names.texts()[videos[0]], (rows.actions == NO_ACTION).all()
    if idle and other.all():
        raise UserError(
            f"{rows.source}: all its boxes are of videos that the ground truth does not have ({first}, ...), "
            "so nobody in them would do anything; give the boxes of the same split and version"
        )
    logger.warning(
        "%s: %d boxes are of %d videos that the ground truth does not have (%s, ...)%s",
        rows.source,
        int(other.sum()),
        len(videos),
        first,
        ": they are trained on as persons who do nothing" if idle else "",
    )


def _excluded(files: Files, names: VideoNames) -> tuple[np.ndarray, np.ndarray]:
    """Videos and milliseconds of all files, int64 [n] each."""
    parts = [(np.empty(0, np.int64),) * 2, *(read_times(path, names) for path in files)]
    videos, times = zip(*parts, strict=True)
    return np.concatenate(videos), np.concatenate(times)


def _grouped(rows: AvaRows, names: VideoNames, classes: int, score_threshold: float = 0.0) -> _Table:
    """The boxes of a file that score enough, each once with all its actions and its best score."""
    kept = rows.scores >= score_threshold
    keys, boxes = names.key_frames(rows.videos[kept], rows.times[kept]), rows.boxes[kept]
    order, first = _groups(keys, boxes)
    group = np.cumsum(first) - 1
    actions = rows.actions[kept][order]
    labels = np.zeros((int(first.sum()), classes), bool)
    acting = actions != NO_ACTION
    labels[group[acting], actions[acting] - 1] = True
    scores = _reduced(np.maximum, rows.scores[kept][order], first)
    return _Table(keys[order][first], boxes[order][first], labels, scores)


def _merged(parts: Sequence[_Table], classes: int) -> _Table:
    """The boxes of all parts, each once with the actions of all and its best score."""
    none = _Table(np.empty(0, np.int64), np.empty((0, 4)), np.empty((0, classes), bool), np.empty(0))
    keys, boxes, labels, scores = (
        np.concatenate([getattr(part, name) for part in (none, *parts)])
        for name in ("keys", "boxes", "labels", "scores")
    )
    order, first = _groups(keys, boxes)
    return _Table(
        keys[order][first],
        boxes[order][first],
        _reduced(np.logical_or, labels[order], first),
        _reduced(np.maximum, scores[order], first),
    )


def _groups(keys: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order by key frame and corners, int64 [n], and where in it another box begins, bool [n]."""
    order = np.lexsort((*boxes.T[::-1], keys))
    keys, boxes = keys[order], boxes[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return order, first


def _reduced(function: np.ufunc, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``function`` over the rows of each group."""
    return function.reduceat(values, np.flatnonzero(first), axis=0) if len(values) else values


def _with_labels(found: _Table, truth: _Table, iou_threshold: float) -> _Table:
    """Detected boxes with the labels of the ground-truth box that each overlaps most, if enough."""
    first, last = (np.searchsorted(truth.keys, found.keys, side=side) for side in ("left", "right"))
    best = best_overlaps(found.boxes, truth.boxes, first, last, threshold=iou_threshold)
    labels = np.zeros_like(found.labels)
    labels[best >= 0] = truth.labels[best[best >= 0]]
    return _Table(found.keys, found.boxes, labels, found.scores)


def _key_frames(
    table: _Table,
    rows: Sequence[AvaRows],
    names: VideoNames,
    closed: tuple[np.ndarray, np.ndarray],
    score_threshold: float,
) -> KeyFrames:
    """The boxes at times that are not excluded; logs what was read, and key frames without a box."""
    excluded = names.key_frames(*closed)
    kept = ~np.isin(table.keys, excluded)
    keys, starts = np.unique(table.keys[kept], return_index=True)
    named = np.concatenate([np.empty(0, np.int64), *(_named(part, names) for part in rows)])
    gone = np.setdiff1d(named, np.concatenate([keys, excluded]))
    boxless = names.moments(gone)
    moments = names.moments(keys)
    videos = sorted({video for video, _ in moments})
    places = {video: place for place, video in enumerate(videos)}
    result = KeyFrames(
        source=", ".join(part.source for part in rows),
        videos=videos,
        video=np.array([places[video] for video, _ in moments], np.int32),
        seconds=np.array([seconds for _, seconds in moments], np.float64),
        starts=np.append(starts, kept.sum()),
        boxes=table.boxes[kept],
        labels=table.labels[kept],
        scores=table.scores[kept],
        boxless=boxless,
        files=[part.source for part in rows],
        origin=_origin(keys, named, rows),
    )
    acting = int(result.labels.any(axis=1).sum())
    logger.info(
        "%s: %d boxes, %d of them with an action, in %d key frames of %d videos",
        result.source,
        len(result.boxes),
        acting,
        len(result),
        len(videos),
    )
    if boxless:
        scored = any(part.scored for part in rows)
        logger.warning(
            "%s: %d of %d key frames have no box%s, and are left out (%s at %g s, ...)",
            result.source,
            len(boxless),
            len(boxless) + len(result),
            f" that scores {score_threshold:g} or more" if scored else "",
            *boxless[0],
        )
    return result


def _named(rows: AvaRows, names: VideoNames) -> np.ndarray:
    """The key frame of every row of a file, int64 [n + k]: those with a box first."""
    videos, times = [rows.videos, rows.empty_videos], [rows.times, rows.empty_times]
    return names.key_frames(np.concatenate(videos), np.concatenate(times))


def _origin(keys: np.ndarray, named: np.ndarray, rows: Sequence[AvaRows]) -> np.ndarray:
    """File and line, int32 [n, 2], of the first row of each key frame; ``named`` has those of all rows."""
    own_lines = [np.concatenate([part.lines, part.empty_lines]) for part in rows]
    files = np.repeat(np.arange(len(rows)), np.array([len(part) for part in own_lines], int))
    lines = np.concatenate([np.empty(0, np.int64), *own_lines])
    known, first = np.unique(named, return_index=True)
    own = first[np.searchsorted(known, keys)]
    return np.column_stack([files[own], lines[own]]).astype(np.int32)


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value:g} is not in 0..1")


# Where the pictures of AVA's videos are: video files or extracted frames, and which second they begin at.
CUT_START = 900.0  # second of the film at which AVA's cut videos and extracted frames begin
FRAMES_FPS = 30.0  # at which they are extracted
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
    fps: float = FRAMES_FPS

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
    fps: float = FRAMES_FPS,
) -> tuple[VideoSource, ...]:
    """Find the videos of key frames in a folder: a file each, or a folder of extracted frames each.

    A clip of Kinetics, ``id_000010_000020.mp4``, is the video ``id``, and its first picture is second 10.
    Of several clips of one video the one that contains its key frames is taken.

    Args:
        key_frames: name the videos; with or without the suffix of the files.
        also: further key frames of just these ``videos``, which have to lie inside them as well.
        folder: of files such as ``-5KQ66BBWC4.mkv``, and of folders with pictures such as
            ``-5KQ66BBWC4/-5KQ66BBWC4_000001.jpg``.
        start: the time of each first picture, as the key frames count it: 0 for whole films, 900 for AVA's
            cuts and frames. None: of the two, for each video, the one with which all its key frames lie in it
            (0 where both do; where neither does, the one with which most do decides which are wrong); of
            Kinetics' clips the second in their name, unless the key frames have these names themselves
            and their times fit only if they count from the clips' own starts.
        fps: frames a second of extracted frames.

    Returns:
        One for each of ``key_frames.videos``.

    Raises:
        UserError: videos are missing, or there twice, or too short for their key frames; all are counted and
            the first is named, a key frame by file and line. A video that cannot be opened is none of these:
            it is warned of here, and fails when it is read.
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
    fps: float = FRAMES_FPS,
) -> tuple[VideoSource, ...]:
    """The extracted frames of the videos of key frames, as lists name them.

    Args:
        key_frames: name the videos.
        frames: of each video, as ``load_frame_lists`` gives them.
        also: as for ``sources_in_folder``.
        start: as for ``sources_in_folder``.
        fps: frames a second.

    Returns:
        One for each of ``key_frames.videos``.

    Raises:
        UserError: videos are not in the lists, or too short for their key frames; all are counted and the
            first is named.
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
    stem, suffix = os.path.splitext(name)
    match = _CLIP_NAME.fullmatch(stem if suffix.lower() in VIDEO_SUFFIXES else name)
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
    by_stem: dict[str, list[str]] = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry)
        by_stem.setdefault(stem if suffix.lower() in VIDEO_SUFFIXES else entry, []).append(entry)
    clips: dict[str, list[str]] = {}
    for entry in entries:
        clip = clip_name(entry)
        if clip:
            clips.setdefault(clip[0], []).append(entry)
    known = set(entries)
    paths, missing = [], []
    for name in key_frames.videos:
        stem, suffix = os.path.splitext(name)
        named = [name] if suffix.lower() in VIDEO_SUFFIXES and name in known else by_stem.get(name)
        if named is None and suffix.lower() in VIDEO_SUFFIXES:
            named = by_stem.get(stem)
        if named is None and name in clips:
            paths.append([os.path.join(root, entry) for entry in clips[name]])
        elif named is None:
            missing.append(name)
        elif len(named) > 1:
            raise UserError(
                f"{root}: the video {name!r} is there as {' and as '.join(named)}; keep one of them in this "
                "folder"
            )
        else:
            paths.append([os.path.join(root, named[0])])
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of the {counted(len(key_frames.videos), 'video')} of "
            f"{key_frames.source} {'is' if len(missing) == 1 else 'are'} not there, the first is "
            f"{missing[0]!r}; put them there, as video files or as folders of frames of that name, or take "
            "their rows out"
        )
    return paths


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
    """The time of a video's first picture: 0, or `CUT_START` where only that puts all key frames into it.

    Args:
        times: float [n], of the key frames, in seconds.
        seconds: the video's length; None: the file does not tell.

    Returns:
        None where neither does, or nobody knows.
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
