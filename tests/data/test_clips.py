"""Data sets of clips, unlabeled, labeled and in pairs: what decides about a sample, and what fails."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.data.clip_data import MASK, SAMPLER, equal, make_clips, write_videos
from videomaskfeat.data import video as video_module
from videomaskfeat.data.batches import LabeledBatch
from videomaskfeat.data.clips import SampleKey, epoch_order, sample_generator
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.labeled_clips import (
    LabeledClips,
    balanced_order,
    check_labels,
    left_right_pairs,
    random_segments,
)
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.operations import ColorJitter, RandomColor, saturation
from videomaskfeat.data.pair_clips import LocalCrops, PairClips
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import segment_edges
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.masking import random, varied


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), 12)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The videos that a data set opens from now on."""
    paths: list[str] = []

    def counting(path: str, reader: str = "auto") -> object:
        paths.append(path)
        return open_video(path, reader)

    monkeypatch.setattr(video_module, "open_video", counting)
    return paths


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


def test_several_samples_come_from_one_opening(videos: Path, opened: list[str]) -> None:
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


class Inversion:
    """An augmentation with one draw, so that a test can follow it: some clips become their negatives."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """The crop of the frames or of their negatives."""
        return geometry.apply_clip(255 - frames if rng.random() < 0.5 else frames)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen labeled; the class is the row modulo 5; two cannot be read."""
    path = write_videos(tmp_path_factory.mktemp("labeled"), 15)
    (path.parent / "004.mp4").write_bytes(b"")
    (path.parent / "013.mp4").write_bytes(b"this is text")
    return path


def make_labeled(records: Records | Path, **arguments: object) -> LabeledClips:
    """A data set of 2-frame clips of 16x16 pixels with their classes."""
    rows = records if isinstance(records, Records) else load_records(records)
    keywords = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "seed": 11, **arguments}
    return LabeledClips(rows, **keywords)  # type: ignore[arg-type]


def test_labeled_samples_are_frames_then_crop_and_augmentation_of_each(
    labeled: Path, opened: list[str]
) -> None:
    """Against the same drawing by hand; one opening serves all of them."""
    sample = make_labeled(labeled, samples_per_video=6, augment=Inversion())[SampleKey(3, 7)]
    assert len(opened) == 1
    rng = sample_generator(11, 3, 7)
    with open_video(labeled.parent / "007.mp4") as video:
        frames = [video.read(SAMPLER(video.frames, video.fps, rng=rng)) for _ in range(6)]
    inverted = 0
    for clip, part in zip(sample.clips, frames, strict=True):
        crop = RandomResizedCrop(16).sample(32, 32, rng)
        negative = rng.random() < 0.5
        inverted += negative
        assert np.array_equal(clip, crop.apply_clip(255 - part if negative else part))
    assert 0 < inverted < 6
    assert sample.labels.tolist() == [2] * 6
    assert sample.labels.dtype == np.int64


def test_replacement_brings_its_own_label(labeled: Path) -> None:
    dataset = make_labeled(labeled)
    for epoch in range(4):
        sample = dataset[SampleKey(epoch, 4)]
        assert [failure.index for failure in sample.failures][:1] == [4]
        assert sample.labels.tolist() == [sample.index % 5]


def test_flipped_clips_take_the_mirrored_label(labeled: Path) -> None:
    pairs = {0: 3, 3: 0}
    always = make_labeled(labeled, transform=RandomResizedCrop(16, flip=1.0), flip_labels=pairs)
    never = make_labeled(labeled, transform=RandomResizedCrop(16, flip=0.0), flip_labels=pairs)
    assert [int(always[SampleKey(0, row)].labels[0]) for row in (0, 1, 2, 3)] == [3, 1, 2, 0]
    assert [int(never[SampleKey(0, row)].labels[0]) for row in (0, 1, 2, 3)] == [0, 1, 2, 3]
    mixed = make_labeled(labeled, samples_per_video=8, flip_labels=pairs)[SampleKey(0, 0)]
    assert set(mixed.labels.tolist()) == {0, 3}
    # A clip is flipped exactly where its label is: the flip undone gives the pixels of the unflipped draw.
    plain = make_labeled(labeled, samples_per_video=8, transform=RandomResizedCrop(16, flip=0.0))
    for clip, label, straight in zip(mixed.clips, mixed.labels, plain[SampleKey(0, 0)].clips, strict=True):
        mirrored = straight[:, :, ::-1]
        assert np.array_equal(clip, mirrored if label == 3 else straight)


