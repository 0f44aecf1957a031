"""A clip as a picture and as a film: frames, visible input, target and prediction."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from matplotlib.colors import hsv_to_rgb

from videomaskfeat.errors import UserError
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import GAP, Label, Row, Sheet, fit_frame, round_up_to_even, row_sheet, write_png

VISIBLE_STRENGTH = 0.3
"""Brightness of strokes at visible positions; it is 1 at hidden positions, where the loss is computed."""
_CHANNELS = 3  # of color
_CHECKERS = np.array([[42, 46, 60], [62, 67, 84]], dtype=np.uint8)
_PANEL = np.array([[9, 10, 14], [27, 30, 42]], dtype=np.float32)  # behind visible and hidden strokes
_MIN_PANEL = 160  # height of the panels of a reconstruction [pixels]
_TARGET_COLOR = (255, 209, 102)
_PREDICTION_COLOR = (111, 211, 255)
_CONSTANT_COLOR = (196, 181, 253)


def cell_histograms(values: np.ndarray, *, bins: int = 9) -> np.ndarray:
    """Split HOG values into one histogram per cell, averaged over the color channels.

    Args:
        values: float [t, h, w, K], a target or a prediction; K is (color channel, bin, cells row by row).
        bins: number of orientations in half a turn.

    Returns:
        float32 [t, bins, R, C] with R x C cells per frame; negative predictions become 0 before the average.

    Raises:
        UserError: K is not channels x bins x a square number.
    """
    channels = _CHANNELS
    t, h, w, K = values.shape
    side = math.isqrt(K // (channels * bins))
    if side == 0 or side * side * channels * bins != K:
        raise UserError(
            f"{K} values per token are not HOG, which has {channels} channels x {bins} bins x a square "
            "number of cells; draw only checkpoints with a HOG target"
        )
    cells = values.astype(np.float32).reshape(t, h, w, channels, bins, side, side)
    cells = np.maximum(cells, 0.0).mean(axis=3)  # [t, h, w, bins, side, side]
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(t, bins, h * side, w * side)


@functools.lru_cache(maxsize=8)
def stroke_templates(bins: int, size: int) -> np.ndarray:
    """One anti-aliased stroke per bin, float32 [bins, size, size] in 0..1.

    The target's phase is atan2(gx, gy): the gradient of phase p points along (sin p, cos p), with x to the
    right and y *down*, and the edge along (cos p, -sin p), at p counter-clockwise from the horizontal. The
    sign of the kernels reverses both gradients, which does not change an unsigned orientation. Bin k covers
    [k, k + 1) * pi / bins; its stroke is in the middle. With 9 bins, the stroke of a vertical edge (bin 4) is
    vertical; a horizontal edge is between bins 8 and 0, and its stroke is 10 degrees off.
    """
    offsets = np.arange(size, dtype=np.float32) - (size - 1) / 2
    x, y = offsets[None, :, None], offsets[:, None, None]
    angles = (np.arange(bins, dtype=np.float32) + 0.5) * (math.pi / bins)
    along = x * np.cos(angles) - y * np.sin(angles)  # [size, size, bins]
    across = x * np.sin(angles) + y * np.cos(angles)
    half_length, half_width = 0.46 * size, max(0.6, 0.055 * size)
    beyond = np.maximum(np.abs(along) - (half_length - half_width), 0.0)
    distance = np.hypot(beyond, across)  # to the center line of the stroke, so that its ends are round
    templates = np.clip(half_width + 0.5 - distance, 0.0, 1.0).transpose(2, 0, 1)
    templates.setflags(write=False)
    return templates


def draw_strokes(values: np.ndarray, *, bins: int = 9, cell_pixels: int = 16) -> np.ndarray:
    """Draw HOG values as strokes along the edges; the brightness of a stroke is the weight of its bin.

    Crossing strokes add up as the root of the sum of their squares: the middle of a cell shows the L2 norm of
    its histogram, which is normalized to 1.

    Args:
        values: see :func:`cell_histograms`, like ``bins`` and the error.
        cell_pixels: height and width of a drawn cell [pixels].

    Returns:
        uint8 [t, R * cell_pixels, C * cell_pixels]; a stroke of weight 1 is 255.
    """
    histograms = cell_histograms(values, bins=bins)
    t, _, rows, columns = histograms.shape
    templates = stroke_templates(bins, cell_pixels).reshape(bins, -1)
    energy = np.square(histograms).transpose(0, 2, 3, 1).reshape(-1, bins) @ np.square(templates)
    brightness = np.sqrt(np.minimum(energy, 1.0)).reshape(t, rows, columns, cell_pixels, cell_pixels)
    picture = brightness.transpose(0, 1, 3, 2, 4).reshape(t, rows * cell_pixels, columns * cell_pixels)
    return np.rint(picture * 255).astype(np.uint8)


@dataclass(frozen=True)
class ClipDrawing:
    """The content of a picture of one clip.

    Attributes:
        title: one line above the picture, such as the name of the video.
        frames: uint8 [T, H, W, 3], RGB, the model's input before normalization.
        mask: bool [t', h', w'], True = hidden, on any grid that divides the frames.
        target: float [t, h, w, K], HOG (see :func:`cell_histograms`) unless there are ``pictures``.
        prediction: float [t, h, w, K], or None to omit its row.
        constant: float [K], the best constant prediction, or None to omit its row.
        frame_labels: one text per frame, such as its number in the video; None counts from 0.
        bins: number of orientations in half a turn.
        pictures: rows with one panel per time step of the target, drawn instead of strokes if targets are
            pictures.

    Raises:
        UserError: a shape does not fit the frames or the target.
    """

    title: str
    frames: np.ndarray
    mask: np.ndarray
    target: np.ndarray
    prediction: np.ndarray | None = None
    constant: np.ndarray | None = None
    frame_labels: tuple[str, ...] | None = None
    bins: int = 9
    pictures: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        size, grid = self.frames.shape[:3], self.target.shape[:3]
        for name, shape in (("mask", self.mask.shape), ("target", grid)):
            if any(pixels % cells for pixels, cells in zip(size, shape, strict=True)):
                raise UserError(f"a {name} of {_shape(shape)} does not divide a clip of {_shape(size)}")
        if any(fine % coarse for fine, coarse in zip(grid, self.mask.shape, strict=True)):
            raise UserError(f"a mask of {_shape(self.mask.shape)} does not divide a target of {_shape(grid)}")
        if self.prediction is not None and self.prediction.shape != self.target.shape:
            raise UserError(
                f"a prediction of {_shape(self.prediction.shape)} for a target of "
                f"{_shape(self.target.shape)}: the two must be equal; draw a model with its training target"
            )
        if self.frame_labels is not None and len(self.frame_labels) != size[0]:
            raise UserError(f"{len(self.frame_labels)} frame labels for {size[0]} frames")


def stretch_mask(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Repeat the cells of a mask bool [t', h', w'] to ``shape``, a multiple of its own."""
    for axis, length in enumerate(shape):
        mask = mask.repeat(length // mask.shape[axis], axis=axis)
    return mask


def hide_cubes(frames: np.ndarray, mask: np.ndarray, *, square: int = 8) -> np.ndarray:
    """Cover the hidden cubes of frames uint8 [T, H, W, 3] with a gray checker; visible pixels stay the same.

    The mask, bool [t', h', w'], divides the frames; ``square``: side of a square of the checker [pixels].
    """
    T, H, W, _ = frames.shape
    hidden = stretch_mask(mask, (T, H, W))
    odd = (np.arange(H)[:, None] // square + np.arange(W) // square) % 2  # [H, W]
    return np.where(hidden[..., None], _CHECKERS[odd], frames)


def color_strokes(strokes: np.ndarray, hidden: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Color strokes uint8 [t, H, W] -> uint8 [t, H, W, 3].

    They are bright on a lighter background where ``hidden``, bool [t, H, W], and dim on a dark one elsewhere.
    """
    alpha = strokes.astype(np.float32) * (np.where(hidden, 1.0, VISIBLE_STRENGTH).astype(np.float32) / 255)
    background = _PANEL[hidden.astype(np.intp)]  # [t, H, W, 3]
    mixed = background + alpha[..., None] * (np.asarray(color, dtype=np.float32) - background)
    return np.rint(mixed).astype(np.uint8)


def hidden_error(drawing: ClipDrawing, values: np.ndarray) -> float:
    """Mean squared difference to the target over the hidden positions; NaN if no position is hidden."""
    hidden = stretch_mask(drawing.mask, drawing.target.shape[:3])
    if not hidden.any():
        return float("nan")
    difference = np.broadcast_to(values, drawing.target.shape)[hidden] - drawing.target[hidden]
    return float(np.mean(np.square(difference, dtype=np.float64)))


def stroke_rows(drawing: ClipDrawing, cell_pixels: int) -> list[Row]:
    """The rows of strokes: target, prediction, best constant; missing ones are omitted."""
    contents = [("HOG target", drawing.target, _TARGET_COLOR, False)]
    if drawing.prediction is not None:
        contents.append(("prediction", drawing.prediction, _PREDICTION_COLOR, True))
    if drawing.constant is not None:
        constant = np.broadcast_to(drawing.constant, drawing.target.shape)
        contents.append(("best constant", constant, _CONSTANT_COLOR, True))
    rows = []
    for name, values, color, with_error in contents:
        strokes = draw_strokes(values, bins=drawing.bins, cell_pixels=cell_pixels)
        hidden = stretch_mask(drawing.mask, strokes.shape)
        note = f"hidden error {hidden_error(drawing, values):.4f}" if with_error else "of the original pixels"
        rows.append(Row(name, note, color_strokes(strokes, hidden, color)))
    return rows


def draw_picture(drawing: ClipDrawing, *, columns: int = 8, cell_pixels: int | None = None) -> np.ndarray:
    """Draw a clip, uint8 [H, W, 3]: one column per time step; rows of frames, visible input, predictions.

    Args:
        drawing: content of the picture.
        columns: maximum number of time steps; of more, evenly spaced ones are drawn.
        cell_pixels: size of a HOG cell [pixels]; None: for a picture about 1700 pixels wide.
    """
    steps = drawing.target.shape[0]
    chosen = np.unique(np.linspace(0, steps - 1, min(columns, steps)).round().astype(int))
    first_frames = chosen * (
        len(drawing.frames) // steps
    )  # HOG is computed from the first frame of each cube
    cell_pixels = cell_pixels or _cell_pixels(drawing, len(chosen))
    rows = [replace(row, panels=row.panels[chosen]) for row in _value_rows(drawing, cell_pixels)]
    height, width = rows[0].panels.shape[1:3]
    rows = _frame_rows(drawing, first_frames, height, width) + rows

    left, top, bottom = 150, 76, 50
    sheet_width = left + len(chosen) * (width + GAP) + GAP
    labels = [Label(left, 28, drawing.title, size=21, bold=True, width=sheet_width - left)]
    for column, frame in enumerate(first_frames):
        name = f"frame {frame}" if drawing.frame_labels is None else drawing.frame_labels[frame]
        labels.append(Label(left + column * (width + GAP), top - 10, name, faint=True))
    base = top + len(rows) * (height + GAP) + bottom - 32
    for line, text in enumerate(_PICTURE_LEGEND if drawing.pictures else _LEGEND):
        labels.append(
            Label(left, base + 17 * line, text, size=12, faint=True, width=sheet_width - left - GAP)
        )
    return row_sheet(rows, left=left, top=top, right=GAP, bottom=bottom, labels=labels).pixels


def draw_film(drawing: ClipDrawing, *, cell_pixels: int | None = None) -> Iterator[np.ndarray]:
    """Draw a clip as a film: the rows of :func:`draw_picture` side by side, one picture per frame.

    Yields:
        uint8 [H, W, 3] with even height and width, as H.264 needs.
    """
    T, steps = len(drawing.frames), drawing.target.shape[0]
    strokes_wide = 1 + (drawing.prediction is not None) + (drawing.constant is not None)
    panels_wide = 2 + (len(drawing.pictures) or strokes_wide)
    rows = _value_rows(drawing, cell_pixels or _cell_pixels(drawing, panels_wide))
    height, width = rows[0].panels.shape[1:3]
    frames = _frame_rows(drawing, np.arange(T), height, width)
    top = 84
    sheet_width = round_up_to_even(len(rows + frames) * (width + GAP) + GAP)
    labels = [Label(GAP, 26, drawing.title, size=18, bold=True, width=sheet_width - 2 * GAP)]
    for line, row in enumerate(frames + rows):
        labels.append(Label(GAP + line * (width + GAP), top - 27, row.name, bold=True))
        labels.append(Label(GAP + line * (width + GAP), top - 10, row.note, size=12, faint=True))
    sheet = Sheet(round_up_to_even(top + height + GAP), sheet_width, labels)
    for frame in range(T):
        panels = [row.panels[frame] for row in frames] + [row.panels[frame * steps // T] for row in rows]
        for line, panel in enumerate(panels):
            sheet.paste(panel, top, GAP + line * (width + GAP))
        yield sheet.pixels.copy()


def write_picture(path: str | os.PathLike[str], drawing: ClipDrawing, *, columns: int = 8) -> None:
    """Write :func:`draw_picture` as a PNG file; the rows of a single frame are side by side."""
    single = len(drawing.frames) == 1
    write_png(path, next(draw_film(drawing)) if single else draw_picture(drawing, columns=columns))


def write_film(path: str | os.PathLike[str], drawing: ClipDrawing, *, fps: float = 6.0) -> None:
    """Write :func:`draw_film` as an H.264 mp4, slow by default."""
    write_mp4(path, draw_film(drawing), fps=fps, crf=28, keyframe_interval=100)


_LEGEND = (
    "Checkered: cubes hidden from the encoder. Strokes run along edges; brightness is the weight of the bin.",
    "Lighter background: hidden positions, where the loss is computed; dim strokes: visible positions.",
)
_PICTURE_LEGEND = ("Checkered: cubes hidden from the encoder, where the loss is computed.",)


def _value_rows(drawing: ClipDrawing, cell_pixels: int) -> list[Row]:
    """The rows below the frames: pictures or strokes."""
    if not drawing.pictures:
        return stroke_rows(drawing, cell_pixels)
    height, width = (cells * cell_pixels for cells in drawing.target.shape[1:3])
    return [
        replace(row, panels=np.stack([fit_frame(panel, height, width) for panel in row.panels]))
        for row in drawing.pictures
    ]


def _frame_rows(drawing: ClipDrawing, chosen: np.ndarray, height: int, width: int) -> list[Row]:
    """The chosen frames and their visible input, at the size of the other panels."""
    hidden = stretch_mask(drawing.mask, (len(drawing.frames), *drawing.mask.shape[1:]))[chosen]
    frames = drawing.frames[chosen]
    shown = np.stack([fit_frame(frame, height, width) for frame in frames])
    covered = hide_cubes(shown, hidden, square=max(4, height // 28))
    size = f"{frames.shape[2]} x {frames.shape[1]} pixels"
    return [Row("frames", size, shown), Row("visible", f"{drawing.mask.mean():.0%} hidden", covered)]


def _cell_pixels(drawing: ClipDrawing, panels_wide: int) -> int:
    """Size of a HOG cell, so that all panels are about 1600 pixels wide; at least 8 [pixels]."""
    K = drawing.target.shape[-1]
    inside = 1 if drawing.pictures else math.isqrt(K // (drawing.bins * _CHANNELS))
    cells = drawing.target.shape[2] * inside
    return max(8, round(min(400, 1600 / panels_wide) / max(1, cells)))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def token_colors(tokens: np.ndarray) -> np.ndarray:
    """A fixed color for each token: int [...] -> uint8 [..., 3].

    The order of codes has no meaning, so neighbors get different colors: hues advance by the golden ratio.
    """
    numbers = tokens.astype(np.float64)
    hues = numbers * 0.61803398875 % 1.0
    brightness = 0.57 + 0.22 * np.cos(2 * np.pi * (numbers * 0.41421356237 % 1.0))
    rgb = hsv_to_rgb(np.stack([hues, np.full(hues.shape, 0.6), brightness], axis=-1))
    return np.rint(rgb * 255).astype(np.uint8)


def draw_reconstructions(
    *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Draw one column per frame, uint8 [H', W', 3]: the frame, its tokens as colors, and the reconstruction.

    Frames and reconstructions are uint8 [n, H, W, 3], RGB; tokens are int [n, h, w].
    """
    scale = max(1, -(-_MIN_PANEL // frames.shape[1]))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    used = len(np.unique(tokens))

    def row(name: str, note: str, panels: np.ndarray) -> Row:
        sized = [cv2.resize(one, (width, height), interpolation=cv2.INTER_NEAREST) for one in panels]
        return Row(name, note, np.stack(sized))

    rows = [
        row("frames", f"{frames.shape[2]} x {frames.shape[1]} pixels", frames),
        row("tokens", f"{used} codes in {tokens.size} cells", token_colors(tokens)),
        row("reconstruction", "from the tokens alone", reconstructions),
    ]
    return row_sheet(rows, left=170, top=16, right=0, bottom=GAP).pixels


def write_reconstructions(
    path: str | os.PathLike[str], *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> None:
    """Write :func:`draw_reconstructions` as a PNG file; creates the folder."""
    write_png(path, draw_reconstructions(frames=frames, reconstructions=reconstructions, tokens=tokens))
