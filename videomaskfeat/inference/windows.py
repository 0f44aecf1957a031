"""The clips of the windows of a long video, with their times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.transforms import uniform_crops
from videomaskfeat.data.windows import clip_seconds, open_by_time, read_clips, window_times
from videomaskfeat.errors import UserError
from videomaskfeat.stored_recipe import ClassifyRecipe

_WINDOWS_AT_ONCE = 32  # 77 MB for one crop of 16 frames of 224x224


@dataclass(frozen=True)
class Windows:
    """Length and distance of the windows of a video.

    Attributes:
        window: length [seconds].
        every: distance of two starts [seconds].
    """

    window: float
    every: float


def check_windows(window: float | None, every: float | None, *, views: int | None = None) -> Windows | None:
    """The windows of the options, or None.

    Raises:
        UserError: ``every`` is set without ``window``, or windows have several views.
    """
    if window is None:
        if every is not None:
            raise UserError(f"every={every:g} is the distance of windows; set window=SECONDS, too")
        return None
    if views is not None and views > 1:
        raise UserError(
            f"views={views} with window={window:g}: a window has one view; leave views out, or set a smaller "
            "every=SECONDS"
        )
    return Windows(window, window if every is None else every)


def iter_window_clips(
    path: str, recipe: ClassifyRecipe, windows: Windows, *, reader: str = "auto"
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """One clip per window, in groups of consecutive windows.

    The frames of a clip are around the middle of the window, at the stride of the recipe, or with
    ``segments`` spread over the window. See :mod:`videomaskfeat.data.windows` for the ends of a video.

    Yields:
        Times float64 [n, 2] in seconds after the first frame, and clips uint8 [n * S, T, H, W, 3] with the
        crops of a clip next to each other.

    Raises:
        UserError: a length is not above 0.
        VideoReadError: the video cannot be read.
    """
    clip = recipe.clip
    crops = uniform_crops(clip.crop, recipe.short_side, recipe.crops)
    with open_by_time(path, reader) as video:
        duration = video.duration_seconds
        times = window_times(duration, window=windows.window, every=windows.every)
        seconds = clip_seconds(
            times,
            0.0 if clip.target_fps else video.fps,  # which may read the whole file
            frames=clip.frames,
            stride=clip.stride,
            target_fps=clip.target_fps,
            sampling=recipe.sampling,
        )
        for start in range(0, len(times), _WINDOWS_AT_ONCE):
            group = slice(start, start + _WINDOWS_AT_ONCE)
            clips = read_clips(video, seconds[group], crops, duration_seconds=duration)
            yield times[group], torch.from_numpy(clips)
