"""Test views: frames and crops of the protocol, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.data.clip_data import write_videos
from tests.data.make_videos import READERS
from videomaskfeat.data import video as video_module
from videomaskfeat.data.batches import Failure, ViewsBatch
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ViewLoader
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_indices_view
from videomaskfeat.data.transforms import UniformCrop
from videomaskfeat.data.video import MemoryReader, VideoReader, open_video
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.errors import UserError
from videomaskfeat.mp4 import write_mp4

BROKEN = (2, 3, 8)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos of 8 frames; three cannot be read; the class is the row modulo 5."""
    path = write_videos(tmp_path_factory.mktemp("videos"), 9)
    for row in BROKEN:
        (path.parent / f"{row:03d}.mp4").write_bytes(b"this is text")
    return path


@pytest.fixture
def protocol(golden: Path) -> dict[str, list[dict[str, Any]]]:
    """What the reference cuts."""
    return json.loads((golden / "protocol.json").read_text(encoding="utf-8"))


def make_views(records: Path | Records | None = None, **arguments: object) -> EvaluationViews:
    """Three clips of two frames, three crops of 16 pixels each."""
    rows = load_records(records) if isinstance(records, Path) else records
    rows = rows or Records.from_paths(["none.mp4"], [0], source="none")
    keywords = {"frames": 2, "stride": 2, "views": 3, "crops": 3, "crop": 16, "short_side": 20, **arguments}
    return EvaluationViews(rows, **keywords)  # type: ignore[arg-type]


def test_frames_equal_the_reference(protocol: dict[str, list[dict[str, Any]]]) -> None:
    for case in (case for case in protocol["temporal"] if case["use_offset"]):
        views = make_views(frames=16, stride=4, views=case["num_clips"])
        fps = case["clip_size"] * 30.0 / 64.0  # 16 frames at stride 4 span 64 frames at 30 fps
        indices = views.frame_indices(case["num_frames"], fps)
        assert indices.shape == (case["num_clips"], 16)
        assert indices[case["clip_idx"]].tolist() == case["frame_indices"], case


def test_segments_equal_the_reference(protocol: dict[str, list[dict[str, Any]]]) -> None:
    for case in protocol["ssv2_segments"]:
        views = make_views(sampling="segments", frames=case["frames"], views=1)
        assert views.frame_indices(case["num_frames"], 12.0).tolist() == [case["test_indices"]], case


def test_crops_equal_the_reference(protocol: dict[str, list[dict[str, Any]]]) -> None:
    """Colors encode the position; without resizing, the first pixel of a crop is its corner."""
    assert {case["index"] for case in protocol["uniform_crops"]} == {0, 1, 2}
    for case in protocol["uniform_crops"]:
        height, width, size = case["height"], case["width"], case["size"]
        rows, columns = np.mgrid[:height, :width]
        frame = np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256], axis=-1)
        video = MemoryReader(np.tile(frame.astype(np.uint8), (3, 1, 1, 1)), fps=30.0)
        crops = [(3, case["index"])] if case["index"] != 1 else [(3, 1), (1, 0)]
        for number, place in crops:
            views = make_views(views=1, crops=number, crop=size, short_side=min(height, width))
            y, x, high = views.clips(video)[place, 0, 0, 0].tolist()
            assert (high // 16 * 256 + y, high % 16 * 256 + x) == (case["top"], case["left"]), case


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (22, 34), (40, 40)], ids=str)
@pytest.mark.parametrize("reader", READERS)
def test_views_match_separate_reads(tmp_path: Path, size: tuple[int, int], reader: str) -> None:
    """An opening, a read and a crop for every view: the same pixels."""
    rng = np.random.default_rng(5)
    pictures = [cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), size[::-1]) for _ in range(23)]
    path = tmp_path / "one.mp4"
    write_mp4(path, pictures, keyframe_interval=5)
    views = make_views(Records.from_paths([str(path)], [4], source="x"), frames=4, stride=3, reader=reader)
    sample = views[0]
    assert (sample.index.tolist(), sample.labels.tolist(), sample.failures) == ([0], [4], ())
    assert sample.clips.shape == (9, 4, 16, 16, 3)
    for view in range(3):
        for crop in range(3):
            with open_video(path) as video:
                indices = clip_indices_view(23, video.fps, frames=4, stride=3, view=view, views=3)
                frames = video.read(indices)
            expected = UniformCrop(16, 20, crop).sample(*frames.shape[1:3]).apply_clip(frames)
            assert np.array_equal(sample.clips[view * 3 + crop].numpy(), expected)


