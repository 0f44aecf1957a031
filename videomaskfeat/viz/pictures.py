"""A dark sheet with text, on which panels are pasted pixel by pixel."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.texts import printable_name

_BACKGROUND = "#12141c"
_INK = "#e8eaf2"
_FAINT = "#9aa1b5"
_DPI = 128  # a power of two, so that a size in inches times it is the size in pixels exactly


@dataclass(frozen=True)
class Label:
    """A line of text: ``x`` of its left end, ``y`` of its base line from the top, its size; all in pixels."""

    x: int
    y: int
    text: str
    size: float = 14.0
    bold: bool = False
    faint: bool = False
    width: int | None = None
    """Pixels that the text may take: a longer one is set smaller, down to 70 %, and then cut."""


class Sheet:
    """A picture that begins as text on a dark ground.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
    """

    def __init__(self, height: int, width: int, labels: Sequence[Label]) -> None:
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        with _quiet_about_glyphs():
            for label in labels:
                text = figure.text(
                    label.x / width,
                    1 - label.y / height,
                    printable_name(label.text),  # matplotlib fails on bytes that are not UTF-8
                    fontsize=label.size * 72 / _DPI,
                    fontweight="bold" if label.bold else "normal",
                    color=_FAINT if label.faint else _INK,
                    va="baseline",
                    parse_math=False,  # a file name may hold dollar signs
                )
                if label.width is not None:
                    _fit(text, label.width, canvas)
            canvas.draw()
        self.pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def paste(self, panel: np.ndarray, top: int, left: int) -> None:
        """Put a panel uint8 [h, w, 3] with its upper left corner at (top, left)."""
        height, width = panel.shape[:2]
        self.pixels[top : top + height, left : left + width] = panel


def text_width(text: str, *, size: float, bold: bool = False) -> int:
    """Pixels that a line of text takes on a sheet, rounded up."""
    font = FontProperties(size=size * 72 / _DPI, weight="bold" if bold else "normal")
    renderer = _measuring_canvas().get_renderer()
    with _quiet_about_glyphs():
        width, _, _ = renderer.get_text_width_height_descent(printable_name(text), font, ismath=False)
    return math.ceil(width)


@contextmanager
def _quiet_about_glyphs() -> Iterator[None]:
    """The font lacks many scripts; a box in the picture says enough, without a warning per letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@functools.lru_cache(maxsize=1)
def _measuring_canvas() -> FigureCanvasAgg:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=_DPI))


def _fit(text: Text, width: int, canvas: FigureCanvasAgg) -> None:
    """Make a text no wider than ``width`` pixels."""
    size = float(text.get_fontsize())

    def excess() -> float:
        return float(text.get_window_extent(canvas.get_renderer()).width) / width

    if excess() > 1:
        text.set_fontsize(size * max(0.7, 1 / excess()))
    while excess() > 1.005 and len(text.get_text()) > 4:
        content = text.get_text().removesuffix("…")
        text.set_text(content[: int(len(content) / max(excess(), 1.02))] + "…")


# HOG histograms drawn as oriented strokes: what a target or a prediction says, made visible.


