"""Clips around key frames: in one pass, and to train on with boxes that still frame their objects."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.ava_data import CLASSES, AvaData, extract, make_actions, write_numbered, write_truth
from tests.data.clip_data import equal
from tests.data.make_videos import read_number, uneven_times, write_video
from tests.reference.key_frames import key_frame_indices
from videomaskfeat.data import ava_sources
from videomaskfeat.data.augment import Augmentation, RandAugment
from videomaskfeat.data.ava import ActionBatch, key_clips
from videomaskfeat.data.ava_lists import training_key_frames
from videomaskfeat.data.ava_sources import sources_in_folder
from videomaskfeat.data.clips import SampleKey
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.timed_reader import CountedReader
from videomaskfeat.data.transforms import (
    ClipTransform,
    RandomResizedCrop,
    ShortSideJitterCrop,
    UniformCrop,
    WholeFrame,
)
from videomaskfeat.data.uncropped import UncroppedClips
from videomaskfeat.data.video import MemoryReader
from videomaskfeat.errors import UserError
from videomaskfeat.mp4 import write_mp4

WHOLE = WholeFrame(short_side=64, multiple=1)


def test_clips_hold_the_frames_around_their_key_frames(tmp_path: Path) -> None:
    """The numbers in the pictures are those that `key_frame_indices` names, clamped at both ends."""
    path = write_video(tmp_path / "a.mp4", frames=120)
    keys = np.arange(0, 4, 0.5)
    with open_timed(path) as video:
        clips = list(key_clips(video, keys, frames=8, stride=3, transform=WHOLE))
    assert [clip.number for clip in clips] == list(range(8))
    for clip, key in zip(clips, keys, strict=True):
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
    times = 1.0 + (np.arange(4) - 2) * 0.2
    assert [read_number(picture) for picture in clip.clip] == [
        int(np.abs(shown - time).argmin()) for time in times
    ]


def test_each_picture_is_decoded_once_and_boxes_move_along() -> None:
    """Overlapping clips share their pictures; more key frames than one pass takes come out all the same."""
    frames = np.zeros((700, 6, 8, 3), np.uint8)
    frames[:, :, :, 0] = (np.arange(700) % 256)[:, None, None]
    read_indices: list[int] = []

    class Counting(MemoryReader):
        def _iter_frames(self, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            read_indices.extend(indices.tolist())
            yield from super()._iter_frames(indices)

    keys = np.arange(40) * 0.4  # 12 frames: clips of every second frame share theirs
    with CountedReader(Counting(frames, fps=30)) as video:
        clips = list(key_clips(video, keys, frames=16, stride=2, transform=WholeFrame(3, multiple=1)))
    for clip, key in zip(clips, keys, strict=True):
        expected = key_frame_indices(700, 30.0, seconds=float(key), frames=16, stride=2)
        assert clip.clip.shape == (16, 3, 4, 3)
        np.testing.assert_array_equal(clip.clip[:, 0, 0, 0], expected % 256)
        assert clip.picture.shape == (6, 8, 3)
    boxes = clips[0].geometry.apply_boxes(np.array([[2.0, 2, 8, 6]]))
    assert boxes.tolist() == [[1, 1, 4, 3]]
    # 40 clips of 16 pictures; where the second pass begins, those of the clip's first half come again.
    assert len(read_indices) < 40 * 16 * 0.5
    assert len(read_indices) - len(set(read_indices)) <= 16


def test_pictures_too_long_for_a_whole_frame_are_unreadable() -> None:
    with (
        CountedReader(MemoryReader(np.zeros((3, 2, 33, 3), np.uint8), fps=30)) as video,
        pytest.raises(VideoReadError, match="frames of 33x2; the long side of a whole frame is at most 16"),
    ):
        next(key_clips(video, np.zeros(1), frames=2, stride=1, transform=WHOLE))


# Rectangles of one color each, as fractions of the frame: red has the action 1, green 2, blue 3.
DRAWN = ("0.10,0.10,0.40,0.50", "0.50,0.60,0.90,0.95", "0.70,0.05,0.95,0.45")
CROPS: list[ClipTransform] = [
    RandomResizedCrop(64, area=(0.3, 1.0)),
    RandomResizedCrop(96, area=(0.08, 0.3), flip=1.0),
    ShortSideJitterCrop(72, (80, 110)),
    UniformCrop(80, 90),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> AvaData:
    """A wide and an upright video with three rectangles."""
    root = tmp_path_factory.mktemp("drawn")
    for name, (height, width) in (("tall", (160, 120)), ("wide", (120, 160))):
        picture = np.zeros((height, width, 3), np.uint8)
        for channel, box in enumerate(DRAWN):
            x1, y1, x2, y2 = (float(part) for part in box.split(","))
            rows = slice(round(y1 * height), round(y2 * height))
            picture[rows, round(x1 * width) : round(x2 * width), channel] = 255
        write_mp4(root / f"{name}.mp4", [picture] * 60, crf=4)
    key_frames = write_truth(root / "truth.csv", ["tall", "wide"], [1], DRAWN)
    return key_frames, sources_in_folder(key_frames, root)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("transform", CROPS, ids=str)
def test_boxes_still_frame_what_is_drawn(drawn: AvaData, transform: ClipTransform, augmented: bool) -> None:
    """Each box frames the pixels of its label's color; a box that the crop cuts frames the visible rest."""
    augment = (
        Augmentation(color=ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)) if augmented else None
    )
    dataset = make_actions(*drawn, transform=transform, augment=augment)
    seen = 0
    for epoch in range(12):
        for index in range(2):
            sample = dataset[SampleKey(epoch, index)]
            picture = sample.clips[0, 2].astype(int)  # the key frame is number T / 2
            for box, labels in zip(sample.boxes[0], sample.labels[0], strict=True):
                (channel,) = np.flatnonzero(labels)
                others = np.delete(picture, channel, axis=2).max(axis=2)
                rows, columns = np.nonzero(picture[..., channel] - others > 90)
                if len(rows) == 0:  # less is left of it than the blur of its edge
                    assert min(box[2] - box[0], box[3] - box[1]) < 4
                    continue
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                # Half-resolution color blurs an edge over two pixels of the video, which the crop enlarges
                # up to threefold; rounding to whole pixels adds one.
                assert np.abs(box - extent).max() <= 4, (epoch, index, box, extent)
                seen += 1
    assert seen > 24


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("transform", CROPS, ids=str)
def test_clips_of_the_device_have_the_boxes_and_pixels_of_workers(
    drawn: AvaData, transform: ClipTransform, augmented: bool
) -> None:
    """Pixels to a level per operation: one crop, and three changes of colors that enlarge a difference."""
    color = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2) if augmented else None
    arguments: dict[str, Any] = {
        "transform": transform,
        "augment": Augmentation(color=color) if color else None,
        "samples_per_video": 2,
    }
    device, workers = (make_actions(*drawn, uncropped=one, **arguments) for one in (True, False))
    keys = [SampleKey(epoch, index) for epoch in range(3) for index in range(2)]
    batch, expected = (one.collate([one[key] for key in keys]) for one in (device, workers))
    assert isinstance(batch.clips, UncroppedClips)
    assert torch.equal(batch.boxes, expected.boxes)
    assert torch.equal(batch.labels, expected.labels)
    assert torch.equal(batch.index, expected.index)
    clips = batch.to("cpu").clips
    assert clips.shape == expected.clips.shape
    apart = (clips.int() - expected.clips.int()).abs()
    assert apart.max() <= (6 if augmented else 1)
    assert apart.float().mean() < 0.5


