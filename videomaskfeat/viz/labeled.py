"""Videos with predictions: bars below the frames, or boxes and panels on the frames."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import Label, Sheet, fit_frame, measure_text, round_up_to_even, write_png

_MAX_SIZE = (720, 1280)  # height and width of drawn frames [pixels]
_MIN_RATE, _MAX_RATE = 0.1, 240.0  # frame rates that players support
_EMPTY_BAR = (38, 42, 56)  # RGB
# Bars below the frames
_MIN_WIDTH = 320  # of a sheet, so that names are readable [pixels]
_MARGIN, _LINE, _BAR = 10, 34, 8  # around the bars, from one to the next, height of a bar [pixels]
_PERCENT, _DIGIT = 60, 10  # width of "100.0%" and of one digit [pixels]
_COLOR = (111, 211, 255)
# Persons: a box, and next to it a panel with the person's actions
_MIN_PERSONS_WIDTH = 480  # of a film, so that panels fit [pixels]
_BACKGROUND = (18, 20, 28)  # as of a sheet
_MIN_TEXT, _MAX_TEXT, _TEXT_SHARE = 12, 18, 0.026  # pixels, and share of the shorter side of the film
_MAX_PANEL_SHARE = 0.6  # of the film's width
_PANEL_OPACITY = 0.82
_STRIP, _PAD, _PANEL_BAR, _GAP = 4, 6, 3, 3  # colored edge, around the text, bar, box to panel [pixels]
_COLORS = (
    (111, 211, 255), (255, 176, 96), (150, 232, 130), (255, 130, 165), (196, 160, 255),
    (250, 232, 110), (90, 226, 196), (240, 140, 240), (190, 205, 130), (140, 165, 255),
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A text with a share 0..1, drawn as a bar and as a percentage."""

    text: str
    share: float


@dataclass(frozen=True)
class DrawnPerson:
    """A person in one frame.

    Attributes:
        track: number of the person; it decides the color.
        box: x1, y1, x2, y2 as shares of the frame's width and height.
        title: first line of the panel.
        bars: further lines of the panel.
    """

    track: int
    box: tuple[float, float, float, float]
    title: str
    bars: tuple[Bar, ...] = ()


