"""Folders of pictures read like videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from videomaskfeat.data.frames import FrameFolderReader
from videomaskfeat.data.reader import VideoReadError


def _write(folder: Path, name: str, value: int, size: tuple[int, int] = (4, 6)) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0] = value  # red, as RGB
    assert cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10, 9):
        _write(tmp_path, f"f_{number}.png", number)
    (tmp_path / "notes.txt").touch()
    with FrameFolderReader(str(tmp_path)) as video:
        assert (video.frames, video.fps) == (4, 30.0)
        assert (video.info.width, video.info.height, video.info.codec) == (6, 4, "png")
        frames = video.read([3, 0, 3, 1])
    assert frames.shape == (4, 4, 6, 3)
    assert frames[:, 0, 0].tolist() == [[10, 0, 0], [1, 0, 0], [10, 0, 0], [2, 0, 0]]


def test_unreadable_frames_are_read_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such folder"):
        FrameFolderReader(str(tmp_path / "none"))
    with pytest.raises(VideoReadError, match="no pictures among its 0 files"):
        FrameFolderReader(str(tmp_path))
    _write(tmp_path, "1.png", 1)
    (tmp_path / "2.png").write_bytes(b"no picture")
    (tmp_path / "3.png").touch()
    _write(tmp_path, "4.png", 1, (8, 8))
    video = FrameFolderReader(str(tmp_path))
    with pytest.raises(VideoReadError, match=r"2\.png: no picture, or a damaged one \(10 bytes\)"):
        video.read([1])
    with pytest.raises(VideoReadError, match=r"3\.png: empty file \(0 bytes\)"):
        video.read([2])
    with pytest.raises(VideoReadError, match=r"4\.png is 8x8, others are 6x4"):
        video.read([0, 3])
    with pytest.raises(IndexError, match=r"frame 4 is outside 0\.\.3"):
        video.read([4])