def test_one_sided_swap_is_refused(labeled: Path) -> None:
    with pytest.raises(UserError, match=r"flip_labels maps 0 to 3, and 3 to 4; .* both directions"):
        make_labeled(labeled, flip_labels={0: 3, 3: 4, 4: 3})


def test_batches_hold_clips_labels_and_rows(labeled: Path) -> None:
    loader = ClipLoader(make_labeled(labeled, samples_per_video=2), batch_size=10)
    batch = next(loader.epoch(0))
    assert isinstance(batch, LabeledBatch)
    assert batch.clips.shape == (10, 2, 16, 16, 3)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [int(row) % 5 for row in batch.index]
    assert batch.index[0::2].tolist() == batch.index[1::2].tolist()
    assert equal(batch, batch.to("cpu"))


@pytest.mark.parametrize("balanced", [False, True])
def test_stream_is_the_same_for_workers_ranks_and_after_a_resume(labeled: Path, balanced: bool) -> None:
    def loader(**arguments: int) -> ClipLoader[LabeledBatch]:
        dataset = make_labeled(labeled, balanced=balanced, augment=Inversion())
        return ClipLoader(dataset, batch_size=4, **arguments)

    whole = list(loader().epoch(1))
    working = loader(workers=2)
    assert all(equal(*pair) for pair in zip(working.epoch(1), whole, strict=True))
    working.close()
    by_rank = [list(loader(rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].clips for part in by_rank]), batch.clips)
        assert torch.equal(torch.cat([part[step].labels for part in by_rank]), batch.labels)
    assert equal(next(loader().epoch(1, first_batch=2)), whole[2])


def test_balanced_order_takes_classes_evenly() -> None:
    labels = np.repeat([0, 1, 7], [90, 9, 2])  # a class may be missing; 101 = 3*33 + 2
    order = balanced_order(labels, np.random.default_rng(0))
    assert order.shape == (101,)
    counts = np.bincount(labels[order], minlength=8)
    assert sorted(counts[counts > 0].tolist()) == [33, 34, 34]
    # Within a class its rows come equally often, give or take one.
    for label in (0, 1, 7):
        times = np.bincount(order[labels[order] == label], minlength=101)[labels == label]
        assert times.max() - times.min() <= 1
    assert not np.array_equal(order, balanced_order(labels, np.random.default_rng(1)))
    assert len(set(labels[order][:20])) == 3  # shuffled, not class by class


def test_row_that_comes_again_in_an_epoch_is_drawn_anew(tmp_path: Path) -> None:
    path = write_videos(tmp_path, 6, frames=8)
    path.write_text("".join(f"{row:03d}.mp4 {int(row == 0)}\n" for row in range(6)))
    dataset = make_labeled(path, balanced=True)
    batch = next(ClipLoader(dataset, batch_size=6).epoch(0))
    again = [clip for clip, row in zip(batch.clips, batch.index, strict=True) if row == 0]
    assert len(again) == 3
    assert len({clip.numpy().tobytes() for clip in again}) == 3
    assert np.array_equal(dataset[SampleKey(0, 0)].clips[0], again[0])
    assert np.array_equal(dataset[SampleKey(0, 0, turn=2)].clips[0], again[2])


def test_segment_samplers_are_the_protocols(labeled: Path) -> None:
    edges = segment_edges(40, frames=8)
    draws = np.stack([random_segments(40, 12.0, frames=8, rng=np.random.default_rng(s)) for s in range(200)])
    assert (draws.min(axis=0) == edges[:-1]).all()
    assert (draws.max(axis=0) == edges[1:]).all()
    sample = make_labeled(labeled, sampler=functools.partial(random_segments, frames=4))[SampleKey(0, 1)]
    assert sample.clips.shape == (1, 4, 16, 16, 3)


