"""Frames that count on by their names: none of them is ever mistaken for its neighbour."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from videomaskfeat.data.frame_lists import FrameFiles
from videomaskfeat.data.frames import FrameFilesReader, frames_in_folder
from videomaskfeat.data.reader import VideoReadError


def write_frames(folder: Path, numbers: list[int], *, form: str = "v_{:06d}.png") -> None:
    """Pictures of 6x4 whose red is their number."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[..., 2] = number
        assert cv2.imwrite(str(folder / form.format(number)), picture)


def red(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def test_frames_of_a_folder_count_from_its_first_number(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", [8, 9, 10, 11], form="v_{}.png")  # no leading zeros
    (tmp_path / "a" / "notes.txt").touch()
    files = frames_in_folder(str(tmp_path / "a"))
    assert (len(files), files[0], files[3]) == (4, f"{tmp_path}/a/v_8.png", f"{tmp_path}/a/v_11.png")
    video = FrameFilesReader(files, fps=25.0)
    assert (video.frames, video.fps, video.decoder) == (4, 25.0, "opencv")
    assert (video.info.width, video.info.height, video.info.duration_seconds) == (6, 4, 0.16)
    assert red(video.read([3, 0, 3, 1])) == [11, 8, 11, 9]


def test_missing_frame_moves_no_other_and_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", [1, 2, 4, 5])
    video = FrameFilesReader(frames_in_folder(str(tmp_path / "a")), fps=30.0)
    assert video.frames == 5
    assert red(video.read([1, 3, 4])) == [2, 4, 5]
    words = (
        r"v_000003\.png is missing, frame 2 of 5; frames count on without a gap, 30 a second: extract them "
        "again, or read the video file itself"
    )
    with pytest.raises(VideoReadError, match=words):
        video.read([1, 2, 3])


def test_frames_that_are_damaged_or_differ_are_read_errors(tmp_path: Path) -> None:
    write_frames(tmp_path, [1, 2, 3])
    (tmp_path / "v_000002.png").write_bytes(b"no picture")
    assert cv2.imwrite(str(tmp_path / "v_000003.png"), np.zeros((8, 9, 3), np.uint8))
    video = FrameFilesReader(frames_in_folder(str(tmp_path)), fps=30.0)
    with pytest.raises(VideoReadError, match=r"v_000002\.png: no picture, or a damaged one"):
        video.read([1])
    with pytest.raises(VideoReadError, match=r"v_000003\.png is 9x8, others are 6x4"):
        video.read([0, 2])


def test_folders_without_the_frames_of_one_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match="no such folder of frames"):
        frames_in_folder(str(tmp_path / "none"))
    with pytest.raises(VideoReadError, match="no pictures in it"):
        frames_in_folder(str(tmp_path))
    write_frames(tmp_path / "two", [1, 2], form="a_{:03d}.png")
    write_frames(tmp_path / "two", [1, 2], form="b_{:03d}.png")
    with pytest.raises(VideoReadError, match=r"not the frames 1, 2, 3, \.\.\..*a_N\.png and b_N\.png"):
        frames_in_folder(str(tmp_path / "two"))
    write_frames(tmp_path / "none", [1], form="cover.png")
    with pytest.raises(VideoReadError, match=r"not the frames 1, 2, 3"):
        frames_in_folder(str(tmp_path / "none"))


def test_listed_frames_are_read_by_their_paths(tmp_path: Path) -> None:
    write_frames(tmp_path, [5, 6, 7])
    files = FrameFiles.of([f"v_{number:06d}.png" for number in (5, 6, 7)], str(tmp_path))
    assert red(FrameFilesReader(files, fps=30.0).read([2, 0])) == [7, 5]
