"""Key frames and where their pictures are -> what a detector trains and is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from videomaskfeat.config.detect import DetectConfig
from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava import (
    ActionClips,
    KeyFrameLoader,
    KeyFrameViews,
    VideoSource,
    sources_in_folder,
    sources_of_lists,
)
from videomaskfeat.data.colour import ColourJitter
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.data.records_frames import load_frame_lists
from videomaskfeat.data.transforms import ShortSideJitterCrop
from videomaskfeat.engine import distributed
from videomaskfeat.errors import UserError
from videomaskfeat.tasks.detection.detect_recipe import DetectRecipe


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

    @classmethod
    def of_config(cls, config: DetectConfig) -> VideoPlaces:
        """As a config has it."""
        data = config.data
        return cls(data.videos, tuple(data.frame_lists), data.frames, data.frames_fps, data.start_second)

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


def training_loader(config: DetectConfig, key_frames: KeyFrames) -> ClipLoader[Any]:
    """Random crops around the training key frames; this rank's share.

    Raises:
        UserError: a video is missing, or the batch or a clip setting is wrong.
    """
    clip, colour = config.clip, config.colour
    changes = {"brightness": colour.brightness, "contrast": colour.contrast, "saturation": colour.saturation}
    dataset = ActionClips(
        key_frames,
        VideoPlaces.of_config(config).find(key_frames),
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=ShortSideJitterCrop(
            clip.crop, short_side=(clip.short_side[0], clip.short_side[1]), flip=clip.flip
        ),
        augment=Augmentation(colour=ColourJitter(**changes)) if any(changes.values()) else None,
        visible=config.boxes.visible,
        seed=config.run.seed,
    )
    return ClipLoader(
        dataset,
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=config.run.device != "cpu",
    )


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
