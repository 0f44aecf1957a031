"""A video with what a classifier says of it: below the frames a bar for each of the best classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from videomaskfeat.io import whole_file
from videomaskfeat.mp4 import write_mp4
from videomaskfeat.viz.sheet import Label, Sheet

_LARGEST = (720, 1280)  # height and width in pixels of the frames as drawn
_LEAST_WIDTH = 320  # of the whole sheet, so that a name can be read
_MARGIN, _LINE, _BAR = 10, 34, 8  # pixels around the bars, from one to the next, and of a bar
_PERCENT, _DIGIT = 60, 10  # pixels that "100.0%" and one of its digits take
_COLOUR = np.array((111, 211, 255), np.uint8)
_TRACK = np.array((38, 42, 56), np.uint8)
_SLOWEST, _FASTEST = 0.1, 240.0  # frames a second that players show


@dataclass(frozen=True)
class Bar:
    """A line under the frames: a text, and a share in 0..1 that is drawn and said in percent."""

    text: str
    share: float


def drawn_size(height: int, width: int, *, least_width: int = _LEAST_WIDTH) -> tuple[int, int]:
    """(height, width) at which frames are drawn: their own, unless they are too large or too small.

    Large ones are shrunk into 720x1280, and ones narrower than the sheet, ``least_width``, are enlarged as
    far as both limits allow; the aspect stays, to a pixel, and neither side falls below 2.
    """
    limit = min(_LARGEST[0] / height, _LARGEST[1] / width)
    scale = min(limit, max(1.0, least_width / width))
    return max(2, round(height * scale)), max(2, round(width * scale))


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
            left = (sheet.pixels.shape[1] - width) // 2
        if frame.shape[:2] != (height, width):
            shrinks = height < frame.shape[0]
            frame = cv2.resize(
                frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            )
        sheet.paste(frame, 0, left)
        yield sheet.pixels.copy()


def write_labelled(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], bars: Sequence[Bar], *, fps: float
) -> None:
    """Write :func:`draw_labelled` as an H.264 mp4.

    Args:
        path: a local file.
        frames: uint8 [H, W, 3] each, at least one.
        bars: from the top down.
        fps: frames a second; one that no player shows is taken as the nearest that it does, none as 30.
    """
    write_mp4(path, draw_labelled(frames, bars), fps=film_rate(fps), crf=23)


def film_rate(fps: float) -> float:
    """Frames a second at which a film is written: the nearest rate that players show, 30 for none."""
    return float(np.clip(fps, _SLOWEST, _FASTEST)) if np.isfinite(fps) and fps > 0 else 30.0


def write_labelled_picture(path: str | os.PathLike[str], picture: np.ndarray, bars: Sequence[Bar]) -> None:
    """Write :func:`draw_labelled` of one picture as a PNG.

    Args:
        path: of the file.
        picture: uint8 [H, W, 3], RGB.
        bars: from the top down.
    """
    drawn = next(draw_labelled([picture], bars))
    with whole_file(path, "wb") as file:
        file.write(cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes())


def _sheet(height: int, width: int, bars: Sequence[Bar]) -> Sheet:
    """The bars on a dark ground, with room for the frames above them."""
    sheet_width = _even(max(width, _LEAST_WIDTH))
    room = sheet_width - 2 * _MARGIN
    labels = []
    for number, bar in enumerate(bars):
        base = height + _MARGIN + number * _LINE + 14
        percent = f"{bar.share:.1%}"
        labels.append(Label(_MARGIN, base, bar.text, width=room - _PERCENT - _MARGIN))
        left = sheet_width - _MARGIN - _PERCENT + _DIGIT * (len("100.0%") - len(percent))
        labels.append(Label(left, base, percent, bold=True))
    sheet = Sheet(_even(height + 2 * _MARGIN + len(bars) * _LINE), sheet_width, labels)
    for number, bar in enumerate(bars):
        top = height + _MARGIN + number * _LINE + 20
        track = sheet.pixels[top : top + _BAR, _MARGIN : _MARGIN + room]
        track[:] = _TRACK
        track[:, : round(bar.share * room)] = _COLOUR
    return sheet


def _even(length: int) -> int:
    return length + length % 2