def test_left_and_right_pairs_come_from_the_names() -> None:
    classes = {
        "Pulling something from left to right": 0,
        "Pulling something from right to left": 1,
        "Turning the camera left while filming something": 2,
        "Moving something up": 3,
        "Turning the camera right while filming something": 4,
        "Putting something upright on the table": 5,
    }
    assert left_right_pairs(classes) == {0: 1, 1: 0, 2: 4, 4: 2}
    with pytest.raises(UserError, match=r"class 7 \('Turn left'\) .* there is no class 'turn right'"):
        left_right_pairs({"Turn left": 7, "Moving up": 1})


def _records(labels: list[int] | None) -> Records:
    paths = [f"{row}.mp4" for row in range(3)]
    return Records.from_paths(paths, labels, source="lists/train.csv", root="labeled")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, r"lists/train\.csv has no labels, and classification needs one"),
        ([0, -1, 2], r"lists/train\.csv: row 2 \(labeled/1\.mp4\) has the label -1, .*\(1 of 3 rows"),
        (
            [0, 11, 12],
            r"train\.csv: row 2 \(labeled/1\.mp4\) has the label 11, .*0\.\.9 \(2 of 3.* least 13",
        ),
    ],
)
def test_labels_outside_the_classes_are_named_by_list_and_row(labels: list[int] | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_labels(_records(labels), 10)
    assert "\n" not in str(caught.value)
    if labels is not None and min(labels) >= 0:
        with pytest.raises(UserError, match=r"add the missing names .* data\.class_names \(names\.txt\)"):
            check_labels(_records(labels), 10, class_names="names.txt")
    if labels is None or min(labels) < 0:
        with pytest.raises(UserError, match=words):
            make_labeled(_records(labels))


def test_labels_inside_the_classes_pass() -> None:
    check_labels(_records([0, 9, 3]), 10)


JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2)
COLORS = (RandomColor(JITTER, blur=1.0), RandomColor(JITTER, blur=0.1, solarize=0.8))
LOCAL = LocalCrops(3, RandomResizedCrop(8, area=(0.05, 0.4)), RandomColor(JITTER, blur=0.5))


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("paired"), 9)


def make_pairs(paired: Path, **arguments: object) -> PairClips:
    keywords = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "seed": 11, **arguments}
    return PairClips(load_records(paired), **keywords)  # type: ignore[arg-type]