def test_each_video_is_opened_and_each_frame_decoded_once(
    listing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    decoded: list[int] = []

    def counting(path: str, reader: str) -> VideoReader:
        opened.append(path)
        video = open_video(path, reader)
        each = video._iter_frames

        def count(indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            for index, picture in each(indices):
                decoded.append(index)
                yield index, picture

        monkeypatch.setattr(video, "_iter_frames", count)
        return video

    monkeypatch.setattr(video_module, "open_video", counting)
    views = make_views(listing, frames=4, stride=1, views=5)  # 60 frames out of the 8 in the file
    sample = views[1]
    assert opened == [str(listing.parent / "001.mp4")]
    assert decoded == np.unique(views.frame_indices(8, 30.0)).tolist()
    assert len(decoded) == 8
    assert len(sample.clips) == 15


def test_unreadable_video_is_a_failure(listing: Path) -> None:
    views = make_views(listing)
    sample = views[2]
    assert sample.clips.shape == (0, 2, 16, 16, 3)
    assert len(sample.index) == len(sample.labels) == 0
    assert sample.failures == (Failure(2, str(listing.parent / "002.mp4"), "not a video file"),)


def test_listed_but_absent_video_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text("gone.mp4 3\n")
    (failure,) = make_views(path)[0].failures
    assert failure.cause == "no such file"


def test_short_video_fails_only_with_the_policy_error(listing: Path) -> None:
    assert make_views(listing, frames=5, stride=4)[0].failures == ()
    (failure,) = make_views(listing, frames=5, stride=4, short="error")[0].failures
    assert failure.cause == "too short: 8 frames, and the clip spans 20"


def test_frames_of_two_sizes_are_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "video"
    folder.mkdir(parents=True)
    for number, width in enumerate((30, 30, 34)):
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros((24, width, 3), np.uint8))
    records = load_records(tmp_path / "frames", format="frames")
    (failure,) = make_views(records, frames=3, stride=1, views=1)[0].failures
    assert failure.cause == "frame 2 is 34x24, others are 30x24"


def test_labels_of_an_unlabeled_list_are_minus_one(tmp_path: Path) -> None:
    write_videos(tmp_path, 1)
    views = make_views(load_records(tmp_path, format="folder"))
    assert views.batch([0]).labels.tolist() == [-1]


def test_batch_has_no_gaps_for_failures(listing: Path) -> None:
    views = make_views(listing)
    batch = views.batch([1, 2, 3, 4])
    assert batch.index.tolist() == [1, 4]
    assert batch.labels.tolist() == [1, 4]
    assert [failure.index for failure in batch.failures] == [2, 3]
    expected = torch.cat([views[1].clips, views[4].clips])
    assert torch.equal(batch.clips, expected)
    nothing = views.batch([2, 3])
    assert nothing.clips.shape == (0, 2, 16, 16, 3)
    assert nothing.index.shape == (0,)
    assert len(nothing.failures) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("videos", [1, 2, 5, 20])
def test_ranks_share_every_row_once(listing: Path, ranks: int, videos: int) -> None:
    views = make_views(listing, views=1, crops=1)
    rows: list[int] = []
    for rank in range(ranks):
        loader = ViewLoader(views, per_batch=videos, workers=0, rank=rank, world_size=ranks)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(rows_of(batch)) <= videos for batch in batches)
        own = [row for batch in batches for row in rows_of(batch)]
        assert own == list(range(rank, 9, ranks))
        rows += own
    assert sorted(rows) == list(range(9))


def rows_of(batch: ViewsBatch) -> list[int]:
    """The records of a batch, read or not."""
    return sorted([*batch.index.tolist(), *(failure.index for failure in batch.failures)])


def test_batches_do_not_depend_on_workers(listing: Path) -> None:
    views = make_views(listing)
    here = list(ViewLoader(views, per_batch=4, workers=0))
    loader = ViewLoader(views, per_batch=4, workers=2)
    for _ in range(2):  # as often as one likes
        there = list(loader)
        assert len(there) == len(here) == 3
        for left, right in zip(there, here, strict=True):
            assert torch.equal(left.clips, right.clips)
            assert torch.equal(left.index, right.index)
            assert torch.equal(left.labels, right.labels)
            assert left.failures == right.failures


def test_loader_does_not_use_the_global_generator(listing: Path) -> None:
    state = torch.get_rng_state()
    list(ViewLoader(make_views(listing), per_batch=2, workers=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_unknown_reader_reaches_the_caller(listing: Path, workers: int) -> None:
    loader = ViewLoader(make_views(listing, reader="pyva"), per_batch=2, workers=workers)
    with pytest.raises(UserError, match="'pyva' is unknown; did you mean 'pyav'"):
        list(loader)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"views": 0}, r"views=0, crops=3: there must be at least 1 view, and 1 crop \(center\) or 3"),
        ({"crops": 2}, r"views=3, crops=2: there must be at least 1 view, and 1 crop \(center\) or 3"),
        ({"sampling": "segment"}, "sampling 'segment' is unknown; did you mean 'segments'"),
        ({"sampling": "segments"}, "views=3 with sampling=segments: .* use views=1"),
        ({"short": "repeat"}, "short 'repeat' is unknown; choose from clamp, loop, error"),
        ({"frames": 0}, "a clip of 0 frames at stride 2 is empty"),
        ({"crop": 32}, "short side 20 is smaller than the crop 32; raise the short side"),
    ],
)
def test_invalid_views_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_views(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"per_batch": 0}, "per_batch=0: must be at least 1"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
    ],
)
def test_invalid_loader_arguments_are_refused(listing: Path, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ViewLoader(make_views(listing), **{"per_batch": 1, "workers": 0, **arguments})
