"""Values on a token grid as heat over the frames of a clip."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import GAP, Label, Row, fit_frame, round_up_to_even, row_sheet, write_png

_SMALLEST = 160  # height of a drawn frame [pixels]


def heat_frames(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Blend gray frames with the colors of values: half of each at the value 1, only the frame at 0.

    Args:
        frames: uint8 [T, H, W, 3], RGB.
        values: float [t, h, w] in 0..1, interpolated to the frames.

    Returns:
        uint8 [T, H, W, 3].
    """
    size = frames.shape[:3]
    cells = torch.from_numpy(values)[None, None].float()
    smooth = F.interpolate(cells, size, mode="trilinear", align_corners=False)[0, 0].clamp(0, 1).numpy()
    heat = []
    for frame, level in zip(frames, smooth, strict=True):
        colors = cv2.applyColorMap(np.rint(255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        gray = np.repeat(frame.mean(axis=2, keepdims=True), 3, axis=2)
        heat.append(np.rint(gray + level[..., None] * 0.5 * (colors - gray)).astype(np.uint8))
    return np.stack(heat)


def write_heat_picture(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    heat: np.ndarray,
    *,
    title: str,
    name: str,
    note: str,
    columns: int = 8,
) -> None:
    """Write frames and heat, uint8 [T, H, W, 3], as two rows of a PNG file, at most ``columns`` of them.

    ``name`` and ``note`` are beside the row of the heat.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
    shown = [np.stack([_enlarge(one) for one in panels[chosen]]) for panels in (frames, heat)]
    size = f"{frames.shape[2]} x {frames.shape[1]} pixels"
    rows = [Row("frames", size, shown[0]), Row(name, note, shown[1])]
    left = 150
    width = left + len(chosen) * (shown[0].shape[2] + GAP)
    labels = [Label(left, 28, title, size=21, bold=True, width=width - left)]
    write_png(path, row_sheet(rows, left=left, top=44, right=GAP, bottom=GAP, labels=labels).pixels)


def write_heat_film(
    path: str | os.PathLike[str], frames: np.ndarray, heat: np.ndarray, *, fps: float = 6.0
) -> None:
    """Write frames and heat side by side as an H.264 mp4, slow by default."""

    def pictures() -> Iterator[np.ndarray]:
        for frame, colored in zip(frames, heat, strict=True):
            picture = np.concatenate([_enlarge(frame), _enlarge(colored)], axis=1)
            height, width = map(round_up_to_even, picture.shape[:2])
            yield fit_frame(picture, height, width)

    write_mp4(path, pictures(), fps=fps, crf=28, keyframe_interval=100)


def _enlarge(frame: np.ndarray) -> np.ndarray:
    factor = max(1, -(-_SMALLEST // frame.shape[0]))
    return fit_frame(frame, frame.shape[0] * factor, frame.shape[1] * factor)
