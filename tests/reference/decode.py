"""All frames of a video, decoded in order from the start; the reference for reading by index."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def decode_all(path: Path) -> np.ndarray:
    """RGB frames uint8 [N, H, W, 3] in display order."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):  # a packet before the first key frame
                for frame in packet.decode():
                    pictures.append(_rgb(frame))
    return np.stack(pictures)


def decode_all_timed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds after the start of the stream, float64 [N], and the frames of ``decode_all``."""
    seconds, pictures = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        assert stream.start_time is not None
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):  # a packet before the first key frame
                for frame in packet.decode():
                    assert frame.pts is not None
                    seconds.append(float((frame.pts - stream.start_time) * stream.time_base))
                    pictures.append(_rgb(frame))
    return np.array(seconds), np.stack(pictures)


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3], converted by FFmpeg's scaler and rotated by numpy."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    graph.push(frame)
    converted = graph.pull()
    assert isinstance(converted, av.VideoFrame)
    return np.rot90(converted.to_ndarray(), frame.rotation // 90)
