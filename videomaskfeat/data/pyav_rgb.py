"""Decoded frames as RGB pictures, exactly as FFmpeg's command line shows them.

Every frame passes through the filters that ``ffmpeg -i FILE -pix_fmt rgb24`` inserts: the display matrix as
flips and turns, then the scaler with its default flags. PyAV's own conversion differs from that by up to 120
levels for 10 bits per channel, and by up to 255 for interlaced frames, whose fields it converts apart.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

# FFmpeg's numbers of the color matrices that its scaler knows; for any other it takes its default, BT.601.
_COLOR_MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))


@dataclass(frozen=True)
class Orientation:
    """How the displayed picture comes from the stored one.

    Attributes:
        rotation_degrees: clockwise turn, 0..359.
        mirrored: whether left and right are exchanged before the turn.
        filters: FFmpeg's filters that do both, as (name, arguments).
    """

    rotation_degrees: int
    mirrored: bool
    filters: tuple[tuple[str, str], ...]


def display_orientation(matrix: bytes | None) -> Orientation:
    """The orientation of a display matrix, by the rules of FFmpeg's command line.

    Args:
        matrix: nine 32-bit integers in the machine's byte order, or None.
    """
    a, b, _, c, d = struct.unpack_from("5i", matrix or struct.pack("5i", 1, 0, 0, 0, 1))
    if not (a or c) or not (b or d):
        return Orientation(0, False, ())
    degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
    flip = ("hflip", "")
    if degrees == 0:
        return Orientation(180, True, (("vflip", ""),)) if d < 0 else Orientation(0, False, ())
    if degrees == 90:
        if c > 0:
            return Orientation(270, True, (("transpose", "cclock_flip"),))
        return Orientation(90, False, (("transpose", "clock"),))
    if degrees == 180:
        flips = (flip,) * (a < 0) + (("vflip", ""),) * (d < 0)
        return Orientation(0, True, flips) if len(flips) == 1 and a < 0 else Orientation(180, False, flips)
    if degrees == 270:
        if c < 0:
            return Orientation(90, True, (("transpose", "clock_flip"),))
        return Orientation(270, False, (("transpose", "cclock"),))
    return Orientation(degrees, False, (("rotate", f"{degrees}*PI/180"),))


def frame_kind(frame: VideoFrame) -> tuple[object, ...]:
    """What a converter depends on: frames of equal kind can share one."""
    return frame.format.name, frame.width, frame.height, int(frame.colorspace), _display_matrix(frame)


def _display_matrix(frame: VideoFrame) -> bytes | None:
    side_data: Any = frame.side_data
    matrix = side_data.get(Type.DISPLAYMATRIX)
    return None if matrix is None else bytes(matrix)


class RgbConverter:
    """Converts frames of one kind.

    Attributes:
        kind: of the frames (see ``frame_kind``).
        orientation: of the frames.
    """

    def __init__(self, frame: VideoFrame, size: tuple[int, int]) -> None:
        """Prepare the filters.

        Args:
            frame: the first one of its kind.
            size: (width, height) of the pictures before they are turned.

        Raises:
            av.error.FFmpegError, ValueError: FFmpeg cannot convert such frames.
        """
        self.kind = frame_kind(frame)
        self.orientation = display_orientation(_display_matrix(frame))
        # The scaler refuses frames with values here that it does not know, and uses none of them.
        colors = "color_primaries=unknown:color_trc=unknown"
        if int(frame.colorspace) not in _COLOR_MATRICES:
            colors += ":colorspace=unknown"
        width, height = size
        turned = any(name == "transpose" for name, _ in self.orientation.filters)
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 1000),
            )
        ]
        for name, arguments in (
            ("setparams", colors),
            *self.orientation.filters,
            ("scale", f"{height}:{width}" if turned else f"{width}:{height}"),
            ("format", "rgb24"),
            ("buffersink", ""),
        ):
            nodes.append(graph.add(name, arguments or None))
        graph.link_nodes(*nodes).configure()
        self._graph, self._source, self._sink = graph, nodes[0], nodes[-1]

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """RGB as displayed, uint8 [H, W, 3]: a view that lives as long as the memory of the picture."""
        self._source.push(frame)
        rgb = self._sink.pull()
        assert isinstance(rgb, VideoFrame)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, -1)  # [H, bytes per row]
        return rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