def drawn_size(height: int, width: int, *, min_width: int = _MIN_WIDTH) -> tuple[int, int]:
    """Height and width of drawn frames: at most 720x1280, and at least ``min_width`` wide if possible.

    The aspect ratio stays the same, up to rounding; both sides are at least 2.
    """
    limit = min(_MAX_SIZE[0] / height, _MAX_SIZE[1] / width)
    scale = min(limit, max(1.0, min_width / width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def film_rate(fps: float) -> float:
    """The nearest frame rate that players support; 30 if the frame rate is unknown."""
    return float(np.clip(fps, _MIN_RATE, _MAX_RATE)) if np.isfinite(fps) and fps > 0 else 30.0


def draw_labeled(frames: Iterable[np.ndarray], bars: Sequence[Bar]) -> Iterator[np.ndarray]:
    """Draw each frame uint8 [H, W, 3] with the same bars below it.

    Yields:
        uint8 [h, w, 3] with even height and width, as H.264 needs.
    """
    sheet: Sheet | None = None
    for frame in frames:
        if sheet is None:
            height, width = drawn_size(*frame.shape[:2])
            sheet = _sheet(height, width, bars)
        sheet.paste(fit_frame(frame, height, width), 0, (sheet.pixels.shape[1] - width) // 2)
        yield sheet.pixels.copy()


def write_labeled(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], bars: Sequence[Bar], *, fps: float
) -> None:
    """Write :func:`draw_labeled` as an H.264 mp4 at :func:`film_rate`; at least one frame."""
    write_mp4(path, draw_labeled(frames, bars), fps=film_rate(fps), crf=23)


def write_labeled_picture(path: str | os.PathLike[str], picture: np.ndarray, bars: Sequence[Bar]) -> None:
    """Write :func:`draw_labeled` of one picture uint8 [H, W, 3], RGB, as a PNG."""
    write_png(path, next(draw_labeled([picture], bars)))


def _sheet(height: int, width: int, bars: Sequence[Bar]) -> Sheet:
    """The bars with space for the frames above them."""
    sheet_width = round_up_to_even(max(width, _MIN_WIDTH))
    bar_width = sheet_width - 2 * _MARGIN
    labels = []
    for number, bar in enumerate(bars):
        base = height + _MARGIN + number * _LINE + 14
        percent = f"{bar.share:.1%}"
        labels.append(Label(_MARGIN, base, bar.text, width=bar_width - _PERCENT - _MARGIN))
        left = sheet_width - _MARGIN - _PERCENT + _DIGIT * (len("100.0%") - len(percent))
        labels.append(Label(left, base, percent, bold=True))
    sheet = Sheet(round_up_to_even(height + 2 * _MARGIN + len(bars) * _LINE), sheet_width, labels)
    for number, bar in enumerate(bars):
        top = height + _MARGIN + number * _LINE + 20
        _draw_bar(sheet.pixels[top : top + _BAR, _MARGIN : _MARGIN + bar_width], bar.share, _COLOR)
    return sheet


def _draw_bar(pixels: np.ndarray, share: float, color: tuple[int, int, int]) -> None:
    """Fill pixels uint8 [h, w, 3] with a bar of a share 0..1 of their width."""
    pixels[:] = _EMPTY_BAR
    pixels[:, : round(min(max(share, 0.0), 1.0) * pixels.shape[1])] = color


def color_of(track: int) -> tuple[int, int, int]:
    """RGB color of a track; there are ten colors."""
    return _COLORS[track % len(_COLORS)]


def draw_persons(frames: Iterable[tuple[np.ndarray, Sequence[DrawnPerson]]]) -> Iterator[np.ndarray]:
    """Draw each frame uint8 [H, W, 3] with its persons.

    Frames have the size of :func:`drawn_size` with a minimum width of 480; narrower ones are centered.

    Yields:
        uint8 [h, w, 3] with even height and width, as H.264 needs.
    """
    size: tuple[int, int] | None = None
    places: dict[int, int] = {}
    for frame, persons in frames:
        size = size or drawn_size(*frame.shape[:2], min_width=_MIN_PERSONS_WIDTH)
        height, width = size
        sheet = np.full(
            (round_up_to_even(height), round_up_to_even(max(width, _MIN_PERSONS_WIDTH)), 3),
            _BACKGROUND,
            np.uint8,
        )
        left = (sheet.shape[1] - width) // 2
        sheet[:height, left : left + width] = fit_frame(frame, height, width)
        places = _draw(sheet, persons, (left, height, width), places)
        yield sheet


def write_persons(
    path: str | os.PathLike[str],
    frames: Iterable[tuple[np.ndarray, Sequence[DrawnPerson]]],
    *,
    fps: float,
) -> None:
    """Write :func:`draw_persons` as an H.264 mp4 at :func:`film_rate`; at least one frame."""
    write_mp4(path, draw_persons(frames), fps=film_rate(fps), crf=23)


def place_panels(
    boxes: np.ndarray, sizes: np.ndarray, height: int, width: int, before: Sequence[int]
) -> tuple[np.ndarray, list[int]]:
    """Place panels next to their boxes, inside the picture, so that they cover few panels and boxes.

    There are eleven places: above the box, below, right, left, inside at its top, bottom and middle, and the
    first four again at the far end of the box. Covering panels costs most, then other boxes, then the panel's
    own box. A panel keeps its previous place until another one is clearly better, so that it does not jump.

    Args:
        boxes: int [n, 4], x1, y1, x2, y2 [pixels].
        sizes: int [n, 2], height and width of the panels [pixels].
        height: height of the picture [pixels].
        width: width of the picture [pixels].
        before: previous places, 0..10; -1 without one.

    Returns:
        int [n, 2], top and left of each panel, and the places.
    """
    corners, chosen = np.zeros((len(boxes), 2), np.int64), []
    taken = np.empty((0, 4))
    for number, (box, (tall, wide)) in enumerate(zip(boxes, sizes, strict=True)):
        x1, y1, x2, y2 = box
        candidates = np.array(
            [
                (y1 - tall - _GAP, x1),
                (y2 + _GAP, x1),
                (y1, x2 + _GAP),
                (y1, x1 - wide - _GAP),
                (y1 + _GAP, x1 + _GAP),
                (y2 - tall - _GAP, x1 + _GAP),
                ((y1 + y2 - tall) // 2, x1 + _GAP),
                (y1 - tall - _GAP, x2 - wide),
                (y2 + _GAP, x2 - wide),
                (y2 - tall, x2 + _GAP),
                (y2 - tall, x1 - wide - _GAP),
            ]
        )
        candidates = np.clip(candidates, 0, np.maximum([height - tall, width - wide], 0))
        others = np.delete(boxes, number, axis=0)
        covered = [
            20 * _covered(panel, taken) + _covered(panel, others) + 0.9 * _covered(panel, box[None])
            for panel in np.column_stack([candidates[:, ::-1], candidates[:, ::-1] + (wide, tall)])
        ]
        costs = np.array(covered) / (tall * wide) + 0.01 * np.arange(len(candidates))
        if before[number] >= 0:
            costs[before[number]] -= 0.3
        best = int(costs.argmin())
        chosen.append(best)
        corners[number] = candidates[best]
        top, left = candidates[best]
        taken = np.concatenate([taken, [[left, top, left + wide, top + tall]]])
    return corners, chosen


def _covered(panel: np.ndarray, boxes: np.ndarray) -> float:
    """Pixels of a panel that boxes cover; counted per box."""
    overlap = np.minimum(panel[2:], boxes[:, 2:]) - np.maximum(panel[:2], boxes[:, :2])  # [n, 2]
    return float(np.maximum(overlap, 0).prod(axis=1).sum())


def _draw(
    sheet: np.ndarray,
    persons: Sequence[DrawnPerson],
    frame_area: tuple[int, int, int],
    before: Mapping[int, int],
) -> dict[int, int]:
    """Draw persons onto a frame at (left edge, height, width) in the sheet; returns the panels' places."""
    left, height, width = frame_area
    persons = sorted(persons, key=lambda person: person.track)
    text = int(np.clip(round(_TEXT_SHARE * min(sheet.shape[:2])), _MIN_TEXT, _MAX_TEXT))
    line = 2 if text < 15 else 3
    panels = [
        _panel(
            person.title, person.bars, color_of(person.track), text, int(_MAX_PANEL_SHARE * sheet.shape[1])
        )
        for person in persons
    ]
    shares = np.array([person.box for person in persons], np.float64).reshape(-1, 4)
    boxes = np.rint(np.clip(shares, 0, 1) * (width, height, width, height)).astype(np.int64)
    boxes += (left, 0, left, 0)
    for person, (x1, y1, x2, y2) in zip(persons, boxes.tolist(), strict=True):
        # A dark outline separates the colored line from light frames.
        for color, thick in ((_BACKGROUND, line + 2), (color_of(person.track), line)):
            cv2.rectangle(sheet, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), color, thick)
    sizes = np.array([panel.shape[:2] for panel in panels], np.int64).reshape(-1, 2)
    old = [before.get(person.track, -1) for person in persons]
    corners, places = place_panels(boxes, sizes, sheet.shape[0], sheet.shape[1], old)
    for panel, (top, start) in zip(panels, corners.tolist(), strict=True):
        area = sheet[top : top + panel.shape[0], start : start + panel.shape[1]]
        panel = panel[: area.shape[0], : area.shape[1]]  # a film may be smaller than a panel
        area[:] = cv2.addWeighted(panel, _PANEL_OPACITY, area, 1 - _PANEL_OPACITY, 0)
    return {person.track: place for person, place in zip(persons, places, strict=True)}


@functools.lru_cache(maxsize=256)
def _panel(
    title: str, bars: tuple[Bar, ...], color: tuple[int, int, int], text: int, max_width: int
) -> np.ndarray:
    """A panel with a title and bars, uint8 [h, w, 3]; cached, as it is the same in many frames."""
    row = round(1.35 * text)  # between baselines
    percents = [f"{bar.share:.0%}" for bar in bars]
    digits = measure_text("100%", size=text, bold=True)
    natural = max(
        measure_text(title, size=text, bold=True),
        *(measure_text(bar.text, size=text) + 2 * _PAD + digits for bar in bars),
        0,
    )
    width = min(_STRIP + _PAD + natural + _PAD, max_width)
    left = _STRIP + _PAD
    inner = width - left - _PAD
    labels = [Label(left, _PAD + text, title, size=text, bold=True, width=inner)]
    bases = [_PAD + text + (number + 1) * (row + _PANEL_BAR + 2) for number in range(len(bars))]
    for bar, percent, base in zip(bars, percents, bases, strict=True):
        labels.append(Label(left, base, bar.text, size=text, width=max(inner - digits - _PAD, 1)))
        start = width - _PAD - measure_text(percent, size=text, bold=True)
        labels.append(Label(start, base, percent, size=text, bold=True))
    height = (bases[-1] + 4 + _PANEL_BAR if bars else _PAD + text) + _PAD
    pixels = Sheet(height, width, labels).pixels
    pixels[:, :_STRIP] = color
    for bar, base in zip(bars, bases, strict=True):
        _draw_bar(pixels[base + 4 : base + 4 + _PANEL_BAR, left : left + inner], bar.share, color)
    pixels.setflags(write=False)
    return pixels