def test_clip_is_the_frames_around_the_key_frame(ava_data: AvaData) -> None:
    """With every box and label of it; four frames every fifth, the key frame third."""
    dataset = make_actions(*ava_data, transform=UniformCrop(64, 64))
    sample = dataset[SampleKey(0, 6)]  # b at 903
    assert sample.clips.shape == (1, 4, 64, 64, 3)
    with ava_data[1][1].open() as reader:
        wide = reader.read_at([80 / 30, 85 / 30, 3.0, 95 / 30])
    assert [read_number(picture) for picture in wide] == [80, 85, 90, 95]
    assert np.array_equal(sample.clips[0], wide[:, :, 16:80])
    # Columns 16 to 80 of 96x64 are left; relative corners times 96 and 64.
    assert sample.boxes[0] == pytest.approx(
        np.array([[0, 12.8, 27.2, 57.6], [41.6, 6.4, 64, 44.8]], np.float32), abs=1e-4
    )
    assert sample.boxes[0].dtype == np.float32
    assert (np.argwhere(sample.labels[0]) == [[0, 0], [1, 1]]).all()


def test_boxes_that_leave_the_crop_are_cut_or_dropped(ava_data: AvaData) -> None:
    crop = UniformCrop(
        64, 64
    )  # cuts off 6.4 of the 33.6 columns of the first box, 22.4 of 28.8 stay of the other
    for visible, widths in ((0.0, [27.2, 22.4]), (0.79, [27.2]), (0.9, [28.8])):
        sample = make_actions(*ava_data, transform=crop, visible=visible)[SampleKey(0, 0)]
        boxes = sample.boxes[0]
        # Where both would be dropped, the crop moves to one of them, here the second, and cuts the other off.
        assert (boxes[:, 2] - boxes[:, 0]).tolist() == pytest.approx(widths, abs=1e-4), visible
        assert len(sample.labels[0]) == len(widths)