def cell_histograms(values: np.ndarray, *, bins: int = 9, channels: int = 3) -> np.ndarray:
    """Take HOG values apart into one histogram a cell, averaged over the colour channels.

    Args:
        values: float [t, h, w, K], a target or a prediction; K holds the colour channel slowest, then the
            bin, then the cells of the output position row by row.
        bins: orientations in half a turn.
        channels: colour channels.

    Returns:
        float32 [t, bins, R, C] with R x C cells a frame; negative values, which a prediction may hold, are
        clipped to 0 before the average.

    Raises:
        UserError: K is not channels x bins x a square number.
    """
    t, h, w, K = values.shape
    side = math.isqrt(K // (channels * bins))
    if side == 0 or side * side * channels * bins != K:
        raise UserError(
            f"{K} values a token cannot be drawn as HOG: it takes {channels} channels x {bins} bins x a "
            "square number of cells; draw only checkpoints whose target is HOG"
        )
    cells = values.astype(np.float32).reshape(t, h, w, channels, bins, side, side)
    cells = np.maximum(cells, 0.0).mean(axis=3)  # [t, h, w, bins, side, side]
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(t, bins, h * side, w * side)


@lru_cache(maxsize=8)
def stroke_templates(bins: int, size: int) -> np.ndarray:
    """One anti-aliased stroke a bin, float32 [bins, size, size] in 0..1.

    The target's phase is atan2(gx, gy), so the gradient of phase p points along (sin p, cos p) with x to the
    right and y *down*, and the edge, perpendicular to it, along (cos p, -sin p): as seen, p counted
    counter-clockwise from the horizontal. The kernels' sign turns both gradients round, which leaves an
    unsigned orientation as it is. Bin k covers [k, k + 1) * pi / bins and is drawn at its middle. With 9
    bins a vertical edge is the middle of bin 4 and is drawn upright; a horizontal one lies on the border of
    bins 8 and 0 and is drawn 10 degrees off, as the histogram knows no better.
    """
    offsets = np.arange(size, dtype=np.float32) - (size - 1) / 2
    x, y = offsets[None, :, None], offsets[:, None, None]
    angles = (np.arange(bins, dtype=np.float32) + 0.5) * (math.pi / bins)
    along = x * np.cos(angles) - y * np.sin(angles)  # [size, size, bins]
    across = x * np.sin(angles) + y * np.cos(angles)
    half_length, half_width = 0.46 * size, max(0.6, 0.055 * size)
    beyond = np.maximum(np.abs(along) - (half_length - half_width), 0.0)
    distance = np.hypot(beyond, across)  # to the stroke's centre line, so that its ends are round
    templates = np.clip(half_width + 0.5 - distance, 0.0, 1.0).transpose(2, 0, 1)
    templates.setflags(write=False)
    return templates


def draw_strokes(
    values: np.ndarray, *, bins: int = 9, channels: int = 3, cell_pixels: int = 16
) -> np.ndarray:
    """Draw HOG values as strokes along the edges, one stroke a bin, as bright as the bin is heavy.

    Strokes that cross add up as the root of the sum of their squares: the middle of a cell then shows the L2
    norm of its histogram, which normalisation makes 1, instead of a saturated blob.

    Args:
        values: float [t, h, w, K], see :func:`cell_histograms`.
        bins: orientations in half a turn.
        channels: colour channels.
        cell_pixels: height and width of a drawn cell, in pixels.

    Returns:
        uint8 [t, R * cell_pixels, C * cell_pixels], 255 where a stroke of weight 1 passes.

    Raises:
        UserError: the values are not HOG's, see :func:`cell_histograms`.
    """
    histograms = cell_histograms(values, bins=bins, channels=channels)
    t, _, rows, columns = histograms.shape
    templates = stroke_templates(bins, cell_pixels).reshape(bins, -1)
    energy = np.square(histograms).transpose(0, 2, 3, 1).reshape(-1, bins) @ np.square(templates)
    brightness = np.sqrt(np.minimum(energy, 1.0)).reshape(t, rows, columns, cell_pixels, cell_pixels)
    picture = brightness.transpose(0, 1, 3, 2, 4).reshape(t, rows * cell_pixels, columns * cell_pixels)
    return np.rint(picture * 255).astype(np.uint8)


# One clip as a picture and as a film: frames, what the encoder sees, the target, the prediction.
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
        target: float [t, h, w, K], HOG (see :func:`videomaskfeat.viz.pictures.cell_histograms`) unless there
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
        strokes: uint8 [t, H, W], see :func:`videomaskfeat.viz.pictures.draw_strokes`.
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


# Frames, the tokens that they became, and what a decoder makes of these.
_LEFT, _TOP = 170, 16
_PANEL_reconstructions = 160  # least height of a panel in the picture


def token_colours(tokens: np.ndarray) -> np.ndarray:
    """A colour for each number, the same every time: int [...] -> uint8 [..., 3].

    The numbers of codes mean nothing, so neighbours get colours far apart: hues go round by the golden ratio.
    """
    numbers = tokens.astype(np.float64)
    hues = numbers * 0.61803398875 % 1.0
    brightness = 0.57 + 0.22 * np.cos(2 * np.pi * (numbers * 0.41421356237 % 1.0))
    rgb = hsv_to_rgb(np.stack([hues, np.full(hues.shape, 0.6), brightness], axis=-1))
    return np.rint(rgb * 255).astype(np.uint8)


def draw_reconstructions(
    *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Draw a column a frame: the frame, its tokens in colours, the reconstruction.

    Args:
        frames: uint8 [n, H, W, 3], RGB.
        reconstructions: uint8 [n, H, W, 3].
        tokens: int [n, h, w].

    Returns:
        uint8 [H', W', 3].
    """
    count, height, width = frames.shape[:3]
    scale = max(1, -(-_PANEL_reconstructions // height))
    height, width = height * scale, width * scale
    used = len(np.unique(tokens))
    rows = (
        ("frames", f"{frames.shape[2]} x {frames.shape[1]} pixels", frames),
        ("tokens", f"{used} codes of {tokens.size} cells", token_colours(tokens)),
        ("reconstruction", "from the tokens alone", reconstructions),
    )
    labels = []
    for line, (name, note, _) in enumerate(rows):
        middle = _TOP + line * (height + _GAP) + height // 2
        labels.append(Label(16, middle - 4, name, bold=True))
        labels.append(Label(16, middle + 16, note, size=12, faint=True, width=_LEFT - 24))
    sheet = Sheet(_TOP + len(rows) * (height + _GAP) + _GAP, _LEFT + count * (width + _GAP), labels)
    for line, (_, _, panels) in enumerate(rows):
        for column, panel in enumerate(panels):
            shown = cv2.resize(panel, (width, height), interpolation=cv2.INTER_NEAREST)
            sheet.paste(shown, _TOP + line * (height + _GAP), _LEFT + column * (width + _GAP))
    return sheet.pixels


def write_reconstructions(
    path: str | os.PathLike[str], *, frames: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray
) -> None:
    """Write :func:`draw_reconstructions` as a PNG file; its folder is made."""
    make_folder(os.path.dirname(os.fspath(path)))
    picture = draw_reconstructions(frames=frames, reconstructions=reconstructions, tokens=tokens)
    done, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 5])
    assert done, "a uint8 picture can always be encoded"
    with whole_file(path, "wb") as file:
        file.write(png.tobytes())
