"""Key frames to train and evaluate on: their videos, their boxes, and sentences on them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from videomaskfeat.data.ava_lists import KeyFrames, detected_key_frames, training_key_frames
from videomaskfeat.data.ava_sources import VideoSource, sources_in_folder, sources_of_lists
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.frame_lists import load_frame_lists
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.detectors import BoxScores
from videomaskfeat.stored_recipe import DetectRecipe

logger = logging.getLogger(__name__)

_NAMED_VIDEOS = 5


@dataclass(frozen=True)
class VideoLocations:
    """Where the videos of key frames are: in a folder, or in lists of extracted frames.

    Attributes:
        videos: folder with a video file, or a folder of extracted frames, per video.
        frame_lists: lists of extracted frames.
        frames: folder before the paths of these lists.
        frames_fps: frame rate of extracted frames.
        start_second: time of the first frame of each video; None: inferred.
    """

    videos: str = ""
    frame_lists: tuple[str, ...] = ()
    frames: str = ""
    frames_fps: float = 30.0
    start_second: float | None = None

    def find_videos(self, key_frames: KeyFrames, *also: KeyFrames) -> tuple[VideoSource, ...]:
        """The videos of key frames, in the order of ``key_frames.videos``.

        Args:
            key_frames: define the videos.
            also: further key frames of the same videos; they must be inside the videos as well.

        Raises:
            UserError: no location or both are set, or a video is missing or too short.
        """
        if bool(self.videos) == bool(self.frame_lists):
            wrong = "both a folder of videos and frame lists are" if self.videos else "no videos are"
            raise UserError(
                f"{wrong} set; set either the folder (--videos, or the key data.videos), or lists of "
                "extracted frames (--frame-lists, or data.frame_lists)"
            )
        if self.frames_fps <= 0:
            raise UserError(f"frames_fps {self.frames_fps:g}: the frame rate must be above 0")
        also = tuple(one for one in also if one is not key_frames)
        start, fps = self.start_second, self.frames_fps
        if self.videos:
            return sources_in_folder(key_frames, self.videos, also=also, start=start, fps=fps)
        lists = load_frame_lists(self.frame_lists, prefix=self.frames)
        return sources_of_lists(key_frames, lists, also=also, start=start, fps=fps)


@dataclass(frozen=True)
class IgnoredBoxes:
    """Detected boxes of videos without ground truth, which are left out.

    Attributes:
        boxes: number of boxes.
        videos: names of the videos.
    """

    boxes: int = 0
    videos: tuple[str, ...] = ()

    def text(self) -> str:
        """A sentence; empty if there are no such boxes."""
        if not self.boxes:
            return ""
        number = "1 detected box is" if self.boxes == 1 else f"{self.boxes} detected boxes are"
        return (
            f"{number} of {counted(len(self.videos), 'video')} without ground truth "
            f"({shorten_names(self.videos)}), and left out"
        )


def shorten_names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = len(names) - _NAMED_VIDEOS
    return ", ".join(names[:_NAMED_VIDEOS]) + (f" and {more} more" if more > 0 else "")


class EvaluationFrames(NamedTuple):
    """Key frames of an evaluation; ``truth`` and ``tested`` have the same ``videos``.

    Attributes:
        truth: the ground truth.
        tested: the boxes to score: detected ones, or those of the ground truth.
        ignored: detected boxes of other videos.
    """

    truth: KeyFrames
    tested: KeyFrames
    ignored: IgnoredBoxes


def read_key_frames(
    groundtruth: str,
    boxes: Sequence[str],
    exclusions: str,
    *,
    classes: int,
    score_threshold: float,
) -> EvaluationFrames:
    """Read the key frames of an evaluation.

    Args:
        groundtruth: CSV file.
        boxes: CSV files of detected boxes; empty: those of the ground truth.
        exclusions: CSV file of times that are not evaluated; empty: none.
        classes: number of actions.
        score_threshold: minimum score of a detected box.

    Raises:
        UserError: a file is missing or wrong, or all detected boxes are in other key frames.
    """
    files = [exclusions] if exclusions else []
    truth = training_key_frames([groundtruth], classes=classes, exclusions=files)
    if not boxes:
        return EvaluationFrames(truth, truth, IgnoredBoxes())
    tested = detected_key_frames(boxes, classes=classes, score_threshold=score_threshold, exclusions=files)
    if len(tested) and len(truth.absent_from(tested)) == len(truth):
        video, seconds = tested.videos[tested.video[0]], tested.seconds[0]
        raise UserError(
            f"{tested.source}: none of its {counted(len(tested), 'key frame')} ({video} at {seconds:g} s, "
            f"...) has ground truth in {groundtruth}; give the boxes of the same split and version"
        )
    # Detections in key frames without persons are false positives, even if their video has no other ones.
    empty = {video for video, _ in truth.boxless}.intersection(tested.videos)
    truth = truth.of_videos(sorted(empty.union(truth.videos)))
    scored = tested.of_videos(truth.videos)
    names = sorted(set(tested.videos) - set(truth.videos))
    ignored = IgnoredBoxes(len(tested.boxes) - len(scored.boxes), tuple(names))
    if ignored.boxes:
        logger.warning("%s: %s", tested.source, ignored.text())
    return EvaluationFrames(truth, scored, ignored)


def describe_key_frames(frames: EvaluationFrames, box_scores: BoxScores, recipe: DetectRecipe) -> list[str]:
    """Sentences on the evaluated boxes and key frames."""
    boxes = "ground-truth" if frames.tested is frames.truth else "detected"
    area = "whole frames" if recipe.area == "whole" else "center crops"
    lines = [
        f"{boxes} boxes on {area}: {int(box_scores.scored.sum())} in {box_scores.read} of "
        f"{box_scores.listed} key frames"
    ]
    undetected = len(frames.truth.absent_from(frames.tested))
    if undetected:
        lines.append(
            f"{counted(undetected, 'key frame')} of the ground truth {'has' if undetected == 1 else 'have'} "
            "no detected box: their ground truth counts as not found"
        )
    if box_scores.failures:
        lines.append(
            f"{counted(len(box_scores.failures), 'key frame')} could not be read: their ground truth counts "
            "as not found"
        )
    return lines + ([frames.ignored.text()] if frames.ignored.boxes else [])


def format_failures(failures: Iterable[Failure]) -> list[str]:
    """One line per video and cause, with the number of unreadable key frames."""
    counts = Counter((failure.path, failure.cause) for failure in failures)
    return [f"{path}: {cause} ({counted(count, 'key frame')})" for (path, cause), count in counts.items()]
