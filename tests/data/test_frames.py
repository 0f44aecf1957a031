"""Folders of pictures read like videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from videomaskfeat.data.frames import FrameFolderReader, frames_in_folder
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
    with pytest.raises(VideoReadError, match="no pictures in it, among 0 files"):
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


SERIES = {
    "flow": ("img_{:05d}.jpg", "flow_x_{:05d}.jpg", "flow_y_{:05d}.jpg"),
    "cover": ("v_{:06d}.png",),
    "directions": ("frame{}.png", "x_{}.png", "y_{}.png"),
}


@pytest.mark.parametrize("kind", SERIES)
def test_only_the_series_of_the_video_is_read(tmp_path: Path, kind: str) -> None:
    for place, form in enumerate(SERIES[kind]):
        for number in range(1, 4):
            _write(tmp_path, form.format(number), 100 * place + number)
    _write(tmp_path, "cover.png", 250)
    _write(tmp_path, "a1.png", 251)
    (tmp_path / "._img_00001.jpg").write_bytes(b"made by macOS")
    (tmp_path / "Thumbs.db").touch()
    with FrameFolderReader(str(tmp_path)) as video:
        assert video.frames == 3
        assert np.abs(video.read([0, 1, 2])[:, 0, 0, 0].astype(int) - [1, 2, 3]).max() <= 1  # as JPEG rounds
    assert len(frames_in_folder(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("left_1.png", "left_2.png", "right_1.png", "right_2.png"), r"\(left_N\.png and right_N\.png\)"),
        (("img_1.png", "img_2.png", "img_1.bmp", "img_2.bmp"), r"\(img_N\.bmp and img_N\.png\)"),
        (("flow_x_1.png", "flow_x_2.png", "flow_y_1.png", "flow_y_2.png"), r"\(flow_x_N\.png and flow_y_N"),
    ],
)
def test_several_series_are_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    for name in names:
        _write(tmp_path, name, 1)
    for open_frames in (FrameFolderReader, frames_in_folder):
        with pytest.raises(VideoReadError, match=words + r".*; keep one series in the folder"):
            open_frames(str(tmp_path))


def test_a_gap_and_a_change_of_suffix_are_one_series(tmp_path: Path) -> None:
    for number, name in ((1, "img_1.png"), (2, "img_2.bmp"), (5, "img_05.png"), (7, "img_7.png")):
        _write(tmp_path, name, number)
    with FrameFolderReader(str(tmp_path)) as video:
        assert video.read(range(4))[:, 0, 0, 0].tolist() == [1, 2, 5, 7]


def test_only_flow_is_a_video_too(tmp_path: Path) -> None:
    for number in (1, 2):
        _write(tmp_path, f"flow_x_{number}.png", number)
    assert FrameFolderReader(str(tmp_path)).frames == 2