def test_pair_is_drawn_by_its_own_generator(paired: Path) -> None:
    """The same draws by hand: frames of both clips, crop and colors of each, masks, local crops."""
    sample = make_pairs(paired, colors=COLORS, mask=MASK, local=LOCAL)[SampleKey(3, 5)]
    rng = sample_generator(11, 3, 5)
    with open_video(paired.parent / "005.mp4") as video:
        frames = [
            video.read(index) for index in [SAMPLER(video.frames, video.fps, rng=rng) for _ in range(2)]
        ]

    def cut(part: np.ndarray, transform: Any, color: RandomColor | None) -> np.ndarray:
        assert color is not None
        return color.apply(transform.sample(32, 32, rng).apply_clip(part), rng)

    clips = [cut(part, RandomResizedCrop(16), color) for part, color in zip(frames, COLORS, strict=True)]
    masks = [MASK(rng=rng) for _ in range(2)]
    local = [cut(frames[number], LOCAL.transform, LOCAL.color) for number in (0, 1, 0)]
    assert np.array_equal(sample.clips, np.stack(clips))
    assert sample.masks is not None
    assert np.array_equal(sample.masks, np.stack(masks))
    assert sample.local is not None
    assert np.array_equal(sample.local, np.stack(local))
    assert not np.array_equal(sample.clips[0], sample.clips[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_keep_the_pairs_together(paired: Path, workers: int) -> None:
    dataset = make_pairs(paired, colors=COLORS, mask=MASK, local=LOCAL)
    loader = ClipLoader(dataset, batch_size=4, workers=workers)
    assert loader.batches_per_epoch == 4
    batches = [batch.to("cpu") for batch in loader.epoch(1)]
    loader.close()
    for number, batch in enumerate(batches):
        assert batch.mask is not None
        assert batch.local is not None
        assert batch.clips.shape == (4, 2, 16, 16, 3)
        assert batch.local.shape == (6, 2, 8, 8, 3)
        rows = dataset.order(1)[2 * number : 2 * number + 2]
        assert batch.index.tolist() == np.repeat(rows, 2).tolist()
        for place, row in enumerate(rows):
            sample = dataset[SampleKey(1, int(row))]
            assert torch.equal(batch.clips[2 * place : 2 * place + 2], torch.from_numpy(sample.clips))
            assert torch.equal(batch.mask[2 * place : 2 * place + 2], torch.from_numpy(sample.masks))
            assert torch.equal(batch.local[3 * place : 3 * place + 3], torch.from_numpy(sample.local))


def test_masks_and_local_crops_may_be_left_out(paired: Path) -> None:
    batch = next(ClipLoader(make_pairs(paired), batch_size=2).epoch(0))
    assert batch.mask is None
    assert batch.local is None
    assert batch.to("cpu").clips.shape == (2, 2, 16, 16, 3)
    with pytest.raises(UserError, match="local crops 0: must be at least 1"):
        LocalCrops(0, RandomResizedCrop(8))
    with pytest.raises(UserError, match=r"batch_size=3 must be a positive multiple of .* = 2"):
        ClipLoader(make_pairs(paired), batch_size=3)


def test_color_changes_the_configured_fraction_of_clips() -> None:
    """Of 400 clips 0.8 are changed by jitter and 0.2 are gray, within 5 standard deviations (0.1)."""
    rng = np.random.default_rng(0)
    frames = np.random.default_rng(1).integers(0, 256, size=(1, 4, 4, 3), dtype=np.uint8)
    changed = [RandomColor(JITTER, gray=0.0).apply(frames, rng) for _ in range(400)]
    assert np.mean([not np.array_equal(frames, clip) for clip in changed]) == pytest.approx(0.8, abs=0.1)
    gray = [RandomColor(JITTER, chance=0.0).apply(frames, rng) for _ in range(400)]
    same = np.array([np.array_equal(clip, saturation(frames, 0.0)) for clip in gray])
    assert same.mean() == pytest.approx(0.2, abs=0.1)
    assert all(np.array_equal(clip, frames) for clip, is_gray in zip(gray, same, strict=True) if not is_gray)
    with pytest.raises(UserError, match=r"gray=2: a probability must be in 0\.\.1"):
        RandomColor(JITTER, gray=2)


def test_blur_and_solarization_are_applied_with_their_probabilities() -> None:
    """Of 400 clips within 5 standard deviations (0.13); solarization inverts from 128 on."""
    rng = np.random.default_rng(0)
    frames = np.random.default_rng(1).integers(0, 256, size=(1, 4, 4, 3), dtype=np.uint8)
    options = {"chance": 0.0, "gray": 0.0}
    blurred = [RandomColor(JITTER, blur=0.6, **options).apply(frames, rng) for _ in range(400)]
    # A standard deviation of 0.1 to about 0.3 pixels changes no level.
    assert np.mean([not np.array_equal(frames, clip) for clip in blurred]) == pytest.approx(0.53, abs=0.15)
    inverted = np.where(frames < 128, frames, 255 - frames)
    changed = [RandomColor(JITTER, solarize=0.4, **options).apply(frames, rng) for _ in range(400)]
    assert all(np.array_equal(clip, frames) or np.array_equal(clip, inverted) for clip in changed)
    assert np.mean([np.array_equal(clip, inverted) for clip in changed]) == pytest.approx(0.4, abs=0.13)


def test_varied_masks_hide_between_the_ratios_or_nothing() -> None:
    """Of 400 masks half hide nothing (5 standard deviations: 0.13); the others' ratios fill the range."""
    grid = TokenGrid(4, 10, 10)
    draw = functools.partial(varied, random, grid, ratios=(0.1, 0.5), unmasked=0.5)
    rng = np.random.default_rng(0)
    shares = np.array([draw(rng=rng).mean() for _ in range(400)])
    assert np.mean(shares == 0) == pytest.approx(0.5, abs=0.13)
    drawn = shares[shares > 0]
    assert 0.1 <= drawn.min() < 0.13
    assert 0.47 < drawn.max() <= 0.5
    assert drawn.mean() == pytest.approx(0.3, abs=0.05)
