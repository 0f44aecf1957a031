"""Key frames to train and test on: where their videos are, their boxes, and words on what was tested."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videomaskfeat.data.ava_lists import KeyFrames, detected_key_frames, training_key_frames
from videomaskfeat.data.ava_sources import VideoSource, sources_in_folder, sources_of_lists
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.frame_lists import load_frame_lists
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.detectors import BoxScores
from videomaskfeat.recipe import DetectRecipe

logger = logging.getLogger(__name__)

_NAMED_VIDEOS = 5


@dataclass(frozen=True)
class VideoLocations:
    """Where the pictures of videos are.

    Attributes:
        videos: folder with a video file, or a folder of extracted frames, per video.
        frame_lists: instead, lists of extracted frames.
        frames: folder before the paths of these lists.
        frames_fps: frames per second at which frames were extracted.
        start_second: time of each video's first frame, as the key frames count; None: found out.
    """

    videos: str = ""
    frame_lists: tuple[str, ...] = ()
    frames: str = ""
    frames_fps: float = 30.0
    start_second: float | None = None

    def find(self, key_frames: KeyFrames, *also: KeyFrames) -> tuple[VideoSource, ...]:
        """The videos of key frames.

        Args:
            key_frames: name them.
            also: further key frames of the same ``videos``, which must lie inside them as well.

        Raises:
            UserError: no place is given, or both are; or a video is not there or too short.
        """
        if bool(self.videos) == bool(self.frame_lists):
            raise UserError(
                "give one of two places: a folder of the videos (--videos, or the key data.videos), or lists "
                "of extracted frames (--frame-lists, or data.frame_lists)"
            )
        if self.frames_fps <= 0:
            raise UserError(f"frames a second of extracted frames must be above 0, not {self.frames_fps:g}")
        also = tuple(one for one in also if one is not key_frames)
        start, fps = self.start_second, self.frames_fps
        if self.videos:
            return sources_in_folder(key_frames, self.videos, also=also, start=start, fps=fps)
        lists = load_frame_lists(self.frame_lists, prefix=self.frames)
        return sources_of_lists(key_frames, lists, also=also, start=start, fps=fps)


@dataclass(frozen=True)
class IgnoredBoxes:
    """Detected boxes of videos that the ground truth lacks, which are not tested on.

    Attributes:
        boxes: how many.
        videos: their names.
    """

    boxes: int = 0
    videos: tuple[str, ...] = ()

    def text(self) -> str:
        """For people; empty if there are none."""
        if not self.boxes:
            return ""
        more = len(self.videos) - _NAMED_VIDEOS
        names = ", ".join(self.videos[:_NAMED_VIDEOS]) + (f" and {more} more" if more > 0 else "")
        which = "1 detected box is" if self.boxes == 1 else f"{self.boxes} detected boxes are"
        return (
            f"{which} of {counted(len(self.videos), 'video')} that the ground truth does not have ({names}), "
            "and left out"
        )


def read_key_frames(
    groundtruth: str,
    boxes: Sequence[str],
    exclusions: str,
    *,
    classes: int,
    score_threshold: float,
) -> tuple[KeyFrames, KeyFrames, IgnoredBoxes]:
    """The ground truth, and the boxes to test on: detected ones, or those of the ground truth.

    Args:
        groundtruth: CSV file.
        boxes: CSV files of detected boxes; empty: those of the ground truth.
        exclusions: CSV file of times that do not count; empty: none.
        classes: number of actions.
        score_threshold: minimum score of a detected box.

    Returns:
        Both have the ``videos`` of the ground truth; detected boxes of others are left out, and counted.

    Raises:
        UserError: a file is missing or wrong, or all detected boxes are of other key frames.
    """
    closed = [exclusions] if exclusions else []
    truth = training_key_frames([groundtruth], classes=classes, exclusions=closed)
    if not boxes:
        return truth, truth, IgnoredBoxes()
    tested = detected_key_frames(boxes, classes=classes, score_threshold=score_threshold, exclusions=closed)
    if len(tested) and len(truth.absent_from(tested)) == len(truth):
        video, seconds = tested.videos[tested.video[0]], tested.seconds[0]
        raise UserError(
            f"{tested.source}: none of its {counted(len(tested), 'key frame')} ({video} at {seconds:g} s, "
            f"...) has ground truth in {groundtruth}; give the boxes of the same split and version"
        )
    # Detections in key frames without persons are false positives, also in videos that have no others.
    nobody = {video for video, _ in truth.boxless}.intersection(tested.videos)
    truth = truth.of_videos(sorted(nobody.union(truth.videos)))
    own = tested.of_videos(truth.videos)
    names = sorted(set(tested.videos) - set(truth.videos))
    other = IgnoredBoxes(len(tested.boxes) - len(own.boxes), tuple(names))
    if other.boxes:
        logger.warning("%s: %s", tested.source, other.text())
    return truth, own, other


def describe_key_frames(found: BoxScores, recipe: DetectRecipe, *, detected: bool, undetected: int) -> str:
    """How many key frames and boxes a score is of, and which part of the frames the network saw.

    Args:
        found: the scores.
        recipe: how key frames were cut.
        detected: whether the boxes were detected, or those of the ground truth.
        undetected: key frames of the ground truth in which no box was tested.
    """
    boxes = "detected" if detected else "ground-truth"
    seen = "whole frames" if recipe.area == "whole" else "centre crops"
    lines = [
        f"{boxes} boxes on {seen}: {int(found.scored.sum())} in {found.read} of {found.listed} key frames"
    ]
    if undetected:
        lines.append(
            f"{counted(undetected, 'key frame')} of the ground truth {'has' if undetected == 1 else 'have'} "
            "no detected box: what there is to find in them counts as not found"
        )
    if found.failures:
        lines.append(
            f"{counted(len(found.failures), 'key frame')} could not be read: what there is to find in them "
            "counts as not found"
        )
    return "\n".join(lines)


def format_failures(failures: Iterable[Failure]) -> list[str]:
    """A line for each video and cause of key frames that could not be read, with their number."""
    counts = Counter((failure.path, failure.cause) for failure in failures)
    return [f"{path}: {cause} ({counted(count, 'key frame')})" for (path, cause), count in counts.items()]
