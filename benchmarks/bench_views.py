"""All views of a test video (decode, resize, crop, collate) against decoding that video once.

The baseline decodes every frame of the file to RGB once on one thread, with decord and with PyAV. Ours
converts only the frames of the views (142 of 300). The third way is the usual one, which opens the video once
per view. The videos are those of bench_loader: 300 frames of H.264, 340x256 and 1280x720, with sparse and
dense key frames.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import decord

from benchmarks.bench_loader import FPS, KEYFRAME_INTERVALS, pictures_with_grain
from benchmarks.harness import Row, alternate
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_indices_view
from videomaskfeat.data.transforms import UniformCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.mp4 import write_mp4

VIEWS, CROPS = 10, 3
FRAMES, STRIDE, CROP = 16, 4, 224
SIZES = {(256, 340): 7, (720, 1280): 3}  # (height, width) -> rounds


def run(*, device: str) -> list[Row]:
    """Time each kind of file; the device has no effect."""
    cv2.setNumThreads(0)  # as in a worker process
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for (height, width), rounds in SIZES.items():
            pictures = pictures_with_grain(height, width)
            for interval in KEYFRAME_INTERVALS:
                path = Path(folder) / f"{width}x{height}_{interval}.mp4"
                write_mp4(path, pictures, fps=FPS, crf=23, keyframe_interval=interval)
                rows += _compare(path, f"{width}x{height}, key frame every {interval}", rounds)
    return rows


def _compare(video: Path, title: str, rounds: int) -> list[Row]:
    ways: dict[str, Callable[[], object]] = {
        "ours": functools.partial(_views(video, "auto").batch, [0]),
        "ours_decord": functools.partial(_views(video, "decord").batch, [0]),
        "decord": functools.partial(_decode_in_decord, str(video)),
        "pyav": functools.partial(_decode_in_pyav, str(video)),
        "openings": functools.partial(_open_for_each_view, str(video)),
    }
    ms = {name: 1000 * seconds for name, seconds in alternate(ways, rounds=rounds).items()}
    title_start, target = f"{VIEWS}x{CROPS} views / ", "at most 1.3x decoding"
    return [
        Row(f"{title_start}decoding once in decord, {title}", ms["ours"], ms["decord"], "ms", target=target),
        Row(f"{title_start}decoding once in PyAV, {title}", ms["ours"], ms["pyav"], "ms", target=target),
        Row(f"{title_start}one opening per view, {title}", ms["ours"], ms["openings"], "ms"),
        Row(f"reader=decord / decoding once in decord, {title}", ms["ours_decord"], ms["decord"], "ms"),
    ]


def _views(video: Path, reader: str) -> EvaluationViews:
    return EvaluationViews(
        Records.from_paths([str(video)], [0], source=str(video)),
        frames=FRAMES,
        stride=STRIDE,
        views=VIEWS,
        crops=CROPS,
        crop=CROP,
        short_side=CROP,
        reader=reader,
    )


def _decode_in_decord(path: str) -> None:
    reader = decord.VideoReader(path, num_threads=1)
    for _ in range(len(reader)):
        reader.next().asnumpy()


def _decode_in_pyav(path: str) -> None:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")


def _open_for_each_view(path: str) -> None:
    """Read the views like a data set with one row per view."""
    for view in range(VIEWS):
        for crop in range(CROPS):
            with open_video(path) as video:
                indices = clip_indices_view(
                    video.frames, video.fps, frames=FRAMES, stride=STRIDE, view=view, views=VIEWS
                )
                frames = video.read(indices)
                UniformCrop(CROP, CROP, crop).sample(*frames.shape[1:3]).apply_clip(frames)
