"""A video with bars below its frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from videomaskfeat.data.video import open_video
from videomaskfeat.errors import RunFailed
from videomaskfeat.viz.labelled import Bar, draw_labelled, drawn_size, write_labelled

BARS = [Bar("first", 0.75), Bar("second", 0.25), Bar("third", 0.0)]
COLOR = (111, 211, 255)


def noise(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((240, 426), (240, 426)),
        ((241, 427), (241, 427)),
        ((1080, 1920), (720, 1280)),
        ((1920, 1080), (720, 405)),
        ((500, 2560), (250, 1280)),
        ((96, 64), (480, 320)),  # five times as large, so that the names can be read
        ((400, 100), (720, 180)),  # would be 1280 high at 320 wide
        ((2000, 1), (720, 2)),
    ],
)
def test_frames_are_drawn_at_a_sane_size(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert drawn_size(*size) == drawn


@pytest.mark.parametrize(("height", "width"), [(241, 427), (720, 181), (40, 320)])
def test_frames_stand_above_the_bars_unchanged(height: int, width: int) -> None:
    frames = noise(3, height, width)
    sheets = list(draw_labelled(frames, BARS))
    for sheet, frame in zip(sheets, frames, strict=True):
        left = (sheet.shape[1] - width) // 2
        np.testing.assert_array_equal(sheet[:height, left : left + width], frame)
        assert sheet.shape[0] % 2 == 0
        assert sheet.shape[1] % 2 == 0
        assert sheet.shape[1] >= 320
        np.testing.assert_array_equal(sheet[height:], sheets[0][height:])


def test_bars_are_as_long_as_their_shares() -> None:
    (sheet,) = draw_labelled(noise(1, 100, 420), BARS)
    lines = (sheet == COLOR).all(axis=-1).sum(axis=1)  # colored pixels a row
    lengths = [int(length) for length in lines if length]
    assert lengths == [300] * 8 + [100] * 8  # of 400 pixels, 8 rows high; the third bar has none


def test_other_sizes_within_a_video_are_brought_to_the_first() -> None:
    sheets = list(draw_labelled([*noise(1, 100, 320), *noise(1, 50, 200)], BARS))
    assert sheets[0].shape == sheets[1].shape


@pytest.mark.parametrize(
    ("fps", "written"), [(25.0, 25.0), (0.0, 30.0), (float("nan"), 30.0), (1e-4, 0.1), (9e4, 240.0)]
)
def test_a_frame_becomes_a_film_at_any_rate(tmp_path: Path, fps: float, written: float) -> None:
    write_labelled(tmp_path / "film.mp4", noise(1, 35, 33), BARS, fps=fps)
    with open_video(tmp_path / "film.mp4") as video:
        assert video.frames == 1
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(written)


def test_broken_off_frames_leave_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from noise(4, 32, 32)
        raise OSError("the disk is gone")

    with pytest.raises(RunFailed, match=r"film\.mp4: could not be written: the disk is gone"):
        write_labelled(tmp_path / "film.mp4", frames(), BARS, fps=30)
    assert list(tmp_path.iterdir()) == []
