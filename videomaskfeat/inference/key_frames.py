"""The key frames that a detector is tested on: their boxes, their videos, and the loader of their views."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from videomaskfeat.data.ava import (
    KeyFrameLoader,
    KeyFrameViews,
    VideoSource,
    sources_in_folder,
    sources_of_lists,
)
from videomaskfeat.data.ava_lists import KeyFrames, detected_key_frames, truth_key_frames
from videomaskfeat.data.frame_lists import load_frame_lists
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.detectors import DetectRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoPlaces:
    """Where the pictures of videos are.

    Attributes:
        videos: folder of a video file or of a folder of extracted frames each.
        frame_lists: instead, lists of extracted frames.
        frames: folder put before the paths of these lists.
        frames_fps: frames a second at which frames were extracted.
        start_second: of each video's first frame, as the key frames count; None: found out.
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
            also: further key frames of just these ``videos``; they have to lie inside them as well. They may
                be the same ones.

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
        if self.videos:
            return sources_in_folder(
                key_frames, self.videos, also=also, start=self.start_second, fps=self.frames_fps
            )
        lists = load_frame_lists(self.frame_lists, prefix=self.frames)
        return sources_of_lists(key_frames, lists, also=also, start=self.start_second, fps=self.frames_fps)


@dataclass(frozen=True)
class OtherVideos:
    """Detected boxes of videos that the ground truth lacks, which are not tested on.

    Attributes:
        boxes: how many.
        videos: their names.
    """

    boxes: int = 0
    videos: tuple[str, ...] = ()

    def words(self) -> str:
        """What the user reads; empty where there are none."""
        if not self.boxes:
            return ""
        more = len(self.videos) - _NAMED_VIDEOS
        names = ", ".join(self.videos[:_NAMED_VIDEOS]) + (f" and {more} more" if more > 0 else "")
        which = "1 detected box is" if self.boxes == 1 else f"{self.boxes} detected boxes are"
        return (
            f"{which} of {counted(len(self.videos), 'video')} that the ground truth does not have ({names}), "
            "and left out"
        )


def read_tested(
    groundtruth: str,
    boxes: Sequence[str],
    exclusions: str,
    *,
    classes: int,
    score_threshold: float,
) -> tuple[KeyFrames, KeyFrames, OtherVideos]:
    """What there is to find, and the boxes that are tested on: a detector's, or those of the ground truth.

    Returns:
        Both have the ``videos`` of the ground truth; detected boxes of others are left out, and counted.

    Raises:
        UserError: a file is missing or wrong, or detected boxes that are all of other key frames.
    """
    excluded = [exclusions] if exclusions else []
    truth = truth_key_frames([groundtruth], classes=classes, exclusions=excluded)
    if not boxes:
        return truth, truth, OtherVideos()
    tested = detected_key_frames(boxes, classes=classes, score_threshold=score_threshold, exclusions=excluded)
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
    other = OtherVideos(len(tested.boxes) - len(own.boxes), tuple(names))
    if other.boxes:
        logger.warning("%s: %s", tested.source, other.words())
    return truth, own, other


def key_frame_loader(
    key_frames: KeyFrames,
    sources: Sequence[VideoSource],
    model: nn.Module,
    recipe: DetectRecipe,
    *,
    scales: Sequence[int] = (),
    flip: bool = False,
    workers: int = 0,
    key_frames_per_batch: int = 8,
    pin_memory: bool = False,
) -> KeyFrameLoader:
    """The views of key frames as a recipe has them; this rank's share.

    Args:
        key_frames: whose boxes are tested on.
        sources: of their videos.
        model: whose cubes the sides of whole frames become multiples of.
        recipe: says how frames are cut.
        scales: short sides; none: the recipe's alone.
        flip: also the mirror image of each.
        workers: processes of this rank; 0 reads videos in the calling process.
        key_frames_per_batch: of one video, at most.
        pin_memory: hand out page-locked batches.

    Raises:
        UserError: a number that cannot be.
    """
    area: Any = recipe.area  # checked by the recipe and by the views
    cube: Any = model.patch_embed.stride
    views = KeyFrameViews(
        key_frames,
        sources,
        frames=recipe.clip.frames,
        stride=recipe.clip.stride,
        target_fps=recipe.clip.target_fps,
        area=area,
        short_sides=tuple(scales) or (recipe.short_side,),
        multiple=max(cube[1:]),
        flip=flip,
    )
    return KeyFrameLoader(
        views,
        key_frames_per_batch=key_frames_per_batch,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
    )


_NAMED_VIDEOS = 5
