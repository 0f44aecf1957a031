"""From a record to clips and masks: what decides about them, and what happens to unreadable videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.clip_parts import SAMPLER, make_clips, write_videos
from videomaskfeat.data import clips as clips_module
from videomaskfeat.data.clips import SampleKey, epoch_order, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.transforms import RandomResizedCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), 12)


def test_sample_is_frames_crop_and_mask_of_its_own_generator(videos: Path) -> None:
    """Against the same drawing by hand, in the order frames, crop, mask."""
    dataset = make_clips(videos)
    sample = dataset[SampleKey(3, 5)]
    rng = sample_generator(11, 3, 5)
    with open_video(videos.parent / "005.mp4") as video:
        frames = video.read(SAMPLER(video.frames, video.fps, rng=rng))
    crop = RandomResizedCrop(16).sample(32, 32, rng)
    assert np.array_equal(sample.clips[0], crop.apply_clip(frames))
    assert sample.clips.shape == (1, 2, 16, 16, 3)
    assert sample.clips.dtype == np.uint8
    assert sample.masks.shape == (1, 1, 4, 4)
    assert sample.masks.sum() == 8
    assert sample.index == 5


def test_samples_differ_between_seeds_epochs_and_records() -> None:
    draws = {
        sample_generator(*key).random() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    }
    assert len(draws) == 5
    assert len({tuple(epoch_order(*key, 50)) for key in [(0, 0), (0, 1), (1, 0)]}) == 3
    assert sorted(epoch_order(0, 0, 50)) == list(range(50))


def test_several_samples_come_from_one_opening(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: str, reader: str = "auto") -> object:
        opened.append(path)
        return open_video(path, reader)

    monkeypatch.setattr(clips_module, "open_video", counting)
    sample = make_clips(videos, samples_per_video=3)[SampleKey(0, 1)]
    assert len(opened) == 1
    assert sample.clips.shape == (3, 2, 16, 16, 3)
    assert sample.masks.shape == (3, 1, 4, 4)
    assert not np.array_equal(sample.clips[0], sample.clips[1])
    assert not np.array_equal(sample.masks[0], sample.masks[1])


def _break(videos: Path, folder: Path, broken: dict[int, bytes | None]) -> Path:
    """A list of the videos with some replaced by other bytes, or by nothing."""
    rows = []
    for index in range(12):
        path = videos.parent / f"{index:03d}.mp4"
        if index in broken:
            path = folder / f"{index:03d}.mp4"
            content = broken[index]
            if content is not None:
                path.write_bytes(content)
        rows.append(f"{path} 0\n")
    (folder / "train.csv").write_text("".join(rows))
    return folder / "train.csv"


def test_unreadable_videos_are_replaced_the_same_way_every_time(videos: Path, tmp_path: Path) -> None:
    whole = (videos.parent / "002.mp4").read_bytes()
    broken = {1: b"", 2: whole[: len(whole) // 3], 3: b"not a video at all", 4: None}
    dataset = make_clips(_break(videos, tmp_path, broken))
    for index in broken:
        sample = dataset[SampleKey(0, index)]
        assert sample.index not in broken
        assert sample.failures[0].index == index
        assert sample.failures[0].path.endswith(f"{index:03d}.mp4")
        assert sample.failures[0].cause
        again = dataset[SampleKey(0, index)]
        assert np.array_equal(again.clips, sample.clips)
        assert again.failures == sample.failures
    # Another epoch draws another replacement sooner or later.
    assert len({dataset[SampleKey(epoch, 1)].index for epoch in range(8)}) > 1
    assert dataset[SampleKey(0, 0)].failures == ()


def test_replacement_is_no_copy_of_the_record_that_stands_in(videos: Path, tmp_path: Path) -> None:
    dataset = make_clips(_break(videos, tmp_path, {1: b""}))
    sample = dataset[SampleKey(0, 1)]
    assert not np.array_equal(sample.clips, dataset[SampleKey(0, sample.index)].clips)


def test_all_unreadable_ends_with_the_list_and_the_last_cause(videos: Path, tmp_path: Path) -> None:
    dataset = make_clips(_break(videos, tmp_path, dict.fromkeys(range(12), b"")), tries=4)
    with pytest.raises(
        UserError, match=r"train\.csv: 4 videos in a row .*\.mp4 \(.*empty.*check-data"
    ) as caught:
        dataset[SampleKey(0, 0)]
    assert "\n" not in str(caught.value)


def test_too_short_video_is_a_failure_where_that_is_the_policy(videos: Path) -> None:
    import functools

    dataset = make_clips(videos, sampler=functools.partial(SAMPLER, frames=90, short="error"), tries=2)
    with pytest.raises(UserError, match=r"2 videos in a row could not be read.* 8 "):
        dataset[SampleKey(0, 0)]


def test_frame_folders_are_read_like_videos(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            picture = np.full((20, 24, 3), 50 * number, np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"img_{number:05d}.png"), picture)
    sample = make_clips(load_records(tmp_path))[SampleKey(0, 1)]
    assert sample.clips.shape == (1, 2, 16, 16, 3)
    assert set(np.unique(sample.clips)) <= {0, 50, 100, 150}


@pytest.mark.parametrize("argument", ["samples_per_video", "tries"])
def test_impossible_numbers_are_refused(videos: Path, argument: str) -> None:
    with pytest.raises(UserError, match=f"{argument}=0: must be at least 1"):
        make_clips(videos, **{argument: 0})
