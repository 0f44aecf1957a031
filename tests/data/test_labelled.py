"""Clips with their classes: repeated samples, mirrored classes, even classes, and wrong labels."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.clip_parts import SAMPLER, write_videos
from videomaskfeat.data import clips as clips_module
from videomaskfeat.data.clips import (
    LabelledBatch,
    LabelledClips,
    SampleKey,
    balanced_order,
    check_labels,
    left_right_pairs,
    random_segments,
    sample_generator,
)
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import segment_edges
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError


class Inversion:
    """An augmentation with one draw, so that a test can follow it: some clips become their negatives."""

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """The crop of the frames or of their negatives."""
        return geometry.apply_clip(255 - frames if rng.random() < 0.5 else frames)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen videos; the class is the row modulo 5; two cannot be read."""
    path = write_videos(tmp_path_factory.mktemp("videos"), 15)
    (path.parent / "004.mp4").write_bytes(b"")
    (path.parent / "013.mp4").write_bytes(b"this is text")
    return path


def make_labelled(records: Records | Path, **arguments: object) -> LabelledClips:
    """A data set of 2-frame clips of 16x16 pixels with their classes."""
    rows = records if isinstance(records, Records) else load_records(records)
    parts = {"sampler": SAMPLER, "transform": RandomResizedCrop(16), "seed": 11, **arguments}
    return LabelledClips(rows, **parts)  # type: ignore[arg-type]


def _equal(left: LabelledBatch, right: LabelledBatch) -> bool:
    same = all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("clips", "labels", "index")
    )
    return same and left.failures == right.failures


def test_samples_are_frames_then_crop_and_augmentation_of_each(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same drawing by hand; one opening serves all of them."""
    opened: list[str] = []

    def counting(path: str, reader: str = "auto") -> object:
        opened.append(path)
        return open_video(path, reader)

    monkeypatch.setattr(clips_module, "open_video", counting)
    sample = make_labelled(videos, samples_per_video=6, augment=Inversion())[SampleKey(3, 7)]
    assert len(opened) == 1
    rng = sample_generator(11, 3, 7)
    with open_video(videos.parent / "007.mp4") as video:
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


def test_replacement_brings_its_own_label(videos: Path) -> None:
    dataset = make_labelled(videos)
    for epoch in range(4):
        sample = dataset[SampleKey(epoch, 4)]
        assert [failure.index for failure in sample.failures][:1] == [4]
        assert sample.labels.tolist() == [sample.index % 5]


def test_flipped_clips_take_the_mirrored_label(videos: Path) -> None:
    pairs = {0: 3, 3: 0}
    always = make_labelled(videos, transform=RandomResizedCrop(16, flip=1.0), flip_labels=pairs)
    never = make_labelled(videos, transform=RandomResizedCrop(16, flip=0.0), flip_labels=pairs)
    assert [int(always[SampleKey(0, row)].labels[0]) for row in (0, 1, 2, 3)] == [3, 1, 2, 0]
    assert [int(never[SampleKey(0, row)].labels[0]) for row in (0, 1, 2, 3)] == [0, 1, 2, 3]
    some = make_labelled(videos, samples_per_video=8, flip_labels=pairs)[SampleKey(0, 0)]
    assert set(some.labels.tolist()) == {0, 3}
    # A clip is flipped exactly where its label is: the flip undone gives the pixels of the unflipped draw.
    plain = make_labelled(videos, samples_per_video=8, transform=RandomResizedCrop(16, flip=0.0))
    for clip, label, straight in zip(some.clips, some.labels, plain[SampleKey(0, 0)].clips, strict=True):
        mirrored = straight[:, :, ::-1]
        assert np.array_equal(clip, mirrored if label == 3 else straight)


def test_one_sided_swap_is_refused(videos: Path) -> None:
    with pytest.raises(UserError, match=r"flip_labels maps 0 to 3, and 3 to 4; .* both ways"):
        make_labelled(videos, flip_labels={0: 3, 3: 4, 4: 3})


def test_batches_hold_clips_labels_and_rows(videos: Path) -> None:
    loader = ClipLoader(make_labelled(videos, samples_per_video=2), batch_size=10)
    batch = next(loader.epoch(0))
    assert isinstance(batch, LabelledBatch)
    assert batch.clips.shape == (10, 2, 16, 16, 3)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [int(row) % 5 for row in batch.index]
    assert batch.index[0::2].tolist() == batch.index[1::2].tolist()
    assert _equal(batch, batch.to("cpu"))


@pytest.mark.parametrize("balanced", [False, True])
def test_stream_is_the_same_for_workers_ranks_and_after_a_resume(videos: Path, balanced: bool) -> None:
    def loader(**arguments: int) -> ClipLoader[LabelledBatch]:
        dataset = make_labelled(videos, balanced=balanced, augment=Inversion())
        return ClipLoader(dataset, batch_size=4, **arguments)

    whole = list(loader().epoch(1))
    working = loader(workers=2)
    assert all(_equal(*pair) for pair in zip(working.epoch(1), whole, strict=True))
    working.close()
    parts = [list(loader(rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].clips for part in parts]), batch.clips)
        assert torch.equal(torch.cat([part[step].labels for part in parts]), batch.labels)
    assert _equal(next(loader().epoch(1, first_batch=2)), whole[2])


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
    dataset = make_labelled(path, balanced=True)
    batch = next(ClipLoader(dataset, batch_size=6).epoch(0))
    again = [clip for clip, row in zip(batch.clips, batch.index, strict=True) if row == 0]
    assert len(again) == 3
    assert len({clip.numpy().tobytes() for clip in again}) == 3
    assert np.array_equal(dataset[SampleKey(0, 0)].clips[0], again[0])
    assert np.array_equal(dataset[SampleKey(0, 0, turn=2)].clips[0], again[2])


def test_segment_samplers_are_the_protocols(videos: Path) -> None:
    edges = segment_edges(40, frames=8)
    draws = np.stack([random_segments(40, 12.0, frames=8, rng=np.random.default_rng(s)) for s in range(200)])
    assert (draws.min(axis=0) == edges[:-1]).all()
    assert (draws.max(axis=0) == edges[1:]).all()
    sample = make_labelled(videos, sampler=functools.partial(random_segments, frames=4))[SampleKey(0, 1)]
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
    with pytest.raises(UserError, match=r"class 7 \('Turn left'\) .* no class is called 'turn right'"):
        left_right_pairs({"Turn left": 7, "Moving up": 1})


def _records(labels: list[int] | None) -> Records:
    paths = [f"{row}.mp4" for row in range(3)]
    return Records.from_paths(paths, labels, source="lists/train.csv", root="videos")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, r"lists/train\.csv: has no labels, and classification needs one"),
        ([0, -1, 2], r"lists/train\.csv: row 2 \(videos/1\.mp4\) has the label -1, .*\(1 of 3 rows"),
        ([0, 11, 12], r"train\.csv: row 2 \(videos/1\.mp4\) has the label 11, .*0\.\.9 \(2 of 3.* least 13"),
    ],
)
def test_labels_outside_the_classes_are_named_by_list_and_row(labels: list[int] | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_labels(_records(labels), 10)
    assert "\n" not in str(caught.value)
    if labels is None or min(labels) < 0:
        with pytest.raises(UserError, match=words):
            make_labelled(_records(labels))


def test_labels_inside_the_classes_pass() -> None:
    check_labels(_records([0, 9, 3]), 10)
