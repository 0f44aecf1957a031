"""Testing on key frames: which frames, sizes and boxes; every key frame once; nothing stands in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.ava_data import CLIP, AvaData, extract, write_numbered, write_truth
from tests.data.clip_data import equal
from tests.data.make_videos import read_number
from videomaskfeat.data import ava_sources
from videomaskfeat.data.ava import BoxedClips, KeyFrameViews
from videomaskfeat.data.ava_lists import detected_key_frames
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.readers_pyav import PyAvFile
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.timed_reader import CountedReader
from videomaskfeat.data.video import MemoryReader
from videomaskfeat.errors import UserError
from videomaskfeat.mp4 import write_mp4


def make_views(ava_data: AvaData, **arguments: object) -> KeyFrameViews:
    return KeyFrameViews(*ava_data, **{**CLIP, "short_sides": (64,), **arguments})  # type: ignore[arg-type]


def numbers(view: BoxedClips) -> list[list[int]]:
    """The numbers of the frames of each clip, upright and as large as they were written."""
    return [[read_number(picture) for picture in clip] for clip in view.clips.numpy()]


def test_frames_equal_the_reference(golden: Path) -> None:
    """The indices that PySlowFast takes from frames at 30 a second, through the reading by time."""
    cases = json.loads((golden / "protocol.json").read_text(encoding="utf-8"))["ava_sequences"]
    assert len({(case["frames"], case["stride"]) for case in cases}) > 1
    for case in cases:
        # The color of a frame is its number.
        count = np.arange(case["num_frames"])
        pictures = np.stack([count % 256, count // 256, 0 * count], axis=1).astype(np.uint8)[:, None, None]
        video = CountedReader(MemoryReader(pictures, fps=30.0))
        center = np.array([case["center"] / 30])
        (seconds,) = key_frame_seconds(30.0, seconds=center, frames=case["frames"], stride=case["stride"])
        colors = video.read_at(seconds)[:, 0, 0].astype(int)
        assert (colors[:, 0] + 256 * colors[:, 1]).tolist() == case["indices"], case


def test_batch_holds_clips_and_boxes_of_consecutive_key_frames(ava_data: AvaData) -> None:
    batch = make_views(ava_data).batch([5, 6, 7])  # b at 902, 903 and 904
    (view,) = batch.views
    assert view.clips.shape == (3, 4, 64, 96, 3)
    assert view.clips.dtype == torch.uint8
    assert numbers(view) == [[50, 55, 60, 65], [80, 85, 90, 95], [110, 115, 120, 125]]
    assert batch.index.tolist() == [5, 6, 7]
    assert batch.rows.tolist() == [10, 11, 12, 13, 14, 15]
    assert view.boxes[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    # The whole frame: shares times 96 and 64, and the file's own corners by their rows.
    own = ava_data[0].boxes[batch.rows] * np.array([96, 64, 96, 64], np.float32)
    assert np.abs(view.boxes[:, 1:].numpy() - own).max() < 1e-4
    assert ava_data[0].labels[batch.rows].argmax(axis=1).tolist() == [0, 1] * 3


def test_scales_and_mirror_images_hold_the_same_boxes_in_the_same_rows(ava_data: AvaData) -> None:
    batch = make_views(ava_data, short_sides=(64, 32), flip=True).batch([0, 1])
    shapes = [tuple(view.clips.shape[2:4]) for view in batch.views]
    assert shapes == [(64, 96), (64, 96), (32, 48), (32, 48)]
    plain, mirrored, small, _ = batch.views
    assert torch.equal(mirrored.clips, plain.clips.flip(3))
    left, top, right, bottom = plain.boxes[:, 1:].T
    expected = torch.stack([plain.boxes[:, 0], 96 - right, top, 96 - left, bottom], dim=1)
    assert torch.equal(mirrored.boxes, expected)
    assert torch.allclose(small.boxes[:, 1:] * 2, plain.boxes[:, 1:], atol=1e-4)


@pytest.mark.parametrize("area", ["whole", "center"])
def test_boxes_still_frame_what_is_drawn(tmp_path: Path, area: str) -> None:
    """A white rectangle in wide and upright videos, at sizes with rounded sides."""
    for name, (height, width) in (("tall", (170, 100)), ("wide", (120, 170))):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[round(0.3 * height) : round(0.6 * height), round(0.4 * width) : round(0.7 * width)] = 255
        write_mp4(tmp_path / f"{name}.mp4", [picture] * 40, crf=4)
    key_frames = write_truth(tmp_path / "truth.csv", ["tall", "wide"], [1], ["0.4,0.3,0.7,0.6"])
    sources = sources_in_folder(key_frames, tmp_path)
    views = make_views((key_frames, sources), area=area, short_sides=(80, 122), flip=True)
    for index in range(2):
        for view in views[index].views:
            assert view.clips.shape[2] % (4 if area == "whole" else 1) == 0
            rows, columns = np.nonzero(view.clips[0, 2, :, :, 0].numpy() >= 128)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # The rectangle's own corners are whole pixels (half of one of the video), its edge is blurred
            # over one, and both are enlarged 1.2 times at most.
            assert np.abs(view.boxes[0, 1:].numpy() - extent).max() <= 1.7


def test_center_area_clips_boxes_and_keeps_them_all(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a"], seconds=2)
    boxes = ["0.00,0.1,0.10,0.5", "0.05,0.2,0.60,0.9"]
    key_frames = write_truth(tmp_path / "truth.csv", ["a"], [1], boxes)
    views = make_views((key_frames, sources_in_folder(key_frames, tmp_path)), area="center")
    (view,) = views[0].views
    assert view.clips.shape == (1, 4, 64, 64, 3)
    expected = np.array([[0, 6.4, 1, 32], [0, 12.8, 41.6, 57.6]])  # 16 columns are cut off on the left
    assert np.abs(view.boxes[:, 1:].numpy() - expected).max() < 1e-4


def test_video_and_extracted_frames_give_the_same_views(tmp_path: Path) -> None:
    write_numbered(tmp_path / "videos", ["a"], seconds=4)
    extract(tmp_path / "videos" / "a.mp4", tmp_path / "frames")
    key_frames = write_truth(tmp_path / "truth.csv", ["a"], [900, 901, 902, 903])  # the first clip is clamped
    videos, frames = (
        make_views((key_frames, sources_in_folder(key_frames, tmp_path / name, start=900)))
        for name in ("videos", "frames")
    )
    batch = videos.batch([0, 1, 2, 3])
    assert equal(batch, frames.batch([0, 1, 2, 3]))  # PNG: the very pixels
    assert numbers(batch.views[0])[0] == [0, 0, 0, 5]


def test_a_frame_is_decoded_once_and_a_video_opened_once(
    ava_data: AvaData, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    pictures: list[int] = []
    open_timed, picture = ava_sources.open_timed, PyAvFile._picture
    monkeypatch.setattr(ava_sources, "open_timed", lambda path: opened.append(path[-5:]) or open_timed(path))
    monkeypatch.setattr(
        PyAvFile, "_picture", lambda self, frame: pictures.append(frame.pts) or picture(self, frame)
    )
    views = make_views(ava_data, frames=8, stride=10, short_sides=(64, 32), flip=True)
    batches = list(ViewLoader(views, per_batch=2, workers=0))
    assert len(batches) == 6
    assert opened == ["a.mp4", "b.mp4", "c.mp4"]
    # Every tenth frame: 0 to 90 in the first batch of a video; 50 to 140, and the last one for 150, in the
    # second. Each comes once, though two clips have 16 times and four views.
    assert len(pictures) == 3 * (10 + 11)
    assert len(set(pictures)) == 16


@pytest.mark.parametrize("size", [3, 4, 50])
def test_ranks_and_workers_take_every_key_frame_once(ava_data: AvaData, size: int) -> None:
    views = make_views(ava_data)
    whole = list(ViewLoader(views, per_batch=size, workers=0))
    assert [int(index) for batch in whole for index in batch.index] == list(range(12))
    assert all(len({int(ava_data[0].video[index]) for index in batch.index}) == 1 for batch in whole)
    for world in (2, 3, 7):
        ranks = [
            ViewLoader(views, per_batch=size, workers=0, rank=rank, world_size=world) for rank in range(world)
        ]
        taken = [batch for loader in ranks for batch in loader._tasks]
        assert [index for batch in taken for index in batch] == list(range(12))
        assert sum(len(loader) for loader in ranks) == len(whole)
    if size == 3:
        loader = ViewLoader(views, per_batch=size, workers=2, rank=1, world_size=2)
        assert all(equal(*pair) for pair in zip(loader, whole[3:], strict=True))


class _DeadlyViews(KeyFrameViews):
    """Video b crashes the decoder."""

    def _views(self, reader, source, indices):  # type: ignore[no-untyped-def]
        if source.path.endswith("b.mp4"):
            os.abort()
        return super()._views(reader, source, indices)


def test_video_that_costs_two_workers_fails_with_all_its_key_frames(
    ava_data: AvaData, caplog: pytest.LogCaptureFixture
) -> None:
    views = make_views(ava_data)
    whole = list(ViewLoader(views, per_batch=2, workers=0))
    views.__class__ = _DeadlyViews
    batches = list(ViewLoader(views, per_batch=2, workers=1))
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2, 3], [], [], [8, 9], [10, 11]]
    assert all(equal(batches[number], whole[number]) for number in (0, 1, 4, 5))
    failures = [failure for batch in batches for failure in batch.failures]
    assert [(one.index, one.cause) for one in failures] == [
        (index, "the decoder crashed (SIGABRT)") for index in (4, 5, 6, 7)
    ]
    assert sum("is lost" in message and "b.mp4" in message for message in caplog.messages) == 2


def test_unreadable_key_frames_are_failures_that_nothing_stands_in_for(tmp_path: Path) -> None:
    """One by one: a missing picture takes the clips that need it, a broken file all of its own."""
    write_numbered(tmp_path / "videos", ["a"])
    extract(tmp_path / "videos" / "a.mp4", tmp_path / "mixed")
    (tmp_path / "mixed" / "a" / "a_000091.png").unlink()  # the frame at second 3
    (tmp_path / "mixed" / "b.mp4").write_bytes(b"this is text")
    key_frames = write_truth(tmp_path / "truth.csv", ["a", "b"], [901, 902, 903, 904])
    ava_data = key_frames, sources_in_folder(key_frames, tmp_path / "mixed")
    first, second = ViewLoader(make_views(ava_data), per_batch=4, workers=0)
    assert first.index.tolist() == [0, 1, 3]
    assert numbers(first.views[0]) == [[20, 25, 30, 35], [50, 55, 60, 65], [110, 115, 120, 125]]
    assert first.views[0].boxes[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert first.rows.tolist() == [0, 1, 2, 3, 6, 7]
    (failure,) = first.failures
    assert (failure.index, failure.path) == (2, str(tmp_path / "mixed" / "a"))
    assert failure.cause.startswith("a_000091.png is missing, frame 90 of 150; frames must have")
    assert (second.index.tolist(), second.rows.tolist(), second.views) == ([], [], ())
    assert [failure.index for failure in second.failures] == [4, 5, 6, 7]
    assert {failure.cause for failure in second.failures} == {"not a video file"}
    alone = make_views(ava_data)[1]
    assert torch.equal(alone.views[0].clips, first.views[0].clips[1:2])


def test_no_key_frame_gives_no_batch(tmp_path: Path) -> None:
    (tmp_path / "none.csv").touch()
    key_frames = detected_key_frames([tmp_path / "none.csv"], classes=3)
    views = make_views((key_frames, sources_in_folder(key_frames, tmp_path)))
    assert list(ViewLoader(views, per_batch=2, workers=0)) == []


def test_batch_moves_its_pixels_and_boxes(ava_data: AvaData) -> None:
    batch = make_views(ava_data).batch([0])
    moved = batch.to("meta")
    assert moved.views[0].clips.device.type == moved.views[0].boxes.device.type == "meta"
    assert moved.rows.device.type == moved.index.device.type == "cpu"


def test_invalid_arguments_are_refused(ava_data: AvaData) -> None:
    with pytest.raises(UserError, match=r"area 'middle' is unknown; choose from whole, center"):
        make_views(ava_data, area="middle")
    with pytest.raises(UserError, match=r"short_sides=\[64, 64\]: give one length in pixels, or several"):
        make_views(ava_data, short_sides=(64, 64))
    with pytest.raises(
        UserError, match=r"key frames \[3, 4\] belong to 2 videos; the key frames of a batch must"
    ):
        make_views(ava_data).batch([3, 4])
    with pytest.raises(UserError, match="per_batch=0: must be at least 1"):
        ViewLoader(make_views(ava_data), per_batch=0, workers=0)
