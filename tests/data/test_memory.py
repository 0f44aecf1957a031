"""Decoded frames read like a video."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.data.video import MemoryReader
from videomaskfeat.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def test_frames_are_those_given_in_memory_of_their_own() -> None:
    with MemoryReader(FRAMES, fps=12.5) as video:
        assert (video.frames, video.fps, video.info.duration_seconds) == (6, 12.5, 0.48)
        assert (video.info.width, video.info.height) == (5, 4)
        read = video.read([4, 0, 4])
        np.testing.assert_array_equal(read, np.stack([FRAMES[4], FRAMES[0], FRAMES[4]]))
        read[:] = 0
        assert FRAMES[4].any()
        with pytest.raises(IndexError, match=r"frames in memory: frame 6 is outside 0\.\.5"):
            video.read([6])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (FRAMES / 255.0, r"frames of float64 6x4x5x3: must be uint8 \[T, H, W, 3\]"),
        (FRAMES[0], r"frames of uint8 4x5x3: must be"),
        (FRAMES.transpose(0, 3, 1, 2), r"frames of uint8 6x3x4x5: must be"),
        (FRAMES[:0], r"frames of uint8 0x4x5x3: .*with at least one frame"),
        (np.uint8(3), r"frames of uint8 without shape: must be"),
    ],
)
def test_other_arrays_are_refused(frames: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        MemoryReader(frames, fps=30.0)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_impossible_frame_rate_is_refused(fps: float) -> None:
    with pytest.raises(UserError, match=r"fps=.*: must be the frames a second"):
        MemoryReader(FRAMES, fps=fps)
