"""Small sets in AVA's form; at module level, so that worker processes can import what makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from tests.data.make_videos import numbered_picture
from videomaskfeat.data.ava import ActionClips
from videomaskfeat.data.ava_lists import KeyFrames, training_key_frames
from videomaskfeat.data.ava_sources import VideoSource
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.mp4 import write_mp4

NAMES = ("a", "b", "c")
AvaData = tuple[KeyFrames, tuple[VideoSource, ...]]
CLASSES = 5
BOXES = ("0.10,0.20,0.45,0.90", "0.60,0.10,0.90,0.70")
CLIP = {"frames": 4, "stride": 5}


def write_numbered(
    folder: Path, names: Sequence[str], *, seconds: float = 5.0, fps: float = 30.0, size: int = 64
) -> Path:
    """Videos of numbered pictures, 3:2; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name in names:
        pictures = (numbered_picture(i, size * 3 // 2, size) for i in range(round(seconds * fps)))
        write_mp4(folder / f"{name}.mp4", pictures, fps=fps)
    return folder


def write_truth(
    path: Path, names: Sequence[str], seconds: Sequence[float], boxes: Sequence[str] = BOXES
) -> KeyFrames:
    """Each box at each second of each video, with the action 1, 2, ... of its place."""
    rows = [
        f"{name},{second},{box},{action},0\n"
        for name in names
        for second in seconds
        for action, box in enumerate(boxes, 1)
    ]
    path.write_text("".join(rows))
    return training_key_frames([path], classes=CLASSES)


def extract(video: Path, folder: Path, *, suffix: str = "png", fps: float | None = None) -> Path:
    """Extract frames as AVA's are, ``<id>/<id>_000001.png`` ...; with ``fps``, the nearest to each time.

    Written on its own: every picture is decoded, and picked by its own time.
    """
    target = folder / video.stem
    target.mkdir(parents=True)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        decoded = [(frame.time, frame.to_ndarray(format="bgr24")) for frame in container.decode(stream)]
    times = np.array([time for time, _ in decoded])
    indices = list(range(len(decoded)))
    if fps is not None:
        ends = times[-1] + times[1]
        indices = [int(np.abs(times - number / fps).argmin()) for number in range(round(ends * fps))]
    for number, place in enumerate(indices, 1):
        name = str(target / f"{video.stem}_{number:06d}.{suffix}")
        assert cv2.imwrite(name, decoded[place][1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return target


def make_actions(key_frames: KeyFrames, sources: Sequence[VideoSource], **arguments: object) -> ActionClips:
    """Clips of 4 frames, 32x32."""
    keywords = {**CLIP, "transform": RandomResizedCrop(32), "seed": 11, **arguments}
    return ActionClips(key_frames, sources, **keywords)  # type: ignore[arg-type]