def test_batch_numbers_its_boxes_by_clip(ava_data: AvaData) -> None:
    dataset = make_actions(*ava_data, samples_per_video=2)
    samples = [dataset[SampleKey(0, index)] for index in (3, 8)]
    batch = dataset.collate(samples)
    assert batch.clips.shape == (4, 4, 32, 32, 3)
    assert batch.index.tolist() == [3, 3, 8, 8]
    assert (batch.boxes.dtype, batch.labels.dtype) == (torch.float32, torch.bool)
    assert batch.labels.shape == (len(batch.boxes), CLASSES)
    expected = [part for sample in samples for part in sample.boxes]
    assert batch.boxes[:, 0].tolist() == [clip for clip, part in enumerate(expected) for _ in part]
    assert np.array_equal(batch.boxes[:, 1:].numpy(), np.concatenate(expected))
    assert not np.array_equal(samples[0].clips[0], samples[0].clips[1])  # a crop of its own each
    moved = batch.to("cpu")
    assert isinstance(moved, ActionBatch)
    assert equal(moved, batch)


def test_stream_is_the_same_for_workers_ranks_and_after_a_resume(ava_data: AvaData) -> None:
    dataset = make_actions(*ava_data)
    expected = list(ClipLoader(dataset, batch_size=4).epoch(1))
    assert [len(batch.clips) for batch in expected] == [4, 4, 4]
    assert sorted(int(index) for batch in expected for index in batch.index) == list(range(12))
    loader = ClipLoader(make_actions(*ava_data, open_videos=1), batch_size=4, workers=2)
    assert all(equal(*pair) for pair in zip(loader.epoch(1), expected, strict=True))
    loader.close()
    resumed = list(ClipLoader(make_actions(*ava_data), batch_size=4).epoch(1, first_batch=2))
    assert len(resumed) == 1
    assert equal(resumed[0], expected[2])
    halves = [list(ClipLoader(dataset, batch_size=4, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for step, whole in enumerate(expected):
        joined = torch.cat([half[step].clips for half in halves])
        assert torch.equal(joined, whole.clips)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("fps", [30.0, 25.0])
def test_video_and_extracted_frames_give_the_same_clips(tmp_path: Path, suffix: str, fps: float) -> None:
    """At 30 fps, and at another rate whose frames are partly repeated at 30."""
    write_numbered(tmp_path / "videos", ["a"], seconds=4, fps=fps)
    extract(tmp_path / "videos" / "a.mp4", tmp_path / "frames", suffix=suffix, fps=30.0)
    key_frames = write_truth(tmp_path / "truth.csv", ["a"], [901, 902, 903])
    videos, frames = (
        make_actions(key_frames, sources_in_folder(key_frames, tmp_path / name))
        for name in ("videos", "frames")
    )
    for index in range(3):
        left, right = (dataset[SampleKey(0, index)] for dataset in (videos, frames))
        assert np.array_equal(left.boxes[0], right.boxes[0])
        difference = np.abs(left.clips.astype(int) - right.clips)
        # PNG keeps every pixel. JPEG at quality 95 with half-resolution color moves flat areas by a level or
        # two and edges by more; another frame would differ by 200 where the patches of its number do.
        assert difference.max() <= (0 if suffix == "png" else 60)
        assert difference.mean() <= (0 if suffix == "png" else 3)


def test_unreadable_videos_are_replaced_and_counted(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a", "b"], seconds=3)
    (tmp_path / "c.mp4").write_bytes(b"this is text")
    key_frames = write_truth(tmp_path / "truth.csv", ["a", "b", "c"], [1, 2])
    dataset = make_actions(key_frames, sources_in_folder(key_frames, tmp_path))
    batches = list(ClipLoader(dataset, batch_size=6).epoch(0))
    failed = {failure.index: failure for batch in batches for failure in batch.failures}
    assert set(failed) == {4, 5}
    assert (failed[4].path, failed[4].cause) == (str(tmp_path / "c.mp4"), "not a video file")
    assert not {4, 5} & set(batches[0].index.tolist())
    assert len(batches[0].index) == 6
    counter = FailureCounter(len(dataset), share=0.01, unit=dataset.unit, remedy="look at the folder")
    with pytest.raises(
        UserError,
        match=r"2 of 6 key frames could not be read, but at most 1 may fail .*; look at the folder$",
    ):
        counter.add(failed.values())


def test_missing_frame_fails_only_the_clips_that_need_it(tmp_path: Path) -> None:
    write_numbered(tmp_path / "videos", ["a"])
    extract(tmp_path / "videos" / "a.mp4", tmp_path / "frames")
    (tmp_path / "frames" / "a" / "a_000091.png").unlink()  # the frame at second 3
    key_frames = write_truth(tmp_path / "truth.csv", ["a"], [901, 902, 903])
    dataset = make_actions(key_frames, sources_in_folder(key_frames, tmp_path / "frames"), tries=30)
    assert [dataset[SampleKey(0, index)].failures for index in (0, 1)] == [(), ()]
    sample = dataset[SampleKey(0, 2)]
    assert sample.index in (0, 1)
    assert sample.failures[0].cause == (
        "a_000091.png is missing, frame 90 of 150; frames must have consecutive numbers, 30 per second: "
        "extract them again, or read the video file itself"
    )


def test_list_without_a_readable_video_says_what_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"this is text")
    key_frames = write_truth(tmp_path / "truth.csv", ["a"], [1, 2])
    dataset = make_actions(key_frames, sources_in_folder(key_frames, tmp_path), tries=3)
    words = r"truth\.csv: 3 key frames in a row could not be read, .* check the folder of the videos or"
    with pytest.raises(UserError, match=words):
        dataset[SampleKey(0, 0)]


def test_boxes_without_an_action_are_negatives(tmp_path: Path) -> None:
    write_numbered(tmp_path, ["a"], seconds=3)
    (tmp_path / "truth.csv").write_text("a,1,0.1,0.1,0.4,0.4,2,0\n")
    (tmp_path / "found.csv").write_text("a,1,0.6,0.6,0.9,0.9,,0.95\n")
    key_frames = training_key_frames([tmp_path / "truth.csv"], [tmp_path / "found.csv"], classes=CLASSES)
    dataset = make_actions(
        key_frames,
        sources_in_folder(key_frames, tmp_path),
        transform=RandomResizedCrop(32, area=(1, 1), aspect=(1, 2)),
    )
    labels = dataset[SampleKey(0, 0)].labels[0]
    assert labels.astype(int).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_readers_are_kept_and_bounded(ava_data: AvaData, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_timed = ava_sources.open_timed
    monkeypatch.setattr(ava_sources, "open_timed", lambda path: opened.append(path[-5:]) or open_timed(path))
    dataset = make_actions(*ava_data, open_videos=2)
    for index in (0, 1, 4, 2, 5, 8, 0, 9):  # a a b a b c a c
        dataset[SampleKey(0, index)]
    assert opened == ["a.mp4", "b.mp4", "c.mp4", "a.mp4"]


def test_arguments_that_cannot_be_are_named(ava_data: AvaData) -> None:
    key_frames, sources = ava_data
    with pytest.raises(UserError, match=r"visible=1\.5 must be between 0 and 1; it is the minimum visible"):
        make_actions(*ava_data, visible=1.5)
    with pytest.raises(
        UserError, match="RandAugment moves pixels without the boxes; train a detector without it"
    ):
        make_actions(*ava_data, augment=Augmentation(randaugment=RandAugment()))
    with pytest.raises(UserError, match=r"2 sources for the 3 videos of .*truth\.csv"):
        make_actions(key_frames, sources[:2])
    with pytest.raises(UserError, match="a clip of 0 frames at stride 5 is empty"):
        make_actions(*ava_data, frames=0)


def test_words_of_the_log_say_where_videos_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_numbered(tmp_path, ["a"], seconds=3)
    with caplog.at_level(logging.INFO):
        key_frames = write_truth(tmp_path / "truth.csv", ["a"], [901])
        sources_in_folder(key_frames, tmp_path)
    assert (
        "1 of 1 videos start at second 900, since their key frames would lie beyond their ends" in caplog.text
    )
