"""All frames of a video, decoded one after the other from its start: what every index is measured against."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import av
import numpy as np


def decode_all(path: Path) -> np.ndarray:
    """uint8 [N, H, W, 3], RGB as displayed, in the order in which the decoder shows them."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):  # a packet before the first key frame
                for frame in packet.decode():
                    pictures.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    return np.stack(pictures)
