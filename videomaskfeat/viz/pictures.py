"""One clip as a picture and as a film: frames, what the encoder sees, the target, the prediction."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import whole_file
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import Label, Sheet
from videomaskfeat.viz.strokes import draw_strokes

VISIBLE_STRENGTH = 0.3
"""Brightness of strokes at visible positions; at hidden ones it is 1. Only hidden ones are trained."""

_CHECKERS = np.array([[42, 46, 60], [62, 67, 84]], dtype=np.uint8)
_PANEL = np.array([[9, 10, 14], [27, 30, 42]], dtype=np.float32)  # behind visible and hidden strokes
_TARGET_COLOUR = (255, 209, 102)
_PREDICTION_COLOUR = (111, 211, 255)
_CONSTANT_COLOUR = (196, 181, 253)
_GAP = 8  # pixels between panels


@dataclass(frozen=True)
class Row:
    """One line of a picture: a name, a note under it, and uint8 [t, H, W, 3] panels over time."""

    name: str
    note: str
    panels: np.ndarray


@dataclass(frozen=True)
class ClipDrawing:
    """What is drawn of one clip.

    Attributes:
        title: one line above the picture, such as the name of the video.
        frames: uint8 [T, H, W, 3], RGB, as the model saw them before normalising.
        mask: bool [t', h', w'], True = hidden, on any grid that divides the frames.
        target: float [t, h, w, K], HOG (see :func:`videomaskfeat.viz.strokes.cell_histograms`) unless there
            are ``pictures``.
        prediction: float [t, h, w, K], or None to leave that row out.
        constant: float [K], the best constant prediction, or None to leave that row out.
        frame_labels: one text a frame, such as its number in the video; None counts from 0.
        bins: orientations in half a turn.
        channels: colour channels.
        pictures: rows of panels, a panel a step of the target's grid, to draw instead of strokes: of targets
            that are pictures themselves.
    """

    title: str
    frames: np.ndarray
    mask: np.ndarray
    target: np.ndarray
    prediction: np.ndarray | None = None
    constant: np.ndarray | None = None
    frame_labels: tuple[str, ...] | None = None
    bins: int = 9
    channels: int = 3
    pictures: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            UserError: a part's shape does not fit the frames or the target.
        """
        size, grid = self.frames.shape[:3], self.target.shape[:3]
        for name, shape in (("mask", self.mask.shape), ("target", grid)):
            if any(pixels % cells for pixels, cells in zip(size, shape, strict=True)):
                raise UserError(f"a {name} of {_by(shape)} does not divide a clip of {_by(size)}")
        if any(fine % coarse for fine, coarse in zip(grid, self.mask.shape, strict=True)):
            raise UserError(f"a mask of {_by(self.mask.shape)} does not divide a target of {_by(grid)}")
        if self.prediction is not None and self.prediction.shape != self.target.shape:
            raise UserError(
                f"a prediction of {_by(self.prediction.shape)} for a target of {_by(self.target.shape)}: "
                "the two must have one shape; draw a model with the target it was trained on"
            )
        if self.frame_labels is not None and len(self.frame_labels) != size[0]:
            raise UserError(f"{len(self.frame_labels)} frame labels for {size[0]} frames")


def stretch_mask(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Repeat the cells of a mask bool [t', h', w'] until it has ``shape``, a multiple on every axis."""
    for axis, length in enumerate(shape):
        mask = mask.repeat(length // mask.shape[axis], axis=axis)
    return mask


def hide_cubes(frames: np.ndarray, mask: np.ndarray, *, square: int = 8) -> np.ndarray:
    """Cover the hidden cubes of a clip with a grey chequer.

    Args:
        frames: uint8 [T, H, W, 3].
        mask: bool [t', h', w'], True = hidden; divides the frames.
        square: side of the chequer's squares in pixels.

    Returns:
        uint8 [T, H, W, 3]; visible pixels are unchanged.
    """
    T, H, W, _ = frames.shape
    hidden = stretch_mask(mask, (T, H, W))
    odd = (np.arange(H)[:, None] // square + np.arange(W) // square) % 2  # [H, W]
    return np.where(hidden[..., None], _CHECKERS[odd], frames)


def colour_strokes(strokes: np.ndarray, hidden: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Colour drawn strokes: full strength on a lit ground where hidden, dim on a dark one where visible.

    Args:
        strokes: uint8 [t, H, W], see :func:`videomaskfeat.viz.strokes.draw_strokes`.
        hidden: bool [t, H, W].
        colour: RGB, 0..255, of a stroke of weight 1 in a hidden place.

    Returns:
        uint8 [t, H, W, 3].
    """
    alpha = strokes.astype(np.float32) * (np.where(hidden, 1.0, VISIBLE_STRENGTH).astype(np.float32) / 255)
    ground = _PANEL[hidden.astype(np.intp)]  # [t, H, W, 3]
    mixed = ground + alpha[..., None] * (np.asarray(colour, dtype=np.float32) - ground)
    return np.rint(mixed).astype(np.uint8)


def hidden_error(drawing: ClipDrawing, values: np.ndarray) -> float:
    """Mean squared difference to the target over the hidden positions; NaN where nothing is hidden."""
    hidden = stretch_mask(drawing.mask, drawing.target.shape[:3])
    if not hidden.any():
        return float("nan")
    difference = np.broadcast_to(values, drawing.target.shape)[hidden] - drawing.target[hidden]
    return float(np.mean(np.square(difference, dtype=np.float64)))


def stroke_rows(drawing: ClipDrawing, cell_pixels: int) -> list[Row]:
    """The rows of strokes: target, then prediction and best constant where they are given."""
    named = [("HOG target", drawing.target, _TARGET_COLOUR, False)]
    if drawing.prediction is not None:
        named.append(("prediction", drawing.prediction, _PREDICTION_COLOUR, True))
    if drawing.constant is not None:
        constant = np.broadcast_to(drawing.constant, drawing.target.shape)
        named.append(("best constant", constant, _CONSTANT_COLOUR, True))
    rows = []
    for name, values, colour, with_error in named:
        strokes = draw_strokes(values, bins=drawing.bins, channels=drawing.channels, cell_pixels=cell_pixels)
        hidden = stretch_mask(drawing.mask, strokes.shape)
        note = f"hidden error {hidden_error(drawing, values):.4f}" if with_error else "of the true pixels"
        rows.append(Row(name, note, colour_strokes(strokes, hidden, colour)))
    return rows


def draw_picture(drawing: ClipDrawing, *, columns: int = 8, cell_pixels: int | None = None) -> np.ndarray:
    """Draw one clip: a column a time step, a row each for frames, visible input, target and prediction.

    Args:
        drawing: the clip and what belongs to it.
        columns: time steps at most; of more, an even choice is drawn.
        cell_pixels: size of a HOG cell in the picture; None chooses it for a picture some 1700 pixels wide.

    Returns:
        uint8 [H, W, 3].
    """
    steps = drawing.target.shape[0]
    chosen = np.unique(np.linspace(0, steps - 1, min(columns, steps)).round().astype(int))
    first_frames = chosen * (len(drawing.frames) // steps)  # HOG is taken of the first frame of each cube
    cell_pixels = cell_pixels or _cell_pixels(drawing, len(chosen))
    rows = [_only(row, chosen) for row in _value_rows(drawing, cell_pixels)]
    height, width = rows[0].panels.shape[1:3]
    rows = _frame_rows(drawing, first_frames, height, width) + rows

    left, top = 150, 76
    sheet_width = left + len(chosen) * (width + _GAP) + _GAP
    sheet_height = top + len(rows) * (height + _GAP) + 50
    labels = [Label(left, 28, drawing.title, size=21, bold=True, width=sheet_width - left)]
    for column, frame in enumerate(first_frames):
        labels.append(
            Label(left + column * (width + _GAP), top - 10, _frame_label(drawing, frame), faint=True)
        )
    for line, row in enumerate(rows):
        middle = top + line * (height + _GAP) + height // 2
        labels.append(Label(16, middle - 4, row.name, bold=True))
        labels.append(Label(16, middle + 16, row.note, size=12, faint=True))
    for line, text in enumerate(_PICTURE_LEGEND if drawing.pictures else _LEGEND):
        base = sheet_height - 32 + 17 * line
        labels.append(Label(left, base, text, size=12, faint=True, width=sheet_width - left - _GAP))
    sheet = Sheet(sheet_height, sheet_width, labels)
    for line, row in enumerate(rows):
        for column, panel in enumerate(row.panels):
            sheet.paste(panel, top + line * (height + _GAP), left + column * (width + _GAP))
    return sheet.pixels


def draw_film(drawing: ClipDrawing, *, cell_pixels: int | None = None) -> Iterator[np.ndarray]:
    """Draw one clip as a film, the rows of :func:`draw_picture` side by side, one picture a frame.

    Yields:
        uint8 [H, W, 3], both even, as H.264 needs.
    """
    T, steps = len(drawing.frames), drawing.target.shape[0]
    strokes_wide = 1 + (drawing.prediction is not None) + (drawing.constant is not None)
    panels_wide = 2 + (len(drawing.pictures) or strokes_wide)
    rows = _value_rows(drawing, cell_pixels or _cell_pixels(drawing, panels_wide))
    height, width = rows[0].panels.shape[1:3]
    frames = _frame_rows(drawing, np.arange(T), height, width)
    top = 84
    sheet_width = _even(len(rows + frames) * (width + _GAP) + _GAP)
    labels = [Label(_GAP, 26, drawing.title, size=18, bold=True, width=sheet_width - 2 * _GAP)]
    for line, row in enumerate(frames + rows):
        labels.append(Label(_GAP + line * (width + _GAP), top - 27, row.name, bold=True))
        labels.append(Label(_GAP + line * (width + _GAP), top - 10, row.note, size=12, faint=True))
    sheet = Sheet(_even(top + height + _GAP), sheet_width, labels)
    for frame in range(T):
        panels = [row.panels[frame] for row in frames] + [row.panels[frame * steps // T] for row in rows]
        for line, panel in enumerate(panels):
            sheet.paste(panel, top, _GAP + line * (width + _GAP))
        yield sheet.pixels.copy()


def write_picture(path: str | os.PathLike[str], drawing: ClipDrawing, *, columns: int = 8) -> None:
    """Write :func:`draw_picture` as a PNG file; one frame lies there as in a film, its rows side by side."""
    single = len(drawing.frames) == 1
    picture = next(draw_film(drawing)) if single else draw_picture(drawing, columns=columns)
    done, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 5])
    assert done, "a uint8 picture can always be encoded"
    with whole_file(path, "wb") as file:
        file.write(png.tobytes())


def write_film(path: str | os.PathLike[str], drawing: ClipDrawing, *, fps: float = 6.0) -> None:
    """Write :func:`draw_film` as an H.264 mp4, by default slow enough to look at."""
    write_mp4(path, draw_film(drawing), fps=fps, crf=23)


_LEGEND = (
    "Chequered: cubes hidden from the encoder. Strokes run along the edges, the brighter the stronger.",
    "Lit ground: hidden places, which the prediction is trained on; dim: visible places, which it is not.",
)
_PICTURE_LEGEND = ("Chequered: cubes hidden from the encoder, the places that the prediction is trained on.",)


def _value_rows(drawing: ClipDrawing, cell_pixels: int) -> list[Row]:
    """The rows below the frames: the drawing's own pictures, or strokes."""
    if not drawing.pictures:
        return stroke_rows(drawing, cell_pixels)
    height, width = (cells * cell_pixels for cells in drawing.target.shape[1:3])
    return [
        replace(row, panels=np.stack([_resized(panel, height, width) for panel in row.panels]))
        for row in drawing.pictures
    ]


def _frame_rows(drawing: ClipDrawing, chosen: np.ndarray, height: int, width: int) -> list[Row]:
    """The frames and the visible input at the chosen frames, at the size of the stroke panels."""
    hidden = stretch_mask(drawing.mask, (len(drawing.frames), *drawing.mask.shape[1:]))[chosen]
    frames = drawing.frames[chosen]
    shown = np.stack([_resized(frame, height, width) for frame in frames])
    covered = hide_cubes(shown, hidden, square=max(4, height // 28))
    size = f"{frames.shape[2]} x {frames.shape[1]} pixels"
    return [Row("frames", size, shown), Row("visible", f"{drawing.mask.mean():.0%} hidden", covered)]


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height < frame.shape[0]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _cell_pixels(drawing: ClipDrawing, panels_wide: int) -> int:
    """Pixels a drawn HOG cell, so that the panels side by side take some 1600 pixels; 8 at least."""
    K = drawing.target.shape[-1]
    inside = 1 if drawing.pictures else math.isqrt(K // (drawing.bins * drawing.channels))
    cells = drawing.target.shape[2] * inside
    return max(8, round(min(400, 1600 / panels_wide) / max(1, cells)))


def _only(row: Row, steps: np.ndarray) -> Row:
    return Row(row.name, row.note, row.panels[steps])


def _frame_label(drawing: ClipDrawing, frame: int) -> str:
    return f"frame {frame}" if drawing.frame_labels is None else drawing.frame_labels[frame]


def _even(length: int) -> int:
    return length + length % 2


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
