"""Clips around many key frames in one pass: the same as each by itself, and each picture decoded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.data.make_videos import read_number, uneven_times, write_video
from tests.reference.key_frames import key_frame_indices
from videomaskfeat.data.ava import key_clips
from videomaskfeat.data.reader import CountedReader, VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.data.video import MemoryReader

WHOLE = WholeFrame(short_side=64, multiple=1)


def test_clips_hold_the_frames_around_their_key_frames(tmp_path: Path) -> None:
    """The numbers in the pictures are those that `key_frame_indices` names, clamped at both ends."""
    path = write_video(tmp_path / "a.mp4", frames=120)
    keys = np.arange(0, 4, 0.5)
    with open_timed(path) as video:
        found = list(key_clips(video, keys, frames=8, stride=3, transform=WHOLE))
    assert [clip.number for clip in found] == list(range(8))
    for clip, key in zip(found, keys, strict=True):
        expected = key_frame_indices(120, 30.0, seconds=float(key), frames=8, stride=3)
        assert [read_number(picture) for picture in clip.clip] == expected.tolist()
        assert read_number(clip.picture) == expected[4]
        np.testing.assert_array_equal(clip.picture, clip.clip[4])  # at its own size nothing is resized


def test_uneven_times_are_met(tmp_path: Path) -> None:
    milliseconds = uneven_times()
    path = write_video(tmp_path / "vfr.mkv", milliseconds=milliseconds)
    shown = (np.array(milliseconds) - milliseconds[0]) / 1000
    with open_timed(path) as video:
        (clip,) = key_clips(video, np.array([1.0]), frames=4, stride=6, transform=WHOLE)
    wanted = 1.0 + (np.arange(4) - 2) * 0.2
    assert [read_number(picture) for picture in clip.clip] == [
        int(np.abs(shown - time).argmin()) for time in wanted
    ]


def test_each_picture_is_decoded_once_and_boxes_move_along() -> None:
    """Overlapping clips share their pictures; more key frames than one pass takes come out all the same."""
    frames = np.zeros((700, 6, 8, 3), np.uint8)
    frames[:, :, :, 0] = (np.arange(700) % 256)[:, None, None]
    asked: list[int] = []

    class Counting(MemoryReader):
        def _each(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            asked.extend(wanted.tolist())
            yield from super()._each(wanted)

    keys = np.arange(40) * 0.4  # 12 frames: clips of every second frame share theirs
    with CountedReader(Counting(frames, fps=30)) as video:
        found = list(key_clips(video, keys, frames=16, stride=2, transform=WholeFrame(3, multiple=1)))
    for clip, key in zip(found, keys, strict=True):
        expected = key_frame_indices(700, 30.0, seconds=float(key), frames=16, stride=2)
        assert clip.clip.shape == (16, 3, 4, 3)
        np.testing.assert_array_equal(clip.clip[:, 0, 0, 0], expected % 256)
        assert clip.picture.shape == (6, 8, 3)
    boxes = found[0].geometry.apply_boxes(np.array([[2.0, 2, 8, 6]]))
    assert boxes.tolist() == [[1, 1, 4, 3]]
    # 40 clips of 16 pictures; where the second pass begins, those of the clip's first half come again.
    assert len(asked) < 40 * 16 * 0.5
    assert len(asked) - len(set(asked)) <= 16


def test_pictures_too_long_for_a_whole_frame_are_unreadable() -> None:
    with (
        CountedReader(MemoryReader(np.zeros((3, 2, 33, 3), np.uint8), fps=30)) as video,
        pytest.raises(VideoReadError, match="pictures of 33x2; the long side of a whole frame is at most 16"),
    ):
        next(key_clips(video, np.zeros(1), frames=2, stride=1, transform=WHOLE))
