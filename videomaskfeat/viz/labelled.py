"""Videos with what a model says of them: bars below the frames, or boxes and panels on them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import Label, Sheet, fit_frame, measure_text, round_up_to_even, write_png

_LARGEST = (720, 1280)  # height and width in pixels of the frames as drawn
_SLOWEST, _FASTEST = 0.1, 240.0  # frames per second that players show
_TRACK = (38, 42, 56)  # RGB of a bar's empty part
# Bars below the frames
_LEAST_WIDTH = 320  # pixels of a sheet, so that a name can be read
_MARGIN, _LINE, _BAR = 10, 34, 8  # pixels around the bars, from one to the next, and of a bar
_PERCENT, _DIGIT = 60, 10  # pixels that "100.0%" and one of its digits take
_COLOR = (111, 211, 255)
# Persons: a box, and beside it a panel of what the person does
_PERSONS_WIDTH = 480  # least pixels of a film, so that panels have room
_GROUND = (18, 20, 28)  # the sheet's own, beside frames narrower than the film
_LEAST_TEXT, _LARGEST_TEXT, _TEXT_SHARE = 12, 18, 0.026  # pixels, and of the film's shorter side
_WIDEST = 0.6  # of the film's width that a panel may take
_OPAQUE = 0.82  # of a panel
_STRIP, _PAD, _PANEL_BAR, _GAP = 4, 6, 3, 3  # pixels: colored edge, around the text, a bar, box to panel
_COLORS = (
    (111, 211, 255), (255, 176, 96), (150, 232, 130), (255, 130, 165), (196, 160, 255),
    (250, 232, 110), (90, 226, 196), (240, 140, 240), (190, 205, 130), (140, 165, 255),
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A line under the frames: a text, and a share in 0..1 that is drawn and said in percent."""

    text: str
    share: float


@dataclass(frozen=True)
class DrawnPerson:
    """A person as drawn in one frame.

    Attributes:
        track: the person's number, which decides the color.
        box: x1, y1, x2, y2 in shares of the frame's width and height.
        title: the first line of the panel.
        bars: the other lines, a text and a share each.
    """

    track: int
    box: tuple[float, float, float, float]
    title: str
    bars: tuple[Bar, ...] = ()


