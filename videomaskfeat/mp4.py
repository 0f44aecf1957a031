"""Writing H.264 video files with PyAV."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import ffmpeg_url, whole_path


def write_mp4(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    *,
    fps: float = 30.0,
    crf: int = 18,
    preset: str = "veryfast",
    keyframe_interval: int = 12,
) -> None:
    """Write RGB frames as an H.264 (yuv420p) mp4, on one thread so that equal frames make equal files.

    Args:
        path: a local file; it appears when it is complete.
        frames: uint8 [H, W, 3] each, all of one even height and width.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51.
        preset: speed preset of x264.
        keyframe_interval: maximum number of frames between key frames.

    Raises:
        UserError: there are no frames, or the height or width is odd.
    """
    target = Path(path)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise UserError(f"{target}: a video needs at least one frame")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise UserError(f"{target}: H.264 needs an even height and width, not {height}x{width}")
    # x264's macroblock tree reads uninitialized memory: with it, equal frames sometimes give different bytes.
    options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
    with whole_path(target) as temporary, av.open(ffmpeg_url(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = keyframe_interval
        for picture in itertools.chain([first], iterator):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