def drawn_size(height: int, width: int, *, least_width: int = _LEAST_WIDTH) -> tuple[int, int]:
    """(height, width) at which frames are drawn: their own, unless they are too large or too small.

    Large ones are shrunk into 720x1280, and ones narrower than the sheet, ``least_width``, are enlarged as
    far as both limits allow; the aspect stays, to a pixel, and neither side falls below 2.
    """
    limit = min(_LARGEST[0] / height, _LARGEST[1] / width)
    scale = min(limit, max(1.0, least_width / width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def film_rate(fps: float) -> float:
    """Frames per second at which a film is written: the nearest rate that players show, 30 for none."""
    return float(np.clip(fps, _SLOWEST, _FASTEST)) if np.isfinite(fps) and fps > 0 else 30.0


def draw_labelled(frames: Iterable[np.ndarray], bars: Sequence[Bar]) -> Iterator[np.ndarray]:
    """Draw each frame with the bars below it; the bars are the same all the time.

    Args:
        frames: uint8 [H, W, 3] each.
        bars: from the top down.

    Yields:
        uint8 [h, w, 3], both even, as H.264 needs.
    """
    sheet: Sheet | None = None
    for frame in frames:
        if sheet is None:
            height, width = drawn_size(*frame.shape[:2])
            sheet = _sheet(height, width, bars)
        sheet.paste(fit_frame(frame, height, width), 0, (sheet.pixels.shape[1] - width) // 2)
        yield sheet.pixels.copy()


def write_labelled(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], bars: Sequence[Bar], *, fps: float
) -> None:
    """Write :func:`draw_labelled` as an H.264 mp4 at :func:`film_rate`; there must be a frame."""
    write_mp4(path, draw_labelled(frames, bars), fps=film_rate(fps), crf=23)


def write_labelled_picture(path: str | os.PathLike[str], picture: np.ndarray, bars: Sequence[Bar]) -> None:
    """Write :func:`draw_labelled` of one picture uint8 [H, W, 3], RGB, as a PNG."""
    write_png(path, next(draw_labelled([picture], bars)))


def _sheet(height: int, width: int, bars: Sequence[Bar]) -> Sheet:
    """The bars on a dark ground, with room for the frames above them."""
    sheet_width = round_up_to_even(max(width, _LEAST_WIDTH))
    room = sheet_width - 2 * _MARGIN
    labels = []
    for number, bar in enumerate(bars):
        base = height + _MARGIN + number * _LINE + 14
        percent = f"{bar.share:.1%}"
        labels.append(Label(_MARGIN, base, bar.text, width=room - _PERCENT - _MARGIN))
        left = sheet_width - _MARGIN - _PERCENT + _DIGIT * (len("100.0%") - len(percent))
        labels.append(Label(left, base, percent, bold=True))
    sheet = Sheet(round_up_to_even(height + 2 * _MARGIN + len(bars) * _LINE), sheet_width, labels)
    for number, bar in enumerate(bars):
        top = height + _MARGIN + number * _LINE + 20
        _draw_bar(sheet.pixels[top : top + _BAR, _MARGIN : _MARGIN + room], bar.share, _COLOR)
    return sheet


def _draw_bar(ground: np.ndarray, share: float, color: tuple[int, int, int]) -> None:
    """Fill pixels uint8 [h, w, 3] with a bar, as far as its share of 0..1."""
    ground[:] = _TRACK
    ground[:, : round(min(max(share, 0.0), 1.0) * ground.shape[1])] = color


def color_of(track: int) -> tuple[int, int, int]:
    """RGB of a track; ten colors take turns."""
    return _COLORS[track % len(_COLORS)]


def draw_persons(frames: Iterable[tuple[np.ndarray, Sequence[DrawnPerson]]]) -> Iterator[np.ndarray]:
    """Draw each frame with its persons.

    Frames are enlarged or shrunk as :func:`drawn_size` has it, to 480 pixels of width at least; ones that
    stay narrower stand in the middle of a dark ground.

    Args:
        frames: uint8 [H, W, 3] each, not changed, and who is in it.

    Yields:
        uint8 [h, w, 3], both even, as H.264 needs.
    """
    size: tuple[int, int] | None = None
    places: dict[int, int] = {}
    for frame, persons in frames:
        size = size or drawn_size(*frame.shape[:2], least_width=_PERSONS_WIDTH)
        height, width = size
        sheet = np.full(
            (round_up_to_even(height), round_up_to_even(max(width, _PERSONS_WIDTH)), 3), _GROUND, np.uint8
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
    """Write :func:`draw_persons` as an H.264 mp4 at :func:`film_rate`; there must be a frame."""
    write_mp4(path, draw_persons(frames), fps=film_rate(fps), crf=23)


def place_panels(
    boxes: np.ndarray, sizes: np.ndarray, height: int, width: int, before: Sequence[int]
) -> tuple[np.ndarray, list[int]]:
    """Where panels go: beside their boxes, inside the picture, and on as little as can be of the others.

    Each takes the best of eleven places: above the box, below it, to its right, to its left, inside it at the
    top, at the bottom and half-way, and the first four again at the box's far end: its right or bottom edge.
    Places that cover panels cost most, then other boxes, then, a little less, the own box; the place in the
    frame before is kept until another is plainly better, so that panels do not jump.

    Args:
        boxes: int [n, 4], x1, y1, x2, y2 in pixels.
        sizes: int [n, 2], height and width of the panels.
        height: of the picture in pixels.
        width: likewise.
        before: the place of each in the frame before, 0..10; -1 for none.

    Returns:
        int [n, 2], top and left of each, and their places.
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
    """Pixels of a panel that boxes cover, counted once a box."""
    overlap = np.minimum(panel[2:], boxes[:, 2:]) - np.maximum(panel[:2], boxes[:, :2])  # [n, 2]
    return float(np.maximum(overlap, 0).prod(axis=1).sum())


def _draw(
    sheet: np.ndarray,
    persons: Sequence[DrawnPerson],
    picture: tuple[int, int, int],
    before: Mapping[int, int],
) -> dict[int, int]:
    """Draw persons onto a frame that has its left edge, height and width in the sheet; the panels' places."""
    left, height, width = picture
    persons = sorted(persons, key=lambda person: person.track)
    text = int(np.clip(round(_TEXT_SHARE * min(sheet.shape[:2])), _LEAST_TEXT, _LARGEST_TEXT))
    line = 2 if text < 15 else 3
    panels = [
        _panel(person.title, person.bars, color_of(person.track), text, int(_WIDEST * sheet.shape[1]))
        for person in persons
    ]
    shares = np.array([person.box for person in persons], np.float64).reshape(-1, 4)
    boxes = np.rint(np.clip(shares, 0, 1) * (width, height, width, height)).astype(np.int64)
    boxes += (left, 0, left, 0)
    for person, (x1, y1, x2, y2) in zip(persons, boxes.tolist(), strict=True):
        # A dark line under the colored one sets it off from light ground.
        for color, thick in ((_GROUND, line + 2), (color_of(person.track), line)):
            cv2.rectangle(sheet, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), color, thick)
    sizes = np.array([panel.shape[:2] for panel in panels], np.int64).reshape(-1, 2)
    old = [before.get(person.track, -1) for person in persons]
    corners, places = place_panels(boxes, sizes, sheet.shape[0], sheet.shape[1], old)
    for panel, (top, start) in zip(panels, corners.tolist(), strict=True):
        ground = sheet[top : top + panel.shape[0], start : start + panel.shape[1]]
        panel = panel[: ground.shape[0], : ground.shape[1]]  # a film may be lower than a panel
        ground[:] = cv2.addWeighted(panel, _OPAQUE, ground, 1 - _OPAQUE, 0)
    return {person.track: place for person, place in zip(persons, places, strict=True)}


@functools.lru_cache(maxsize=256)
def _panel(
    title: str, bars: tuple[Bar, ...], color: tuple[int, int, int], text: int, widest: int
) -> np.ndarray:
    """A title and a line with a bar for each action, uint8 [h, w, 3]; kept, as it stays for many frames."""
    row = round(1.35 * text)  # from one base line to the next
    percents = [f"{bar.share:.0%}" for bar in bars]
    digits = measure_text("100%", size=text, bold=True)
    natural = max(
        measure_text(title, size=text, bold=True),
        *(measure_text(bar.text, size=text) + 2 * _PAD + digits for bar in bars),
        0,
    )
    width = min(_STRIP + _PAD + natural + _PAD, widest)
    left = _STRIP + _PAD
    room = width - left - _PAD
    labels = [Label(left, _PAD + text, title, size=text, bold=True, width=room)]
    bases = [_PAD + text + (number + 1) * (row + _PANEL_BAR + 2) for number in range(len(bars))]
    for bar, percent, base in zip(bars, percents, bases, strict=True):
        labels.append(Label(left, base, bar.text, size=text, width=max(room - digits - _PAD, 1)))
        start = width - _PAD - measure_text(percent, size=text, bold=True)
        labels.append(Label(start, base, percent, size=text, bold=True))
    height = (bases[-1] + 4 + _PANEL_BAR if bars else _PAD + text) + _PAD
    pixels = Sheet(height, width, labels).pixels
    pixels[:, :_STRIP] = color
    for bar, base in zip(bars, bases, strict=True):
        _draw_bar(pixels[base + 4 : base + 4 + _PANEL_BAR, left : left + room], bar.share, color)
    pixels.setflags(write=False)
    return pixels
